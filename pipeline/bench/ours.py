"""Our store as a contender: warm, from the first byte, with and without digests, and decoded on a device.

B is rows in a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.bench.contender import Batch, Contender, Facts
from pipeline.bench.files import drop_pages, folder_bytes
from pipeline.bench.held import Held, field_name, join
from pipeline.bench.plan import BenchPlan
from store.column import Column
from store.order import epoch_rows
from store.viewset import ReadOptions

__all__ = ["FIRST", "FIRST_UNVERIFIED", "OURS", "ordered_batches", "ours", "shuffled_batches"]

OURS = "sak"
FIRST, FIRST_UNVERIFIED = "sak, first read", "sak, first read, no digests"
_WINDOW = 8
"""Shards that the training loader mixes at a time."""


def shuffled_batches(held: Held, *, batch: int, epoch: int) -> Iterator[NDArray[np.int64]]:
    """Rows of each step of an epoch, in the very order of the training loader."""
    order = epoch_rows(held.view_set, seed=0, epoch=epoch, window=_WINDOW)
    return (order[first : first + batch] for first in range(0, len(order), batch))


def ordered_batches(held: Held, *, batch: int) -> Iterator[NDArray[np.int64]]:
    """Rows of each step in stored order."""
    return (np.arange(first, min(first + batch, held.rows)) for first in range(0, held.rows, batch))


def ours(held: Held, plan: BenchPlan) -> list[Contender]:
    """Our lines of the table."""
    size = sum(folder_bytes(held.root / "columns" / column.view_set.name / column.name) for column in held.open())
    facts = Facts(name=OURS, kind="ours", fidelity="stored", bytes_per_row=size / held.rows)
    digests = ReadOptions(threads=plan.threads)
    without = ReadOptions(threads=plan.threads, verify="size")
    lines: list[Contender] = [
        _Ours(held, plan, digests, facts),
        _Ours(held, plan, digests, replace(facts, name=FIRST), reopens=True),
        _Ours(held, plan, without, replace(facts, name=FIRST_UNVERIFIED), reopens=True),
    ]
    if plan.device is not None:
        lines.append(
            _Decoded(held, plan, digests, replace(facts, name=f"{OURS}, decoded on {plan.device}", fidelity="none"))
        )
    return lines


class _Ours:
    def __init__(
        self, held: Held, plan: BenchPlan, options: ReadOptions, facts: Facts, *, reopens: bool = False
    ) -> None:
        self.facts = facts
        self._reopens = reopens
        self._held, self._batch, self._options = held, plan.batch, options
        self._columns = held.open(options)

    def shuffled(self, epoch: int, /) -> Iterator[Batch]:
        """Batches in the training loader's order."""
        return self._read(shuffled_batches(self._held, batch=self._batch, epoch=epoch))

    def in_order(self) -> Iterator[Batch]:
        """Batches in stored order."""
        return self._read(ordered_batches(self._held, batch=self._batch))

    def one(self, row: int, /) -> Batch | None:
        """A row by its number."""
        return Batch([row], self._arrays(self._columns, np.array([row])))

    def drop_cache(self) -> None:
        """Forget the store's pages."""
        drop_pages(self._held.root)

    def close(self) -> None:
        """Nothing: columns close their files by themselves."""

    def _read(self, batches: Iterator[NDArray[np.int64]]) -> Iterator[Batch]:
        columns = self._held.open(self._options) if self._reopens else self._columns
        for rows in batches:
            yield Batch(rows.tolist(), self._arrays(columns, rows))

    def _arrays(self, columns: list[Column], rows: NDArray[np.int64]) -> Mapping[str, Any]:
        return join(columns, [column.read(rows) for column in columns])


class _Decoded(_Ours):
    """Stored integers copied to a device and decoded there, as the loss sees them."""

    def __init__(self, held: Held, plan: BenchPlan, options: ReadOptions, facts: Facts) -> None:
        super().__init__(held, plan, options, facts)
        self._device = torch.device(plan.device or "cpu")

    def _arrays(self, columns: list[Column], rows: NDArray[np.int64]) -> Mapping[str, Any]:
        decoded = {}
        for index, column in enumerate(columns):
            moved = {
                level: {part: torch.from_numpy(array).to(self._device) for part, array in parts.items()}
                for level, parts in enumerate(column.read(rows))
            }
            for level, feat_BCHW in enumerate(column.spec.decode_levels(moved)):
                decoded[field_name(index, level, "values", many=len(columns) > 1)] = feat_BCHW
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return decoded
