"""A benchmark's result as a table, as JSON, and in words."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from pipeline.bench.measure import Line, Pass
from pipeline.bench.ours import FIRST, FIRST_UNVERIFIED, OURS
from pipeline.targets import codec_label

__all__ = ["BenchResult", "bench_json", "bench_notes", "bench_table"]

FORMAT = 1
_COLUMNS = (
    "name",
    "MB a row",
    "rows/s shuffled",
    "rows/s in order",
    "one row ms",
    "MB/s decoded",
    "rows/CPU s",
    "of limit",
    "sak is",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchResult:
    """All that a benchmark found, and under what conditions.

    ``handed`` maps a fidelity to the bytes of a row that a reader hands over.
    """

    conditions: Mapping[str, Any]
    handed: Mapping[str, int]
    lines: Sequence[Line]


def bench_table(result: BenchResult, /) -> Table:
    """One row per contender: ours, the limits, the peers; the fastest of each first."""
    table = Table(header_style="bold")
    for index, name in enumerate(_COLUMNS):
        table.add_column(name, justify="right" if index else "left")
    kinds = ("ours", "limit", "peer")
    measured = [line for line in result.lines if not line.problem]
    for line in sorted(measured, key=lambda line: (kinds.index(line.facts.kind), -(line.rate or 0))):
        table.add_row(*_cells(line, result))
    return table


def bench_notes(result: BenchResult, /) -> list[str]:
    """Conditions, what the table's columns mean, and why some peers are not in it."""
    facts = result.conditions
    lines = [
        f"{facts['rows']} rows of {facts['values']} values, {facts['columns']} column(s), codec "
        f"{codec_label(facts['codec'])}: {facts['bits_per_value']:.2f} bits a value",
        f"batches of {facts['batch']}, {facts['rounds']} rounds in turn, medians; page cache {facts['cache']}; "
        f"features {facts['features']}",
        f"{facts['machine']}; {facts['threads']} thread(s) for ours and the limits, peers without workers; "
        f"load {facts['load_before']:.1f} before, {facts['load_after']:.1f} after",
        "rows/CPU s: shuffled rows a second of processor time, which other jobs disturb less; of limit: of the tighter "
        "limit, shuffled, round by round; sak is: how many times as fast, shuffled",
    ]
    lines += _best_rival(result)
    if facts["exceeds_memory"]:
        lines.append("the files take more than half of the memory: the page cache may not hold them")
    digests = _digest_cost(result)
    if digests is not None:
        lines.append(
            f"digests: each shard's SHA-256 is checked once a process, which costs {digests * 1e3:.2f} ms of processor "
            "time a row on the first read and nothing after it; rows' own checksums are checked on every read"
        )
    lines += [f"{line.facts.name}: {line.facts.note}" for line in result.lines if line.facts.note and not line.problem]
    return [*lines, *(f"{line.facts.name}: {line.problem}" for line in result.lines if line.problem)]


def bench_json(result: BenchResult, /) -> dict[str, Any]:
    """Everything, rounds included, as plain JSON."""
    return {
        "format": FORMAT,
        "conditions": dict(result.conditions),
        "digest_seconds_per_row": _digest_cost(result),
        "lines": [_line_json(line, result) for line in result.lines],
    }


def _line_json(line: Line, result: BenchResult) -> dict[str, Any]:
    facts = line.facts
    head: dict[str, Any] = {
        "name": facts.name,
        "kind": facts.kind,
        "fidelity": facts.fidelity,
        "family": facts.family,
        "note": facts.note,
        "problem": line.problem,
    }
    if line.problem:
        return head
    return head | {
        "bytes_per_row": facts.bytes_per_row,
        "shuffled": _passes_json(line.shuffled),
        "in_order": _passes_json(line.in_order),
        "single_row_seconds": statistics.median(line.single) if line.single else None,
        "decoded_bytes_per_second": (line.rate or 0) * _handed(line, result),
        "of_limit": _against_limit(line, result),
        "ours_is": _against_ours(line, result),
    }


def _passes_json(passes: Sequence[Pass]) -> dict[str, Any]:
    return {
        "rows_per_second": statistics.median(turn.rate for turn in passes),
        "cores": statistics.median(turn.cores for turn in passes),
        "first_batch_seconds": statistics.median(turn.first for turn in passes),
        "rounds": [turn.rate for turn in passes],
    }


def _cells(line: Line, result: BenchResult) -> list[str]:
    rate, limit, times = line.rate or 0.0, _against_limit(line, result), _against_ours(line, result)
    single = statistics.median(line.single) * 1e3 if line.single else None
    return [
        line.facts.name,
        f"{line.facts.bytes_per_row / 1e6:.3f}",
        f"{rate:.0f}",
        f"{statistics.median(turn.rate for turn in line.in_order):.0f}",
        "–" if single is None else f"{single:.2f}",
        f"{rate * _handed(line, result) / 1e6:.0f}",
        f"{statistics.median(turn.rate / max(turn.cores, 1e-9) for turn in line.shuffled):.0f}",
        "–" if limit is None else f"{limit:.0%}",
        "–" if times is None else f"{times:.1f} x",
    ]


def _handed(line: Line, result: BenchResult) -> int:
    return result.handed[line.facts.fidelity]


def _against_limit(line: Line, result: BenchResult) -> float | None:
    """Median over rounds of the rate as a share of that round's tightest limit: noise that hits a round cancels."""
    limits = [other for other in result.lines if other.facts.kind == "limit"]
    tightest = [min(rates) for rates in zip(*[_rates(other) for other in limits], strict=True)]
    return _median_ratio(_rates(line), tightest)


def _against_ours(line: Line, result: BenchResult) -> float | None:
    ours = next((other for other in result.lines if other.facts.name == OURS), None)
    return _median_ratio(_rates(ours), _rates(line)) if ours and line.facts.kind == "peer" else None


def _best_rival(result: BenchResult) -> list[str]:
    """The comparisons that matter most: with the fastest peers that pack rows or keep them in tars."""
    peers = [line for line in result.lines if line.facts.kind == "peer" and line.rate]
    rivals = [line for line in peers if line.facts.family in ("tar", "packed")]
    groups = {
        "that holds the same integers": [line for line in rivals if line.facts.fidelity == "stored"],
        "that holds floats of 16 bits": [line for line in rivals if line.facts.fidelity != "stored"],
    }
    found = []
    for what, lines in groups.items():
        best = max(lines, key=lambda line: line.rate or 0, default=None)
        times = _against_ours(best, result) if best else None
        if best and times:
            found.append(f"{OURS} is {times:.1f} x the best compressed or tar-based peer {what}, {best.facts.name}")
    return found


def _digest_cost(result: BenchResult) -> float | None:
    """Processor seconds a row that hashing whole shards adds to a first read."""
    found = {line.facts.name: line.shuffled for line in result.lines}
    if FIRST not in found or FIRST_UNVERIFIED not in found:
        return None
    turns = zip(found[FIRST], found[FIRST_UNVERIFIED], strict=True)
    return statistics.median(one.cores / one.rate - other.cores / other.rate for one, other in turns)


def _median_ratio(over: Sequence[float], under: Sequence[float]) -> float | None:
    if not over or not under:
        return None
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def _rates(line: Line) -> list[float]:
    return [turn.rate for turn in line.shuffled]
