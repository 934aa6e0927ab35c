"""Indices of large files: where each image lies in one, found once and kept in the cache folder.

An index is one Arrow IPC file, sorted by key and mapped into memory, so that the processes of a machine share it and
none lists a million headers again. It is the index of just the file that it was made of (address, size, and time of
change or ETag), it ends in its own SHA-256, and one that is not as it should be is made anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeAlias, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import DataError
from pipeline.images.ranges import RangeFile, is_remote
from pipeline.tracking import CONSOLE, progress_bar
from store.object_cache import cache_folder

__all__ = ["Build", "Keys", "indices", "joined"]

Build: TypeAlias = Callable[[RangeFile, Callable[[int], None]], pa.Table]

# Raise it whenever the same file would give another index.
_VERSION = 1
_DIGEST_BYTES = 32
_CHUNK = 1 << 16
_THREADS = 8
_MEGABYTE = 1_000_000


class Keys(Sequence[str]):
    """Sorted keys that stay in Arrow's memory.

    Args:
        array: All keys.
        skip: Characters at the beginning of each that are left out: a folder that they share.
    """

    def __init__(self, array: pa.Array, /, *, skip: int = 0) -> None:
        self._array, self.skip = array, skip

    def __len__(self) -> int:
        return len(self._array)

    @overload
    def __getitem__(self, index: int, /) -> str: ...
    @overload
    def __getitem__(self, index: slice, /) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice, /) -> str | tuple[str, ...]:
        if isinstance(index, slice):
            return tuple(key[self.skip :] for key in self._array[index].to_pylist())
        key: str = self._array[index].as_py()
        return key[self.skip :]

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _CHUNK):
            yield from self[first : first + _CHUNK]


def indices(files: Sequence[RangeFile], /, *, kind: str, schema: pa.Schema, build: Build) -> list[pa.RecordBatch]:
    """Indices of files, from the cache; those that are not there are made, under a progress bar, and kept.

    Args:
        kind: How they are made; another kind is another index.
        build: Makes one; it is told whom to tell how many bytes of the file it is through.

    Raises:
        DataError: As ``build``.
        UnreachableError: The network fails.
    """
    slots = [_Slot.of(file, kind=kind, schema=schema) for file in files]
    found = [slot.load() for slot in slots]
    missing = [number for number, batch in enumerate(found) if batch is None]
    if not missing:
        return [batch for batch in found if batch is not None]
    stop, lock = threading.Event(), threading.Lock()
    with progress_bar("MB") as bar:
        name = files[missing[0]].where if len(missing) == 1 else f"{len(missing)} files"
        shown = bar.add_task(f"index {name}", total=round(sum(files[n].size for n in missing) / _MEGABYTE))

        def advance(count: int) -> None:
            if stop.is_set():
                raise DataError(f"index {name}: stopped")
            with lock:
                bar.advance(shown, count / _MEGABYTE)

        def make(number: int) -> pa.RecordBatch:
            return slots[number].keep(_sorted(build(files[number], _Steps(advance).reach)))

        # Requests overlap; the threads of one disk would only get into each other's way.
        remote = any(is_remote(files[number].where) for number in missing)
        with ThreadPoolExecutor(min(_THREADS, len(missing)) if remote else 1) as pool:
            try:
                made = dict(zip(missing, pool.map(make, missing), strict=True))
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise
    return [made[number] if batch is None else batch for number, batch in enumerate(found)]


class _Steps:
    """From positions reached to bytes done since, told a megabyte at a time."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance, self._told = advance, 0

    def reach(self, position: int) -> None:
        if position - self._told >= _MEGABYTE:
            self._advance(position - self._told)
            self._told = position


class _Slot(NamedTuple):
    """Where the index of one file is kept, and what it must say of itself."""

    file: RangeFile
    path: Path
    schema: pa.Schema

    @classmethod
    def of(cls, file: RangeFile, *, kind: str, schema: pa.Schema) -> _Slot:
        about = {"kind": f"{kind} {_VERSION}", "of": file.address, "identity": file.identity}
        name = hashlib.sha256(f"{kind}\0{file.address}".encode()).hexdigest()
        return cls(file, cache_folder() / "indices" / f"{name}.arrow", schema.with_metadata(about))

    def load(self) -> pa.RecordBatch | None:
        """A kept index; None where there is none, or it is not what it should be."""
        if not self.file.identity:  # whether it is still of this file cannot be told
            return None
        try:
            with self.path.open("rb") as file:
                mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            body, digest = mapped[:-_DIGEST_BYTES], bytes(mapped[-_DIGEST_BYTES:])
            if hashlib.sha256(body).digest() != digest:
                return None
            with pa.ipc.open_file(pa.py_buffer(body)) as reader:
                same = reader.schema.equals(self.schema, check_metadata=True)
                return reader.get_batch(0) if same else None
        except (OSError, ValueError, pa.ArrowException):  # mmap gives ValueError for an empty file
            return None

    def keep(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Write it for later, and give what is then mapped from there."""
        batch = batch.replace_schema_metadata(self.schema.metadata)
        try:
            _save(self.path, batch)
        except OSError as error:
            CONSOLE.print(f"{self.file.where}: its index cannot be kept ({self.path}: {error.strerror}); set SAK_CACHE")
            return batch
        return self.load() or batch


def joined(batches: Sequence[pa.RecordBatch], /, *, names: Sequence[str]) -> pa.RecordBatch:
    """Indices of several files as one, sorted by key, with the number of the file as column ``file``.

    Args:
        names: What messages call the files.

    Raises:
        DataError: Two entries have one key.
    """
    numbered = [
        batch.append_column("file", pa.array(np.full(len(batch), number, np.int32)))
        for number, batch in enumerate(batches)
    ]
    first = numbered[0]["key"]
    # One index is sorted by its own key, and stays where it is mapped.
    whole = len(numbered) == 1 and pc.all(pc.less_equal(first[:-1], first[1:])).as_py() is not False
    batch = numbered[0] if whole else _sorted(pa.Table.from_batches(numbered))
    keys = batch["key"]
    same = pc.index(pc.equal(keys[1:], keys[:-1]), True).as_py() if len(keys) > 1 else -1
    if same >= 0:
        which = sorted({names[i] for i in batch["file"][same : same + 2].to_pylist()})
        raise DataError(f"{' and '.join(which)}: two images with one key {keys[same].as_py()!r}; rename one of them")
    return batch


def _sorted(table: pa.Table, /) -> pa.RecordBatch:
    """A table's rows by key, in one batch."""
    ordered = table.take(pc.sort_indices(table, sort_keys=[("key", "ascending")])).combine_chunks()
    batches = ordered.to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)


def _save(path: Path, batch: pa.RecordBatch) -> None:
    """Write an index as a whole or not at all."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    body = sink.getvalue()
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(body)
            file.write(hashlib.sha256(body).digest())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
