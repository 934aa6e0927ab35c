"""Commit records: a part exists when its record does, and the record says what every byte of it is."""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

from store.costs import Spent, parse_cost, render_cost
from store.crossings import counted
from store.digests import ObjectDigest, digest_objects, parse_digest
from store.document import MAX_DOCUMENT_BYTES
from store.errors import ConflictError, CorruptShardError, MissingColumnError, MissingRowsError, StoreError
from store.fingerprint import digest_bytes
from store.ledger import Ledger, LedgerFile, empty_ledger, read_ledger, worth_keeping
from store.record import PartCommit, part_name
from store.root import Root, is_name
from store.spec import ViewSetSpec
from store.summary import Summary, add_up

__all__ = [
    "CommitLog",
    "ObjectDigest",
    "PartCommit",
    "PartLocation",
    "digest_objects",
    "is_at_work",
    "locate_part",
    "parse_digest",
    "part_name",
]

_RECORD = re.compile(r"part-([0-9]{5,12})\.json")
_PART_FILE = re.compile(
    r"(?P<folder>views/[^/]+|columns/[^/]+/[^/]+)/"
    r"(?:(?:index|images|costs|commits|shards)/part-|level_\d+(?:_\w+)?/c/)(?P<part>\d{1,12})(?:[./].*)?",
    re.ASCII,
)
_KNOWN = 1024  # records held whole, some kilobytes each


class PartLocation(NamedTuple):
    """A part of a view set or column: its owner's folder in the store, and its number."""

    folder: str
    part: int


def locate_part(path: str, /) -> PartLocation | None:
    """The part that a file belongs to, from its path in the store; None for a file of no single part."""
    match = _PART_FILE.fullmatch(path)
    sound = match is not None and all(map(is_name, match["folder"].split("/")))
    return PartLocation(match["folder"], int(match["part"])) if match and sound else None


def is_at_work(root: Root, where: PartLocation, /) -> bool | None:
    """Whether somebody writes a part at this moment, or removes parts of its owner; None where nothing is locked."""
    writer = root.is_locked(_lock_of(where.folder, where.part))
    remover = root.is_locked(_commits_of(where.folder), alone=True)
    if writer or remover:
        return True
    return None if writer is None or remover is None else False


class CommitLog:
    """The commit records of one view set or column.

    Args:
        folder: The owner's folder, ``views/<name>`` or ``columns/<view set>/<name>``.
    """

    def __init__(self, root: Root, folder: str, *, spec: ViewSetSpec) -> None:
        self._root = root
        self._folder = folder
        self._spec = spec
        self._known: OrderedDict[int, PartCommit] = OrderedDict()
        self._ledger = empty_ledger()
        self._lock = threading.Lock()

    @staticmethod
    def number(name: str, /) -> int | None:
        """The part whose record a file of this name is."""
        match = _RECORD.fullmatch(name)
        # Only the one spelling that we write, or a part could have two records.
        return int(match[1]) if match and name == f"{part_name(int(match[1]))}.json" else None

    def path(self, part: int, /) -> str:
        """Path of a part's record."""
        return f"{self._folder}/commits/{part_name(part)}.json"

    def parts(self) -> tuple[int, ...]:
        """Committed parts, ascending."""
        found = [self.number(name) for name in self._root.names(_commits_of(self._folder))]
        return tuple(sorted(part for part in found if part is not None and part < self._spec.parts))

    def find(self, part: int, /) -> PartCommit | None:
        """A part's record, or None when it is not committed.

        Raises:
            CorruptShardError: The record's bytes have changed, or it belongs to another part.
            FormatError: It is of another version.
        """
        known = self._known.get(part)
        if known is None and self._root.stamp(self.path(part)) is not None:
            return self.load(part)
        return known

    def load(self, part: int, /) -> PartCommit:
        """Read and check a part's record, whatever was read before.

        Raises:
            CorruptShardError: As in ``find``, or the record is missing.
            FormatError: As in ``find``.
        """
        commit, _ = self._read(part)
        self._keep(commit)
        return commit

    def ledger(self) -> Ledger:
        """What the records of all parts say in brief. Those that this machine has proven before are not read again.

        Raises:
            CorruptShardError: As in ``find``.
            FormatError: As in ``find``.
        """
        folder = _commits_of(self._folder)
        stamps = self._root.stamps(folder)
        numbered = {number: stamp for name, stamp in stamps.items() if (number := self.number(name)) is not None}
        mine = {part: stamp for part, stamp in numbered.items() if part < self._spec.parts}
        kept = LedgerFile(self._root.where(folder))
        before = self._ledger if len(self._ledger.parts) else kept.load()
        self._ledger = read_ledger(before, mine, read=self._read)
        if worth_keeping(before, self._ledger):
            kept.save(self._ledger)
        return self._ledger

    def _keep(self, commit: PartCommit) -> None:
        with self._lock:
            self._known[commit.part] = commit
            while len(self._known) > _KNOWN:
                self._known.popitem(last=False)

    def _read(self, part: int) -> tuple[PartCommit, str]:
        relative = self.path(part)
        where = self._root.where(relative)
        data = self._root.read_bytes(relative, max_bytes=MAX_DOCUMENT_BYTES)
        commit = PartCommit.parse(data, where=where)
        if (commit.owner, commit.part, commit.rows) != (self._folder, part, self._spec.part_rows(part)):
            raise CorruptShardError(
                f"{where}: expected the record of {self._folder} part {part}, got that of {commit.owner} part "
                f"{commit.part}; a file was moved, run sak store verify"
            )
        return commit, digest_bytes(data)

    def require(self, parts: Sequence[int], /) -> list[PartCommit]:
        """Records of parts.

        Raises:
            MissingRowsError: Some are not committed; names their rows.
        """
        found = {part: self.find(part) for part in parts}
        missing = sorted(part for part, commit in found.items() if commit is None)
        if missing:
            ranges = [self._spec.part_rows(part) for part in missing]
            shown = ", ".join(f"{rows.start} to {rows.stop - 1}" for rows in ranges[:8])
            more = f" and {len(ranges) - 8} more parts" if len(ranges) > 8 else ""
            raise MissingRowsError(f"{self._folder}: rows {shown}{more} are not committed")
        return [commit for commit in found.values() if commit is not None]

    def publish(self, commit: PartCommit, /, *, objects: Iterable[tuple[str, bytes]], spent: Spent) -> PartCommit:
        """Write a part's objects, then its cost, then its record; the first of several writers wins.

        Args:
            commit: The record without its objects.
            objects: Paths and contents, taken and written one at a time: an iterator need not hold them all at once.

        Returns:
            The record that stands.

        Raises:
            ConflictError: On an object store, somebody else's objects of this part are there and not committed.
            MissingColumnError: The view set or column has been removed.
            StoreError: The disk is full or fails; nothing is committed.
        """
        with self.writing(commit.part):
            standing = self.find(commit.part)
            if standing is not None:
                return standing
            try:
                written = self._write(commit, objects, spent)
            except ConflictError:
                # Where nothing is locked another writer may have been faster: then its part is the one.
                standing = self.find(commit.part)
                if standing is None:
                    raise
                return standing
            self._keep(written)
        return written

    @contextmanager
    def writing(self, part: int, /) -> Iterator[None]:
        """Keep away other writers of a part, and whoever removes parts; writers of other parts go on.

        Raises:
            MissingColumnError: The view set or column has been removed.
            StoreError: The disk fails.
        """
        with self._root.lock(_commits_of(self._folder), shared=True):
            record = "column" if self._folder.startswith("columns/") else "view_set"
            if self._root.stamp(f"{self._folder}/{record}.json") is None:  # gone while we waited for the lock
                raise MissingColumnError(f"{self._folder}: was removed while it was being written; run this again")
            with self._root.lock_name(_lock_of(self._folder, part)):
                yield

    def _write(self, commit: PartCommit, objects: Iterable[tuple[str, bytes]], spent: Spent) -> PartCommit:
        digests: dict[str, ObjectDigest] = {}
        start = time.perf_counter()
        with counted() as crossed:
            for relative, data in objects:
                self._root.write_atomic(f"{self._folder}/{relative}", data)
                digests |= digest_objects({relative: data})
        if not spent.written_bytes:  # else this is a copy, and the cost of the original is kept
            seconds = time.perf_counter() - start
            spent = spent.plus(Spent(write=seconds, read_bytes=crossed.read, written_bytes=crossed.written))
        commit = replace(commit, objects=digests)
        # The cost differs from run to run, so it stays out of the record.
        self._root.write_atomic(self.cost_path(commit.part), render_cost(spent), replace=True)
        if not self._root.overwrites:
            self._check_present(commit)
        self._root.write_atomic(self.path(commit.part), commit.render())
        return commit

    def _check_present(self, commit: PartCommit) -> None:
        """Objects may have been discarded while others were being written: no lock holds a discard back there."""
        for relative, digest in commit.objects.items():
            path = f"{self._folder}/{relative}"
            stamp = self._root.stamp(path)
            if stamp is None or stamp.size != digest.size:
                raise StoreError(
                    f"{self._root.where(path)}: discarded while its part was being written; run the same command again"
                )

    def cost_path(self, part: int, /) -> str:
        """Path of what a part cost to make."""
        return f"{self._folder}/costs/{part_name(part)}.json"

    def discard(self, part: int, /) -> None:
        """Remove a part's record: the part no longer exists, and a rerun makes it again.

        Where objects are created once, what is left of the part goes too, or a rerun could not create its own.
        """
        with self._lock:
            self._known.pop(part, None)
        self._root.remove(self.path(part))
        for path in self.obstacles(part):
            self._root.remove(path)

    def obstacles(self, part: int, /) -> list[str]:
        """Files of a part that a rerun could not write over: all of them where objects are created once, else none."""
        files = [] if self._root.overwrites else self._root.files(self._folder)
        return [path for path in files if locate_part(path) == (self._folder, part)]

    def summary(self, *, fp16_bytes_per_row: int) -> Summary:
        """Add up all records.

        Raises:
            CorruptShardError: A record is damaged.
        """
        noted = ((self._read(part)[0], self.spent(part)) for part in self.parts())
        return add_up(noted, spec=self._spec, fp16_bytes_per_row=fp16_bytes_per_row)

    def spent(self, part: int, /) -> Spent:
        """What a part's writer said that it took; zeros where that is not known.

        Raises:
            CorruptShardError: The note of it is damaged.
        """
        relative = self.cost_path(part)
        if self._root.stamp(relative) is None:
            return Spent()
        data = self._root.read_bytes(relative, max_bytes=MAX_DOCUMENT_BYTES)
        return parse_cost(data, where=self._root.where(relative))


def _commits_of(folder: str) -> str:
    """Whose lock writers share, and removers hold alone."""
    return f"{folder}/commits"


def _lock_of(folder: str, part: int) -> str:
    """The name that the writer of a part holds."""
    return f"{folder}/locks/{part_name(part)}"
