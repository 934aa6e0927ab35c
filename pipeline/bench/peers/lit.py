"""LitData: its chunks, plain or with each sample packed by zstd, read by its dataset and loader."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.bench.contender import Batch, Contender
from pipeline.bench.peers.base import FolderReader, Job, Peer

__all__ = ["Lit"]

_CHUNK = "64MB"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lit:
    """``packing`` is None or ``zstd``.

    Samples are packed one by one, its only packing that leaves random access; packing several together makes every
    shuffled read unpack all of them.
    """

    name: str
    packing: str | None
    fidelity: str = "stored"
    package: str = "litdata"
    extra: str = "bench"

    @property
    def family(self) -> str:
        """Packed or not."""
        return "packed" if self.packing else "plain"

    def write(self, job: Job, /) -> None:
        """Chunks of 64 MB, its usual size, written in this process."""
        from litdata.streaming.cache import Cache

        level = "sample" if self.packing else None
        cache = Cache(str(job.folder), chunk_bytes=_CHUNK, compression=self.packing, compression_level=level)
        for row, arrays in job.held.iterate(self.fidelity):
            cache[row] = {"row": row, **{name: np.array(array) for name, array in arrays.items()}}
        cache.done()
        cache.merge()

    def open(self, job: Job, /) -> Contender:
        """Its dataset, shuffled by itself, and its loader without workers."""
        return _Reader(self, job)


class _Reader(FolderReader):
    def __init__(self, peer: Peer, job: Job) -> None:
        from litdata import StreamingDataset

        super().__init__(peer, job)
        self._sets = {shuffle: StreamingDataset(str(job.folder), shuffle=shuffle) for shuffle in (True, False)}
        # A dataset that a loader has gone through gives no single rows any more.
        self._single = StreamingDataset(str(job.folder))

    def shuffled(self, epoch: int, /) -> Iterator[Batch]:
        """Its own shuffle."""
        return self._read(shuffle=True)

    def in_order(self) -> Iterator[Batch]:
        """In order."""
        return self._read(shuffle=False)

    def one(self, row: int, /) -> Batch | None:
        """A row by its number."""
        sample = dict(self._single[row])
        return Batch([sample.pop("row")], {name: array[None] for name, array in sample.items()})

    def _read(self, *, shuffle: bool) -> Iterator[Batch]:
        from litdata import StreamingDataLoader

        for batch in StreamingDataLoader(self._sets[shuffle], batch_size=self.job.batch, num_workers=0):
            arrays: dict[str, Any] = dict(batch)
            yield Batch(arrays.pop("row").tolist(), arrays)
