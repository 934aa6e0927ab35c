"""``np.memmap``: one flat file per array, rows picked by fancy indexing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.bench.contender import Batch, Contender
from pipeline.bench.peers.base import FolderReader, Job, batches_of

__all__ = ["Memmap"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Memmap:
    """Uncompressed, at either fidelity."""

    name: str
    fidelity: str
    package: str = "numpy"
    family: str = "plain"
    extra: str = "bench"

    def write(self, job: Job, /) -> None:
        """One file per array."""
        job.folder.mkdir(parents=True)
        maps = _open(job, self.fidelity, mode="w+")
        for row, arrays in job.held.iterate(self.fidelity):
            for name, array in arrays.items():
                maps[name][row] = array
        for array in maps.values():
            array.flush()

    def open(self, job: Job, /) -> Contender:
        """Maps the files anew for each pass, because mapped pages cannot be dropped."""
        return _Reader(self, job)


class _Reader(FolderReader):
    def shuffled(self, epoch: int, /) -> Iterator[Batch]:
        """Uniformly shuffled."""
        return self._read(epoch)

    def in_order(self) -> Iterator[Batch]:
        """In order."""
        return self._read(None)

    def one(self, row: int, /) -> Batch | None:
        """A row by its number."""
        return Batch([row], {name: array[[row]] for name, array in self._maps().items()})

    def _read(self, epoch: int | None) -> Iterator[Batch]:
        maps = self._maps()
        for rows in batches_of(self.job, epoch=epoch):
            yield Batch(rows.tolist(), {name: array[rows] for name, array in maps.items()})

    def _maps(self) -> Mapping[str, Any]:
        return _open(self.job, self.facts.fidelity, mode="r")


def _open(job: Job, fidelity: str, *, mode: str) -> Mapping[str, Any]:
    kind: Any = mode
    return {
        name: np.memmap(job.folder / f"{name}.dat", dtype=spec.dtype, mode=kind, shape=(job.held.rows, *spec.shape))
        for name, spec in job.held.shapes(fidelity).items()
    }
