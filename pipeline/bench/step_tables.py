"""What ``sak bench step`` found, as a table, as JSON, and in words."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from pipeline.bench.step import WAYS, StepLine

__all__ = ["StepResult", "step_json", "step_notes", "step_table"]

FORMAT = 1
OVERHEAD, GAIN = 1.05, 0.9  # goals: cached against memory, and online against cached as a share of the limit


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """All that was measured, and under what conditions."""

    conditions: Mapping[str, Any]
    lines: Sequence[StepLine]


def step_table(result: StepResult, /) -> Table:
    """One row per student and way."""
    table = Table(header_style="bold")
    heads = ("student", "targets", "ms a step", "range", "images/s", "data wait", "read MB/s", "of decoded")
    for index, name in enumerate(heads):
        table.add_column(name, justify="left" if index < 2 else "right")
    for line in result.lines:
        found = _line_json(line, result)
        for way, item in found["ways"].items():
            low, high = item["range_seconds"]
            table.add_row(
                line.student,
                way,
                f"{1e3 * item['seconds']:.1f}",
                f"{1e3 * low:.1f}–{1e3 * high:.1f}",
                f"{item['images_per_second']:.4g}",
                f"{item['data_wait']:.1%}",
                f"{item['read_bytes_per_second'] / 1e6:.1f}",
                f"{item['of_decoded']:.3f}",
            )
    return table


def step_notes(result: StepResult, /) -> list[str]:
    """Goals and whether they are met, conditions, and what the table's words mean."""
    lines = []
    for line in result.lines:
        found = _line_json(line, result)
        lines.append(
            f"{line.student}: cached / decoded {found['overhead']:.3f} ({_met(found['overhead_met'])}: at most"
            f" {OVERHEAD}), cached / encoded {found['overhead_encoded']:.3f}; online / cached {found['gain']:.2f} of at"
            f" most {line.limit:.2f} = {found['of_limit']:.2f} ({_met(found['gain_met'])}: at least {GAIN}); limit from"
            f" {line.teacher_macs / 1e9:.1f} GMACs of teachers and {line.macs / 1e9:.1f} of the student an image"
        )
    facts = result.conditions
    lines += [
        f"teachers {', '.join(facts['teachers'])}; {facts['size'][0]} x {facts['size'][1]}, batch {facts['batch']},"
        f" {facts['precision']}; {facts['rounds']} rounds of {facts['steps']} steps in turn, medians, ratios round by"
        f" round; files {facts['files']}",
        f"{facts['device']}; {facts['machine']}; torch {facts['torch']}, {facts['threads']} thread(s); "
        f"load {facts['load_before']:.1f} before, {facts['load_after']:.1f} after",
        *(f"{way}: {meaning}" for way, meaning in WAYS.items()),
    ]
    return lines


def step_json(result: StepResult, /) -> dict[str, Any]:
    """Everything, rounds included, as plain JSON."""
    lines = [_line_json(line, result) for line in result.lines]
    return {"format": FORMAT, "conditions": dict(result.conditions), "lines": lines}


def _met(met: bool) -> str:
    return "met" if met else "missed"


def _ratio(line: StepLine, one: str, other: str) -> float:
    pairs = zip(line.turns[one], line.turns[other], strict=True)
    return statistics.median(turn.seconds / base.seconds for turn, base in pairs)


def _line_json(line: StepLine, result: StepResult) -> dict[str, Any]:
    overhead, gain = _ratio(line, "cached", "decoded"), _ratio(line, "online", "cached")
    return {
        "student": line.student,
        "parameters": line.parameters,
        "macs": line.macs,
        "teacher_macs": line.teacher_macs,
        "ways": {way: _way_json(line, way, batch=result.conditions["batch"]) for way in WAYS},
        "overhead": overhead,
        "overhead_met": overhead <= OVERHEAD,
        "overhead_encoded": _ratio(line, "cached", "encoded"),
        "gain": gain,
        "limit": line.limit,
        "of_limit": gain / line.limit,
        "gain_met": gain >= GAIN * line.limit,
    }


def _way_json(line: StepLine, way: str, *, batch: int) -> dict[str, Any]:
    turns = line.turns[way]
    seconds = [turn.seconds for turn in turns]
    return {
        "seconds": statistics.median(seconds),
        "range_seconds": [min(seconds), max(seconds)],
        "images_per_second": batch / statistics.median(seconds),
        "data_wait": statistics.median(turn.waited for turn in turns),
        "read_bytes_per_second": statistics.median(turn.read_rate for turn in turns),
        "of_decoded": _ratio(line, way, "decoded"),
        "rounds": [turn._asdict() for turn in turns],
    }
