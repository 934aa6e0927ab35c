"""What all commit records of a view set or column say in brief, for whoever needs every one of them before it begins.

Ten million rows in shards of 256 have 39 thousand records, and to read and prove them takes seconds for each owner. A
ledger is kept in this machine's cache folder: it knows each record by its stamp, so that only those that are new or
have changed are read again. Where it is missing or damaged, all are. Nothing in a store depends on it.

Legend: P parts, E rows, N what is asked for.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from store import disk
from store.local_file import LocalFile
from store.object_cache import cache_folder
from store.record import PartCommit
from store.root import Stamp, temporary_name

__all__ = ["Ledger", "LedgerFile", "ReadRecord", "empty_ledger", "read_ledger", "worth_keeping"]

_DIGEST, _MARK = 32, 16
_THREADS = 16
_KEPT_PARTS = 1024
"""Fewer records are as soon read themselves, and leave nothing in the cache folder."""
_VERSION = 1  # raise it whenever equal records would give another ledger

ReadRecord = Callable[[int], tuple[PartCommit, str]]
"""Gives the record of a part, read and proven, and the SHA-256 of its file."""


class Ledger(NamedTuple):
    """What records say.

    Shapes:
        parts: int64 ``(P,)``, ascending.
        marks: uint8 ``(P, 16)``, of the stamp of each record.
        digests: uint8 ``(P, 32)``, SHA-256 of each record.
        keys: uint8 ``(P, 32)``, ``keys_sha256``.
        view_commits: uint8 ``(P, 32)``; zeros where there is none.
        sizes: int64 ``(P,)``, bytes of each part's objects.
        excluded: int64 ``(E,)``, rows without an image, ascending.
        excluded_parts: int64 ``(E,)``, the part of each.
    """

    parts: NDArray[np.int64]
    marks: NDArray[np.uint8]
    digests: NDArray[np.uint8]
    keys: NDArray[np.uint8]
    view_commits: NDArray[np.uint8]
    sizes: NDArray[np.int64]
    excluded: NDArray[np.int64]
    excluded_parts: NDArray[np.int64]

    def hex_digests(self) -> dict[int, str]:
        """SHA-256 of each part's record."""
        whole, width = self.digests.tobytes().hex(), 2 * _DIGEST
        return {part: whole[width * at : width * (at + 1)] for at, part in enumerate(self.parts.tolist())}

    def find(self, parts_N: NDArray[np.int64], /) -> NDArray[np.int64]:
        """Where each of these parts stands, -1 for none; int64 ``(N,)``."""
        if not len(self.parts):
            return np.full(len(parts_N), -1)
        at_N = np.minimum(np.searchsorted(self.parts, parts_N), len(self.parts) - 1)
        return np.where(self.parts[at_N] == parts_N, at_N, -1)


def empty_ledger() -> Ledger:
    """That of nothing."""
    none, wide = np.empty(0, np.int64), np.empty((0, _DIGEST), np.uint8)
    return Ledger(none, np.empty((0, _MARK), np.uint8), wide, wide, wide, none, none, none)


def read_ledger(held: Ledger, stamps: Mapping[int, Stamp], /, *, read: ReadRecord) -> Ledger:
    """The ledger of the records that have these stamps; those that the old one does not know as they are get read.

    Args:
        stamps: Of each part's record, as it was before this was called.

    Raises:
        StoreError: As ``read``.
    """
    parts_P = np.array(sorted(stamps), np.int64)
    marks_P = _rows_of([_mark(stamps[part]) for part in parts_P.tolist()], _MARK)
    at_P = held.find(parts_P)
    same_P = (at_P >= 0) & (held.marks[at_P] == marks_P).all(axis=1) if len(held.parts) else at_P >= 0
    if same_P.all() and len(parts_P) == len(held.parts):
        return held
    fresh, kept_K = _brief(parts_P[~same_P].tolist(), read=read), at_P[same_P]
    order_P = np.argsort(np.concatenate([parts_P[same_P], fresh.parts]), kind="stable")
    columns = [
        np.concatenate([getattr(held, name)[kept_K], getattr(fresh, name)])[order_P]
        for name in ("digests", "keys", "view_commits", "sizes")
    ]
    stays_E = np.isin(held.excluded_parts, parts_P[same_P])
    excluded = np.concatenate([held.excluded[stays_E], fresh.excluded])
    of = np.concatenate([held.excluded_parts[stays_E], fresh.excluded_parts])
    order_E = np.argsort(excluded)
    return Ledger(parts_P, marks_P, columns[0], columns[1], columns[2], columns[3], excluded[order_E], of[order_E])


def _brief(parts: Sequence[int], /, *, read: ReadRecord) -> Ledger:
    """What the records of these parts say, without marks."""
    if len(parts) < _THREADS:
        briefs = [_Brief.of(*read(part)) for part in parts]
    else:
        # Waiting for a disk or network is what threads save; proving records holds the interpreter.
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="sak-records") as readers:
            briefs = list(readers.map(lambda part: _Brief.of(*read(part)), parts))
    excluded = [(row, part) for part, item in zip(parts, briefs, strict=True) for row in item.excluded]
    rows = np.array(excluded, np.int64).reshape(-1, 2)
    return Ledger(
        parts=np.array(parts, np.int64),
        marks=np.zeros((len(parts), _MARK), np.uint8),
        digests=_rows_of([item.digest for item in briefs], _DIGEST),
        keys=_rows_of([item.keys for item in briefs], _DIGEST),
        view_commits=_rows_of([item.view_commit for item in briefs], _DIGEST),
        sizes=np.array([item.size for item in briefs], np.int64),
        excluded=rows[:, 0],
        excluded_parts=rows[:, 1],
    )


class _Brief(NamedTuple):
    digest: bytes
    keys: bytes
    view_commit: bytes
    size: int
    excluded: tuple[int, ...]

    @classmethod
    def of(cls, commit: PartCommit, digest: str) -> _Brief:
        view_commit = bytes.fromhex(commit.view_commit or "00" * _DIGEST)
        keys = bytes.fromhex(commit.keys_sha256)
        return cls(bytes.fromhex(digest), keys, view_commit, commit.size, commit.excluded)


class LedgerFile:
    """Where a ledger is kept between processes: a NumPy archive that ends in its own SHA-256.

    Args:
        where: What messages call the folder of the records; it names the file.
    """

    def __init__(self, where: str, /) -> None:
        name = hashlib.sha256(f"{_VERSION}\0{where}".encode()).hexdigest()
        try:
            self._path: Path | None = cache_folder() / "records" / name
        except RuntimeError:  # this user has no home, as in some containers: then nothing is kept
            self._path = None

    def load(self) -> Ledger:
        """What is kept; an empty one where that is nothing, or not as it was written."""
        if self._path is None:
            return empty_ledger()
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
            with contextlib.closing(LocalFile.open(self._path)) as file:
                data = memoryview(file.read(0, file.size))
            if hashlib.sha256(data[:-_DIGEST]).digest() == bytes(data[-_DIGEST:]):
                with np.load(io.BytesIO(data[:-_DIGEST]), allow_pickle=False) as arrays:
                    return Ledger(*(arrays[name] for name in Ledger._fields))
        return empty_ledger()

    def save(self, ledger: Ledger, /) -> None:
        """Keep it, whole or not at all; where that fails, the next process reads the records again."""
        if self._path is None:
            return
        body = io.BytesIO()
        np.savez(body, allow_pickle=False, **ledger._asdict())
        temporary = self._path.with_name(temporary_name())
        with contextlib.suppress(OSError):
            disk.mkdirs(self._path.parent)
            try:
                _write(temporary, [body.getbuffer(), hashlib.sha256(body.getbuffer()).digest()])
                disk.replace(temporary, self._path)
            except OSError:
                disk.unlink(temporary)


def worth_keeping(held: Ledger, found: Ledger, /) -> bool:
    """Whether so many records were read that the next process had better not read them again."""
    if held is found or len(found.parts) < _KEPT_PARTS:
        return False
    at_P = held.find(found.parts)
    known = int((held.marks[at_P[at_P >= 0]] == found.marks[at_P >= 0]).all(axis=1).sum())
    return len(found.parts) - known >= max(_THREADS, len(found.parts) // 64)


def _write(path: Path, pieces: Sequence[bytes | memoryview]) -> None:
    descriptor = disk.open_new(path)
    try:
        for piece in pieces:
            left = memoryview(piece)
            while left:
                left = left[disk.write(descriptor, left) :]
    finally:
        disk.close(descriptor)


def _mark(stamp: Stamp) -> bytes:
    return hashlib.blake2b(repr(tuple(stamp)).encode(), digest_size=_MARK).digest()


def _rows_of(items: Sequence[bytes], width: int) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(items), np.uint8).reshape(-1, width)
