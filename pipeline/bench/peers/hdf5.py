"""HDF5 by h5py: one dataset per array, one chunk per row, a built-in compression filter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.bench.contender import Batch, Contender
from pipeline.bench.peers.base import FolderReader, Job, Peer, batches_of

__all__ = ["Hdf5"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hdf5:
    """One chunk a row; ``filter`` is h5py's name of a compression filter, at its default level."""

    name: str
    filter: str
    fidelity: str = "stored"
    package: str = "h5py"
    family: str = "packed"
    extra: str = "bench"

    def write(self, job: Job, /) -> None:
        """One file."""
        import h5py

        job.folder.mkdir(parents=True)
        with h5py.File(job.folder / "rows.h5", "w") as file:
            for name, spec in job.held.shapes(self.fidelity).items():
                file.create_dataset(
                    name,
                    shape=(job.held.rows, *spec.shape),
                    dtype=spec.dtype,
                    chunks=(1, *spec.shape),
                    compression=self.filter,
                )
            for row, arrays in job.held.iterate(self.fidelity):
                for name, array in arrays.items():
                    file[name][row] = array

    def open(self, job: Job, /) -> Contender:
        """Reads chunk after chunk into the batch: h5py's own lists of rows must ascend, and are far slower."""
        return _Reader(self, job)


class _Reader(FolderReader):
    def __init__(self, peer: Peer, job: Job) -> None:
        import h5py

        super().__init__(peer, job)
        self._file = h5py.File(job.folder / "rows.h5", "r")
        self._sets: dict[str, Any] = {name: self._file[name] for name in job.held.shapes(peer.fidelity)}

    def shuffled(self, epoch: int, /) -> Iterator[Batch]:
        """Uniformly shuffled."""
        return (self._rows(rows.tolist()) for rows in batches_of(self.job, epoch=epoch))

    def in_order(self) -> Iterator[Batch]:
        """In order."""
        return (self._rows(rows.tolist()) for rows in batches_of(self.job, epoch=None))

    def one(self, row: int, /) -> Batch | None:
        """A row by its number."""
        return self._rows([row])

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _rows(self, rows: Sequence[int]) -> Batch:
        arrays = {}
        for name, stored in self._sets.items():
            out = np.empty((len(rows), *stored.shape[1:]), stored.dtype)
            for position, row in enumerate(rows):
                stored.read_direct(out, np.s_[row], np.s_[position])
            arrays[name] = out
        return Batch(rows, arrays)
