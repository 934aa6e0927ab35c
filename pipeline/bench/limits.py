"""What no reader of these bytes can beat: reading them raw, copying what they unpack to, and the byte codec alone.

Rows are found by the Zarr v3 format, independent of our reader: a shard ends in an index of (offset, size) pairs and
the index's CRC-32C. Source: Zarr v3 sharding codec, version 1.0.

B is rows in a batch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import zstandard
from numpy.typing import NDArray

from pipeline.bench.contender import Batch, BenchError, Contender, Facts
from pipeline.bench.files import drop_pages
from pipeline.bench.held import VIEW_SET, Held
from pipeline.bench.ours import ordered_batches, shuffled_batches
from pipeline.bench.plan import BenchPlan

__all__ = ["CODEC", "COPY", "RAW", "limits"]

RAW, COPY, CODEC = "limit: raw read", "limit: memcpy", "limit: byte codec"
_KEPT_BYTES = 512 << 20
_CRC_BYTES = 4


class _Chunk(NamedTuple):
    """Where a row of one array lies."""

    file: int
    offset: int
    size: int


class _Rows(NamedTuple):
    """Open shard files, and the chunks of every row."""

    files: list[int]
    chunks: list[list[_Chunk]]


# Of each row its packed chunks.
_Packed = list[list[bytes]]
# Does a thread's share of a batch.
_Work = Callable[[Sequence[int], int], None]


def limits(held: Held, plan: BenchPlan) -> list[Contender]:
    """The three limits of one reader of so many threads.

    Raises:
        BenchError: The store's arrays are packed by something other than zstd.
    """
    found = _locate(held)
    outs = [np.zeros((-(-plan.batch // plan.threads), held.row_bytes), np.uint8) for _ in range(plan.threads)]
    kept = max(plan.batch, min(held.rows, _KEPT_BYTES // held.row_bytes))
    packed = [_packed(found, row) for row in range(min(kept, held.rows))]
    works: dict[str, _Work] = {
        RAW: _raw(found, plan.threads),
        COPY: _copy(packed, outs),
        CODEC: _unpack(packed, plan.threads),
    }
    size = sum(chunk.size for chunks in found.chunks for chunk in chunks) / held.rows
    return [
        _Limit(held, plan, work, Facts(name=name, kind="limit", fidelity="none", bytes_per_row=size), files=found.files)
        for name, work in works.items()
    ]


class _Limit:
    """Work on the chunks of the same rows in the same order, the rows of a batch shared among threads."""

    def __init__(self, held: Held, plan: BenchPlan, work: _Work, facts: Facts, *, files: list[int]) -> None:
        self.facts = facts
        self._files = files
        self._held, self._batch, self._work, self._threads = held, plan.batch, work, plan.threads
        self._pool = ThreadPoolExecutor(plan.threads)

    def shuffled(self, epoch: int, /) -> Iterator[Batch]:
        """In the training loader's order."""
        return self._run(shuffled_batches(self._held, batch=self._batch, epoch=epoch))

    def in_order(self) -> Iterator[Batch]:
        """In stored order."""
        return self._run(ordered_batches(self._held, batch=self._batch))

    def one(self, row: int, /) -> Batch | None:
        """One row."""
        self._work([row], 0)
        return Batch([row], {})

    def drop_cache(self) -> None:
        """Forget the store's pages."""
        drop_pages(self._held.root)

    def close(self) -> None:
        """End the threads and close the files, which all limits share."""
        self._pool.shutdown()
        while self._files:
            os.close(self._files.pop())

    def _run(self, batches: Iterator[NDArray[np.int64]]) -> Iterator[Batch]:
        for rows_B in batches:
            rows = rows_B.tolist()
            if self._threads == 1:
                self._work(rows, 0)
            else:
                shares = [rows[thread :: self._threads] for thread in range(self._threads)]
                list(self._pool.map(self._work, shares, range(self._threads)))
            yield Batch(rows, {})


def _raw(found: _Rows, threads: int) -> _Work:
    """The very same byte ranges, read into a buffer that is used again."""
    largest = max(chunk.size for chunks in found.chunks for chunk in chunks)
    buffers = [memoryview(bytearray(largest)) for _ in range(threads)]

    def work(rows: Sequence[int], thread: int) -> None:
        for row in rows:
            for file, offset, size in found.chunks[row]:
                os.preadv(found.files[file], [buffers[thread][:size]], offset)

    return work


def _copy(packed: _Packed, outs: list[NDArray[np.uint8]]) -> _Work:
    """Unpacked rows copied from memory to where a batch would have them."""
    context = zstandard.ZstdDecompressor()
    rows_unpacked = [b"".join(context.decompress(data) for data in chunks) for chunks in packed]
    sources = [np.frombuffer(data, np.uint8) for data in rows_unpacked]

    def work(rows: Sequence[int], thread: int) -> None:
        for place, row in enumerate(rows):
            outs[thread][place] = sources[row % len(sources)]

    return work


def _unpack(packed: _Packed, threads: int) -> _Work:
    """Chunks in memory, without their checksums, unpacked and dropped; by contexts that are used again."""
    contexts = [zstandard.ZstdDecompressor() for _ in range(threads)]

    def work(rows: Sequence[int], thread: int) -> None:
        unpack = contexts[thread].decompress
        for row in rows:
            for data in packed[row % len(packed)]:
                unpack(data)

    return work


def _packed(found: _Rows, row: int) -> list[bytes]:
    chunks = found.chunks[row]
    return [os.pread(found.files[chunk.file], chunk.size - _CRC_BYTES, chunk.offset) for chunk in chunks]


def _locate(held: Held) -> _Rows:
    found = _Rows([], [[] for _ in range(held.rows)])
    for column in held.open():
        folder = held.root / "columns" / VIEW_SET / column.name
        for array in column.arrays:
            _require_zstd(folder / array.name / "zarr.json")
            for shard in range(held.view_set.parts):
                path = folder.joinpath(array.name, "c", str(shard), *["0"] * len(array.spec.shape))
                rows = held.view_set.part_rows(shard)
                _add_shard(found, path, rows, held.view_set.rows_per_shard)
    return found


def _add_shard(found: _Rows, path: Path, rows: range, capacity: int) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    found.files.append(descriptor)
    length = capacity * 16
    index = os.pread(descriptor, length, os.fstat(descriptor).st_size - length - _CRC_BYTES)
    entries = np.frombuffer(index, dtype="<u8").reshape(capacity, 2)[: len(rows)].tolist()
    for row, (offset, size) in zip(rows, entries, strict=True):
        found.chunks[row].append(_Chunk(len(found.files) - 1, offset, size))


def _require_zstd(path: Path) -> None:
    sharding = json.loads(path.read_bytes())["codecs"][0]
    names = [codec["name"] for codec in sharding["configuration"]["codecs"]]
    if names != ["bytes", "zstd", "crc32c"]:
        raise BenchError(
            f"{path}: expected rows packed by bytes, zstd and crc32c, got {names}; the limits know no other"
        )
