"""MosaicML Streaming: MDS shards packed by zstd, read by its dataset and loader."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.bench.contender import Batch, Contender
from pipeline.bench.peers.base import FolderReader, Job, Peer

__all__ = ["Mds"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mds:
    """Packed by zstd; shards are unpacked beside the packed ones when first read, and read from there."""

    name: str = "mds-zstd"
    fidelity: str = "stored"
    package: str = "streaming"
    family: str = "plain"
    extra: str = "bench-mosaic"

    def write(self, job: Job, /) -> None:
        """Shards of its default size."""
        from streaming import MDSWriter

        columns = {"row": "int"}
        for name, spec in job.held.shapes(self.fidelity).items():
            columns[name] = f"ndarray:{spec.dtype}:{','.join(map(str, spec.shape))}"
        with MDSWriter(out=str(job.folder), columns=columns, compression="zstd") as writer:
            for row, arrays in job.held.iterate(self.fidelity):
                writer.write({"row": row, **arrays})

    def open(self, job: Job, /) -> Contender:
        """Its dataset with its default shuffle, its loader without workers."""
        return _Reader(self, job)


class _Reader(FolderReader):
    def __init__(self, peer: Peer, job: Job) -> None:
        from streaming import StreamingDataset

        super().__init__(peer, job, note="unpacked on the disk at the first read; timed unpacked")
        local = str(job.folder)
        self._sets = {
            shuffle: StreamingDataset(local=local, shuffle=shuffle, batch_size=job.batch) for shuffle in (True, False)
        }

    def shuffled(self, epoch: int, /) -> Iterator[Batch]:
        """Its default shuffle."""
        return self._read(shuffle=True)

    def in_order(self) -> Iterator[Batch]:
        """In order."""
        return self._read(shuffle=False)

    def one(self, row: int, /) -> Batch | None:
        """A row by its number."""
        sample = self._sets[False][row]
        return Batch([sample.pop("row")], {name: array[None] for name, array in sample.items()})

    def _read(self, *, shuffle: bool) -> Iterator[Batch]:
        from streaming import StreamingDataLoader

        for batch in StreamingDataLoader(self._sets[shuffle], batch_size=self.job.batch, num_workers=0):
            arrays: dict[str, Any] = dict(batch)
            yield Batch(arrays.pop("row").tolist(), arrays)
