"""No benchmark of wrong data: every contender must give every row once, and just the numbers that it was given."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from pipeline.bench.contender import Batch, Contender, WrongDataError
from pipeline.bench.held import Held, digest

__all__ = ["check_contender"]


def check_contender(contender: Contender, held: Held, /) -> None:
    """One pass shuffled, one in order and a few single rows; also warms the page cache.

    Raises:
        WrongDataError: A row is missing, repeated or differs.
    """
    name = contender.facts.name
    _check_pass(contender.shuffled(0), contender, held, where=f"{name}, shuffled")
    _check_pass(contender.in_order(), contender, held, where=f"{name}, in order")
    for row in (0, held.rows // 2, held.rows - 1):
        batch = contender.one(row)
        if batch is not None:
            _check_batch(batch, contender, held, where=f"{name}, single row")
            if list(batch.rows) != [row]:
                raise WrongDataError(f"{name}, single row: expected row {row}, got {list(batch.rows)}")


def _check_pass(batches: Iterable[Batch], contender: Contender, held: Held, *, where: str) -> None:
    seen = np.zeros(held.rows, dtype=np.int64)
    for batch in batches:
        _check_batch(batch, contender, held, where=where)
        np.add.at(seen, np.asarray(batch.rows, dtype=np.int64), 1)
    wrong = np.flatnonzero(seen != 1)
    if wrong.size:
        raise WrongDataError(
            f"{where}: expected every row once, got row {wrong[0]} {seen[wrong[0]]} times and {len(wrong) - 1} others"
        )


def _check_batch(batch: Batch, contender: Contender, held: Held, *, where: str) -> None:
    fidelity = contender.facts.fidelity
    if fidelity == "none":
        return
    shapes, digests = held.shapes(fidelity), held.digests(fidelity)
    if set(batch.arrays) != set(shapes):
        raise WrongDataError(f"{where}: expected the arrays {sorted(shapes)}, got {sorted(batch.arrays)}")
    for name, spec in shapes.items():
        array = batch.arrays[name]
        shape, dtype = (len(batch.rows), *spec.shape), str(array.dtype).removeprefix("torch.")
        if tuple(array.shape) != shape or dtype != spec.dtype:
            raise WrongDataError(f"{where}, {name}: expected {spec.dtype} {shape}, got {dtype} {tuple(array.shape)}")
        for position, row in enumerate(batch.rows):
            if digest(array[position]) != digests[row][name]:
                raise WrongDataError(f"{where}, {name}: row {row} differs from what was stored")
