"""Commit records: a part exists when its record does, and the record says what every byte of it is."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from store.costs import Spent, parse_cost, render_cost
from store.crossings import counted
from store.digests import ObjectDigest, digest_objects, parse_digest
from store.document import MAX_DOCUMENT_BYTES, parse_document, render_document
from store.errors import ConflictError, CorruptShardError, FormatError, MissingColumnError, MissingRowsError, StoreError
from store.fingerprint import digest_bytes, plain_json
from store.root import Root, is_name
from store.spec import ViewSetSpec

__all__ = [
    "CommitLog",
    "ObjectDigest",
    "PartCommit",
    "PartLocation",
    "Summary",
    "digest_objects",
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
_OBJECT = re.compile(
    r"(?:index/part-(?P<index>[0-9]{5,12})\.parquet|(?:images|shards)/part-(?P<tar>[0-9]{5,12})\.tar"
    r"|level_[0-9]+(?:_[a-z0-9]+)?/c/(?P<shard>[0-9]{1,12})(?:/0)*)"
)
_SHA256 = re.compile(r"[0-9a-f]{64}")


def part_name(part: int, /) -> str:
    """``part-00000``."""
    return f"part-{part:05d}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PartCommit:
    """The commit record of one part; a pure function of the part's content, so that a rerun writes the same bytes.

    ``objects`` maps paths relative to ``owner`` to digests; ``excluded`` lists rows whose image could not be used;
    ``view_commit`` is, for a column, the digest of the view set's own record of the same part, and ``content`` maps
    its stored arrays to the SHA-256 of their rows as plain little-endian bytes, which every backend shares.
    """

    owner: str
    part: int
    start: int
    stop: int
    keys_sha256: str
    objects: Mapping[str, ObjectDigest]
    excluded: tuple[int, ...] = ()
    view_commit: str | None = None
    content: Mapping[str, str] = field(default_factory=dict)
    stats: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> range:
        """Rows of the part."""
        return range(self.start, self.stop)

    @property
    def size(self) -> int:
        """Bytes of all its objects."""
        return sum(item.size for item in self.objects.values())

    def render(self) -> bytes:
        """The file's bytes."""
        return render_document("commit", self._body())

    def digest(self) -> str:
        """SHA-256 of the record's file."""
        return digest_bytes(self.render())

    def _body(self) -> dict[str, Any]:
        # Left out where there is none, so that the records of view sets, whose digests columns hold, stay as they are.
        content = {"content": dict(self.content)} if self.content else {}
        return {
            **content,
            "owner": self.owner,
            "part": self.part,
            "start": self.start,
            "stop": self.stop,
            "keys_sha256": self.keys_sha256,
            "objects": {path: {"sha256": item.sha256, "size": item.size} for path, item in self.objects.items()},
            "excluded": list(self.excluded),
            "view_commit": self.view_commit,
            "stats": plain_json(dict(self.stats)),
        }

    @classmethod
    def parse(cls, data: bytes, *, where: str) -> PartCommit:
        """Inverse of ``render``.

        Raises:
            FormatError: It is no commit record of this version.
            CorruptShardError: Its bytes have changed.
        """
        body = parse_document(data, kind="commit", where=where)
        try:
            body["objects"] = {path: parse_digest(item) for path, item in body["objects"].items()}
            body["excluded"] = tuple(body["excluded"])
            commit = cls(**body)
            # Its digest names a record, so there is one spelling of each: one without content does not say so.
            fault = _fault(commit) or ("fields spelt as we do not" if commit.render() != data else "")
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise FormatError(f"{where}: not a commit record of this version ({error})") from error
        if fault:
            raise FormatError(f"{where}: not a commit record of this version ({fault})")
        return commit


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """How far a view set or column is, and what it takes.

    Units:
        ``bytes`` as stored; ``fp16_bytes`` what the committed rows would take as plain float16, 0 for a view set;
        ``spent`` as writers reported it, ``encode`` over the ``timed_rows`` for which it is known and ``decode`` over
        those of them of which ``decoded_rows`` tells.
    """

    views: int
    committed_views: int
    rows: int
    committed_rows: int
    excluded_rows: int
    parts: int
    committed_parts: int
    bytes: int
    fp16_bytes: int
    spent: Spent
    timed_rows: int
    decoded_rows: int
    stats: Mapping[str, Any]


class PartLocation(NamedTuple):
    """A part of a view set or column: its owner's folder in the store, and its number."""

    folder: str
    part: int


def locate_part(path: str, /) -> PartLocation | None:
    """The part that a file belongs to, from its path in the store; None for a file of no single part."""
    match = _PART_FILE.fullmatch(path)
    sound = match is not None and all(map(is_name, match["folder"].split("/")))
    return PartLocation(match["folder"], int(match["part"])) if match and sound else None


class CommitLog:
    """The commit records of one view set or column.

    Args:
        folder: The owner's folder, ``views/<name>`` or ``columns/<view set>/<name>``.
    """

    def __init__(self, root: Root, folder: str, *, spec: ViewSetSpec) -> None:
        self._root = root
        self._folder = folder
        self._spec = spec
        self._known: dict[int, PartCommit] = {}

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
        found = [self.number(name) for name in self._root.names(f"{self._folder}/commits")]
        return tuple(sorted(part for part in found if part is not None and part < self._spec.parts))

    def find(self, part: int, /) -> PartCommit | None:
        """A part's record, or None when it is not committed.

        Raises:
            CorruptShardError: The record's bytes have changed, or it belongs to another part.
            FormatError: It is of another version.
        """
        if part not in self._known and self._root.stamp(self.path(part)) is not None:
            self.load(part)
        return self._known.get(part)

    def load(self, part: int, /) -> PartCommit:
        """Read and check a part's record, whatever was read before.

        Raises:
            CorruptShardError: As in ``find``, or the record is missing.
            FormatError: As in ``find``.
        """
        relative = self.path(part)
        where = self._root.where(relative)
        commit = PartCommit.parse(self._root.read_bytes(relative, max_bytes=MAX_DOCUMENT_BYTES), where=where)
        if (commit.owner, commit.part, commit.rows) != (self._folder, part, self._spec.part_rows(part)):
            raise CorruptShardError(
                f"{where}: expected the record of {self._folder} part {part}, got that of {commit.owner} part "
                f"{commit.part}; a file was moved, run sak store verify"
            )
        self._known[part] = commit
        return commit

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
        with self._root.lock(f"{self._folder}/commits"):
            standing = self.find(commit.part)
            if standing is not None:
                return standing
            record = "column" if self._folder.startswith("columns/") else "view_set"
            if self._root.stamp(f"{self._folder}/{record}.json") is None:  # gone while we waited for the lock
                raise MissingColumnError(f"{self._folder}: was removed while it was being written; run this again")
            try:
                self._known[commit.part] = self._write(commit, objects, spent)
            except ConflictError:
                # Where nothing is locked another writer may have been faster: then its part is the one.
                if self.find(commit.part) is None:
                    raise
        return self._known[commit.part]

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
        commits = self.require(self.parts())
        spent = [self.spent(commit.part) for commit in commits]
        rows = sum(len(commit.rows) for commit in commits)
        timed = [(len(commit.rows), item) for commit, item in zip(commits, spent, strict=True) if item.encode]
        return Summary(
            views=self._spec.views,
            committed_views=self._spec.whole_views(commit.part for commit in commits),
            rows=self._spec.rows,
            committed_rows=rows,
            excluded_rows=sum(len(commit.excluded) for commit in commits),
            parts=self._spec.parts,
            committed_parts=len(commits),
            bytes=sum(commit.size for commit in commits),
            fp16_bytes=rows * fp16_bytes_per_row,
            spent=Spent(*map(sum, zip(*spent, strict=True))),
            timed_rows=sum(rows for rows, _ in timed),
            decoded_rows=sum(item.decoded_rows or rows for rows, item in timed if item.decode),
            stats=_average([(commit.stats, len(commit.rows)) for commit in commits]),
        )

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


def _fault(commit: PartCommit) -> str:
    """What is wrong with a record's fields, or nothing."""
    if not all(type(number) is int and number >= 0 for number in (commit.part, commit.start, commit.stop)):
        return "part, start and stop: expected integers"
    digests = [commit.keys_sha256, *commit.content.values(), *([commit.view_commit] if commit.view_commit else [])]
    if not all(_SHA256.fullmatch(digest) for digest in digests):
        return "expected digests of 64 hex digits"
    # A reader cuts these rows out, and an import copies these files: neither must reach beyond the part.
    previous = commit.start - 1
    for row in commit.excluded:
        if type(row) is not int or not previous < row < commit.stop:
            return f"excluded: expected ascending rows of the part, got {row!r}"
        previous = row
    for path in commit.objects:
        match = _OBJECT.fullmatch(path)
        if match is None or int(match["index"] or match["tar"] or match["shard"]) != commit.part:
            return f"objects: {path!r} is no file of part {commit.part}"
    return "" if isinstance(commit.stats, Mapping) else "stats: expected an object"


def _average(weighted: Sequence[tuple[Mapping[str, Any], int]]) -> dict[str, Any]:
    """Row-weighted mean of every number in nested stats; other values are left out."""
    names = sorted({name for stats, _ in weighted for name in stats})
    result: dict[str, Any] = {}
    for name in names:
        values = [(stats[name], weight) for stats, weight in weighted if name in stats]
        if all(isinstance(value, Mapping) for value, _ in values):
            result[name] = _average(values)
        elif all(isinstance(value, int | float) for value, _ in values):
            result[name] = sum(value * weight for value, weight in values) / sum(weight for _, weight in values)
    return result
