"""Rounds in which every contender takes its turn, and the medians of what they did."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from pipeline.bench.contender import Batch, Contender, Facts, WrongDataError
from pipeline.bench.plan import BenchPlan

__all__ = ["Line", "Pass", "measure", "time_passes"]

_SINGLE_ROWS = 8
_LEAST_SECONDS = 0.3


class Pass(NamedTuple):
    """One timed pass.

    Units:
        rate: rows a second. cores: processor seconds a second. first: seconds to the first batch.
    """

    rate: float
    cores: float
    first: float


@dataclass(slots=True)
class Line:
    """What was measured of one contender, round by round; or the problem that kept it from being measured."""

    facts: Facts
    shuffled: list[Pass] = field(default_factory=list)
    in_order: list[Pass] = field(default_factory=list)
    single: list[float] = field(default_factory=list)
    problem: str = ""

    @property
    def rate(self) -> float | None:
        """Median rows a second, shuffled."""
        return statistics.median(turn.rate for turn in self.shuffled) if self.shuffled else None


def measure(
    contenders: Sequence[Contender], plan: BenchPlan, /, *, rows: int, done: Callable[[str], None]
) -> list[Line]:
    """A B C ... A B C ...: in every round each contender reads the rows shuffled, in order, and some by themselves.

    Args:
        done: Told the name of a contender after each of its turns.
    """
    lines = [Line(contender.facts) for contender in contenders]
    for turn in range(plan.rounds):
        singles = np.random.default_rng([plan.seed, turn]).integers(0, rows, _SINGLE_ROWS).tolist()
        for line, contender in zip(lines, contenders, strict=True):
            if not line.problem:
                try:
                    _take_turn(line, contender, plan, rows=rows, singles=singles)
                except Exception as error:
                    # Whatever a peer's library raises: the others are still to be measured.
                    if line.facts.kind != "peer":
                        raise
                    line.problem = describe(error)
            done(line.facts.name)
    return lines


def describe(error: Exception, /) -> str:
    """An error of someone else's library in one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, WrongDataError) else f"failed: {type(error).__name__}: {text}"[:200]


def time_passes(read: Callable[[int], Iterator[Batch]], *, rows: int, least: float) -> Pass:
    """Time whole passes over the rows, until some seconds have gone by.

    From asking for the first batch to having the last, so that whatever a reader does early (shuffle buffers, chunks
    unpacked whole) or late counts, and every row's work exactly once.

    Args:
        read: A pass by its number.

    Raises:
        WrongDataError: A pass had another number of rows.
    """
    begun, used = time.perf_counter(), time.process_time()
    passes, first, seconds = 0, 0.0, 0.0
    while passes == 0 or seconds < least:
        asked, count = time.perf_counter(), 0
        for batch in read(passes):
            first = first or time.perf_counter() - asked
            count += len(batch.rows)
        if count != rows:
            raise WrongDataError(f"expected {rows} rows, got {count}")
        passes += 1
        seconds = time.perf_counter() - begun
    return Pass(passes * rows / seconds, (time.process_time() - used) / seconds, first)


def _take_turn(line: Line, contender: Contender, plan: BenchPlan, *, rows: int, singles: Sequence[int]) -> None:
    # Dropped pages come back with the first pass.
    least = 0.0 if plan.cold else _LEAST_SECONDS
    for read, results in ((contender.shuffled, line.shuffled), (lambda epoch: contender.in_order(), line.in_order)):
        if plan.cold:
            contender.drop_cache()
        results.append(time_passes(read, rows=rows, least=least))
    if plan.cold:
        contender.drop_cache()
    for row in singles:
        begun = time.perf_counter()
        if contender.one(row) is None:
            return
        line.single.append(time.perf_counter() - begun)
