"""What ``sak bench extract`` found, as a table, as JSON, and in words."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from pipeline.bench.extraction import ExtractionLine
from pipeline.targets import codec_label
from store.codecs.registry import choice_json
from store.costs import UNTIMED, Spent

__all__ = ["ExtractionResult", "extraction_json", "extraction_notes", "extraction_table"]

FORMAT = 1
_STEPS: Mapping[str, tuple[str, ...]] = {
    "read": ("read",),
    "copy": ("copy",),
    "forward": ("forward",),
    "encode": ("encode",),
    "measure": ("decode", "measure"),
    "write": ("write",),
}
_BYTES = ("read_bytes", "device_bytes", "host_bytes", "written_bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractionResult:
    """All that was measured, and under what conditions; ``projected`` is for how many images hours are told."""

    conditions: Mapping[str, Any]
    projected: int
    lines: Sequence[ExtractionLine]


def extraction_table(result: ExtractionResult, /) -> Table:
    """One row per teacher, and one for all together where there are several."""
    table = Table(header_style="bold")
    hours = f"hours for {result.projected:,}"
    for index, name in enumerate(
        ("teacher", "codec", "bare rows/s", "rows/s", "of bare", "range", "of bare, CPU", *_STEPS, "kB a row", hours)
    ):
        table.add_column(name, justify="left" if index < 2 else "right")
    for line in result.lines:
        found = _line_json(line, result)
        steps = found["milliseconds_per_row"]
        low, high = found["of_bare_range"]
        table.add_row(
            line.name,
            codec_label(line.codec),
            f"{found['bare_rows_per_second']:.4g}",
            f"{found['rows_per_second']:.4g}",
            f"{found['of_bare']:.1%}",
            f"{low:.1%}–{high:.1%}",
            f"{found['of_bare_processor']:.1%}",
            *(f"{steps[step]:.2f}" for step in _STEPS),
            f"{found['stored_bytes_per_row'] / 1e3:.1f}",
            f"{found['projected_hours']:.1f}",
        )
    return table


def extraction_notes(result: ExtractionResult, /) -> list[str]:
    """Conditions, and what the table's columns mean."""
    facts = result.conditions
    lines = [
        f"{facts['images']} made images of {facts['size'][0]} x {facts['size'][1]} in shards of {facts['shard']}, "
        f"batches of {facts['batch']}, {facts['rounds']} rounds in turn, medians",
        f"{facts['device']}; {facts['machine']}; torch {facts['torch']}, {facts['threads']} thread(s); "
        f"load {facts['load_before']:.1f} before, {facts['load_after']:.1f} after",
        "of bare: rows a second against the bare teacher on the same batches in the device's memory, round by round; "
        "CPU: the same in processor time, which other jobs disturb less, best with one thread; it leaves out a GPU and "
        "waiting for the disk; steps in milliseconds a row, which overlap; measure: the codec's error on one row "
        "in eight",
    ]
    for line in result.lines:
        moved = _line_json(line, result)["bytes_per_row"]
        shown = ", ".join(f"{name.removesuffix('_bytes')} {moved[name] / 1e3:.1f}" for name in _BYTES)
        lines.append(f"{line.name}: kB a row counted where they cross: {shown}")
    return lines


def extraction_json(result: ExtractionResult, /) -> dict[str, Any]:
    """Everything, rounds included, as plain JSON."""
    lines = [_line_json(line, result) for line in result.lines]
    return {"format": FORMAT, "conditions": dict(result.conditions), "lines": lines}


def _line_json(line: ExtractionLine, result: ExtractionResult) -> dict[str, Any]:
    ratios = [turn.bare / turn.made for turn in line.turns]
    rate = line.rows / statistics.median(turn.made for turn in line.turns)
    spent: Spent = UNTIMED
    for turn in line.turns:
        spent = spent.plus(turn.spent)
    rows = line.rows * len(line.turns)
    return {
        "name": line.name,
        "codec": choice_json(line.codec),
        "bare_rows_per_second": line.rows / statistics.median(turn.bare for turn in line.turns),
        "rows_per_second": rate,
        "of_bare": statistics.median(ratios),
        "of_bare_range": [min(ratios), max(ratios)],
        "of_bare_processor": statistics.median(turn.bare_cpu / turn.made_cpu for turn in line.turns),
        "rounds": [
            {
                "bare_seconds": turn.bare,
                "bare_processor_seconds": turn.bare_cpu,
                "seconds": turn.made,
                "processor_seconds": turn.made_cpu,
            }
            for turn in line.turns
        ],
        "milliseconds_per_row": {
            step: 1e3 * sum(getattr(spent, name) for name in names) / rows for step, names in _STEPS.items()
        },
        "bytes_per_row": {name: getattr(spent, name) / rows for name in _BYTES},
        "stored_bytes_per_row": line.stored / line.rows,
        "projected_hours": result.projected / rate / 3600,
    }
