"""Open shard files, verified once, and batches of rows read from them by position.

Every backend's rows are read by the same code: a backend says where rows lie and how one is unpacked.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from store.backends.base import Decoder, Extents
from store.codecs.base import PartSpec
from store.commits import ObjectDigest
from store.errors import CorruptShardError, UnreachableError
from store.root import Root, StoredFile
from store.workers import map_threads

__all__ = [
    "RUN_BYTES",
    "Opening",
    "Output",
    "Request",
    "Shard",
    "ShardCache",
    "corrupt",
    "read_rows",
    "require_numbers",
]

RUN_BYTES = 1 << 20
"""Stored bytes that one thread holds at a time, at most, unless a single row is larger."""

_TASK_BYTES = 128 << 10


class Shard:
    """One open file of a column; threads may share it.

    Args:
        rows: Rows of the whole column that it holds.
        extents: Array name to where its rows lie.
    """

    def __init__(self, file: StoredFile, *, where: str, rows: range, extents: Mapping[str, Extents]) -> None:
        self._file = file
        self.where = where
        self.rows = rows
        self.extents = extents

    def __del__(self) -> None:
        self._file.close()

    def read(self, start: int, stop: int, /) -> bytes:
        """Bytes from one position to another.

        Raises:
            CorruptShardError: They cannot be read, or the file ends before.
        """
        try:
            data = self._file.read(start, stop - start)
        except OSError as error:
            raise self.corrupt(f"cannot be read ({error.strerror})") from error
        if len(data) != stop - start:
            raise self.corrupt(f"expected {stop - start} bytes at byte {start}, got {len(data)}")
        return data

    def corrupt(self, problem: str, *, row: int | None = None) -> CorruptShardError:
        """The error for this file."""
        return corrupt(self.where, self.rows if row is None else range(row, row + 1), problem)


class Opening(NamedTuple):
    """What opening a shard takes: its path, what its commit record says of it, and how its index is read."""

    relative: str
    digest: ObjectDigest
    rows: range
    read_index: Callable[[StoredFile], Mapping[str, Extents]]


class ShardCache:
    """A bounded number of open shards, and which files have been verified since this process began.

    Args:
        verify: ``shard`` compares a shard's digest with the commit record when it is first touched and whenever the
            file has changed since; ``row`` relies on each row's own checksum; ``size`` is ``row`` by another name
            here, because rows are always checked.
    """

    def __init__(self, root: Root, *, verify: str, capacity: int = 256) -> None:
        self._root = root
        self._verify = verify
        self._capacity = capacity
        self._open: OrderedDict[str, Shard] = OrderedDict()
        # Hashes of path and stamp: a large column has a million files, and an epoch passes by all of them.
        self._verified: set[int] = set()
        self._lock = threading.Lock()
        self._turns: dict[str, threading.Lock] = {}

    def find(self, relative: str, /) -> Shard | None:
        """A shard that is open."""
        with self._lock:
            found = self._open.get(relative)
            if found is not None:
                self._open.move_to_end(relative)
            return found

    def open(self, opening: Opening, /) -> Shard:
        """An open, verified shard; of several threads that ask for a new one, one reads it and the others wait.

        Raises:
            CorruptShardError: It is missing or differs from its commit record.
        """
        with self._lock:
            turn = self._turns.setdefault(opening.relative, threading.Lock())
        with turn:
            found = self.find(opening.relative)
            if found is not None:
                return found
            shard = self._read(opening)
            with self._lock:
                self._open[opening.relative] = shard
                while len(self._open) > self._capacity:
                    self._turns.pop(self._open.popitem(last=False)[0], None)
        return shard

    def _read(self, opening: Opening) -> Shard:
        relative, digest, rows, read_index = opening
        where = self._root.where(relative)
        try:
            file = self._root.open(relative, sha256=digest.sha256)
            try:
                if file.size != digest.size:
                    raise corrupt(where, rows, f"expected {digest.size} bytes, got {file.size}")
                self._check(relative, file, digest, rows)
                return Shard(file, where=where, rows=rows, extents=read_index(file))
            except BaseException:
                file.close()
                raise
        except OSError as error:
            raise corrupt(where, rows, f"cannot be read ({error.strerror})") from error
        except (CorruptShardError, UnreachableError):
            raise
        except ValueError as error:
            raise corrupt(where, rows, str(error)) from error

    def _check(self, relative: str, file: StoredFile, digest: ObjectDigest, rows: range) -> None:
        version = hash((relative, file.stamp))
        if self._verify == "shard" and version not in self._verified:
            if file.digest() != digest.sha256:
                raise corrupt(self._root.where(relative), rows, "its SHA-256 differs from the commit record")
            self._verified.add(version)


def require_numbers(decode: Decoder, spec: PartSpec, /) -> Decoder:
    """A decoder that also refuses rows with NaN or infinity in them, which would poison a loss long after."""
    mask, kind = spec.exponent, np.dtype(f"u{np.dtype(spec.dtype).itemsize}").newbyteorder("<")
    if not mask:
        return decode

    def checked(data: bytes, out: NDArray[np.uint8]) -> None:
        decode(data, out)
        if int((out.view(kind) & kind.type(mask)).max()) == mask:
            raise ValueError("expected finite numbers, found NaN or infinity")

    return checked


class Output(NamedTuple):
    """One array's place for a batch of rows.

    Shapes:
        flat: uint8 ``(rows of the batch, bytes a row)``.
    """

    name: str
    decode: Decoder
    flat: NDArray[np.uint8]


class Request(NamedTuple):
    """Rows wanted from one shard, of some of the arrays in it.

    ``local`` counts rows from the shard's first, ascending, so that neighbours can be read at once; ``positions`` says
    where in the outputs each goes.
    """

    shard: Shard
    outputs: Sequence[Output]
    local: Sequence[int]
    positions: Sequence[int]


_Frame: TypeAlias = tuple[int, int, int, int, Output]
"""Start, stop, row, position and output of a row's bytes; a plain tuple, because there are many."""


class _Run(NamedTuple):
    """Neighbours in one file, read at once."""

    shard: Shard
    frames: list[_Frame]


def read_rows(requests: Sequence[Request], /, *, gap: int, threads: int) -> None:
    """Read, check and unpack rows of several shards into their places.

    Neighbours in a file are read at once, and nothing between rows but gaps of at most ``gap`` bytes is read. At most
    ``threads * RUN_BYTES`` stored bytes are in memory at a time, and a row for each thread.

    Raises:
        CorruptShardError: A row is absent, truncated or damaged; names it.
    """
    runs = [run for request in requests for run in _runs(request, gap)]
    map_threads(_read_task, _tasks(runs, threads), threads=threads)


def corrupt(where: str, rows: range, problem: str) -> CorruptShardError:
    """The error for a shard file or for some of its rows."""
    shown = f"row {rows.start}" if len(rows) == 1 else f"rows {rows.start} to {rows.stop - 1}"
    return CorruptShardError(f"{where}: {shown}: {problem}; run sak store verify")


def _runs(request: Request, gap: int) -> Iterator[_Run]:
    shard, outputs, _, _ = request
    first = shard.rows.start
    places = [(output, *shard.extents[output.name]) for output in outputs]
    frames: list[_Frame] = []
    begin = end = -1
    for local, position in zip(request.local, request.positions, strict=True):
        for output, offsets, sizes in places:
            start, size = offsets[local], sizes[local]
            if size == 0:
                raise shard.corrupt("the shard index does not locate it", row=first + local)
            if frames and not (end <= start <= end + gap and start - begin < RUN_BYTES):
                yield _Run(shard, frames)
                frames = []
            if not frames:
                begin = start
            end = start + size
            frames.append((start, end, first + local, position, output))
    if frames:
        yield _Run(shard, frames)


def _tasks(runs: list[_Run], threads: int) -> list[list[_Run]]:
    """Runs in groups that are worth handing to a thread."""
    sizes = [frames[-1][1] - frames[0][0] for _, frames in runs]
    share = max(_TASK_BYTES, sum(sizes) // (4 * threads))
    tasks: list[list[_Run]] = []
    filled = share
    for run, size in zip(runs, sizes, strict=True):
        if filled >= share:
            tasks.append([])
            filled = 0
        tasks[-1].append(run)
        filled += size
    return tasks


def _read_task(runs: list[_Run]) -> None:
    for shard, frames in runs:
        begin = frames[0][0]
        data = shard.read(begin, frames[-1][1])
        for start, stop, row, position, output in frames:
            try:
                # Slicing all of a bytes object gives the object itself.
                output.decode(data[start - begin : stop - begin], output.flat[position])
            except ValueError as error:
                raise shard.corrupt(str(error), row=row) from error
