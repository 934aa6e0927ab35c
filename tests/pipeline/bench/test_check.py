from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pipeline.bench.check import check_contender
from pipeline.bench.contender import Batch, Facts, WrongDataError
from pipeline.bench.held import Held
from pipeline.bench.limits import limits
from pipeline.bench.ours import ours
from pipeline.bench.plan import BenchPlan

Change = Callable[[list[int], dict[str, Any]], None]


class Changed:
    """Our reader, whose batches someone tampers with on the way."""

    def __init__(self, held: Held, plan: BenchPlan, *, where: str, change: Change) -> None:
        self._ours = ours(held, plan)[0]
        self.facts = Facts(name="peer", kind="peer", fidelity="stored", bytes_per_row=0)
        self._where, self._change = where, change

    def shuffled(self, epoch: int, /) -> Iterator[Batch]:
        return (self._tamper(batch, "shuffled") for batch in self._ours.shuffled(epoch))

    def in_order(self) -> Iterator[Batch]:
        return (self._tamper(batch, "in order") for batch in self._ours.in_order())

    def one(self, row: int, /) -> Batch | None:
        batch = self._ours.one(row)
        return self._tamper(batch, "single row") if batch else None

    def drop_cache(self) -> None: ...

    def close(self) -> None: ...

    def _tamper(self, batch: Batch, where: str) -> Batch:
        rows, arrays = list(batch.rows), {name: array.copy() for name, array in batch.arrays.items()}
        if where == self._where:
            self._change(rows, arrays)
        return Batch(rows, arrays)


def nothing(rows: list[int], arrays: dict[str, Any]) -> None:
    pass


def flip(rows: list[int], arrays: dict[str, Any]) -> None:
    arrays["level_1"][-1, 0, 0, 0] ^= 1


def swap(rows: list[int], arrays: dict[str, Any]) -> None:
    rows[0] = (rows[0] + 1) % 20


def repeat(rows: list[int], arrays: dict[str, Any]) -> None:
    if 7 in rows:
        rows.append(7)
        for name, array in arrays.items():
            arrays[name] = array[[*range(len(array)), rows.index(7)]]


def drop(rows: list[int], arrays: dict[str, Any]) -> None:
    if len(rows) > 1:
        rows.pop()
        for name in arrays:
            arrays[name] = arrays[name][:-1]


def widen(rows: list[int], arrays: dict[str, Any]) -> None:
    arrays["level_0"] = arrays["level_0"].astype("int16")


def forget(rows: list[int], arrays: dict[str, Any]) -> None:
    del arrays["level_0_scale"]


@pytest.mark.parametrize("where", ["shuffled", "in order", "single row"])
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (flip, "level_1: row [0-9]+ differs from what was stored"),
        (swap, "row [0-9]+ differs from what was stored"),
        (widen, "level_0: expected int8 .*, got int16"),
        (forget, "expected the arrays .*level_0_scale"),
    ],
)
def test_wrong_numbers_are_found(held: Held, plan: BenchPlan, where: str, change: Change, problem: str) -> None:
    with pytest.raises(WrongDataError, match=f"peer, {where}.*{problem}"):
        check_contender(Changed(held, plan, where=where, change=change), held)


@pytest.mark.parametrize("where", ["shuffled", "in order"])
@pytest.mark.parametrize(("change", "times"), [(drop, "0 times"), (repeat, "row 7 2 times")])
def test_missing_and_repeated_rows_are_found(
    held: Held, plan: BenchPlan, where: str, change: Change, times: str
) -> None:
    with pytest.raises(WrongDataError, match=f"peer, {where}: expected every row once, got .*{times}"):
        check_contender(Changed(held, plan, where=where, change=change), held)


def test_ours_and_what_is_left_as_it_is_are_right(held: Held, plan: BenchPlan) -> None:
    check_contender(Changed(held, plan, where="shuffled", change=nothing), held)
    for contender in (*ours(held, plan), *limits(held, plan)):
        check_contender(contender, held)
        contender.close()
