"""Commit records: a part exists when its record does, and the record says what every byte of it is."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from store.document import MAX_DOCUMENT_BYTES, parse_document, render_document
from store.errors import CorruptShardError, FormatError, MissingRowsError
from store.fingerprint import digest_bytes, plain_json
from store.root import Root
from store.shard import ObjectDigest
from store.spec import ViewSetSpec

__all__ = ["CommitLog", "PartCommit", "Summary", "digest_objects", "part_name"]

_RECORD = re.compile(r"part-(\d{5,12})\.json")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def part_name(part: int, /) -> str:
    """``part-00000``."""
    return f"part-{part:05d}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PartCommit:
    """The commit record of one part; a pure function of the part's content, so that a rerun writes the same bytes.

    ``objects`` maps paths relative to ``owner`` to digests; ``excluded`` lists rows whose image could not be used;
    ``view_commit`` is, for a column, the digest of the view set's own record of the same part.
    """

    owner: str
    part: int
    start: int
    stop: int
    keys_sha256: str
    objects: Mapping[str, ObjectDigest]
    excluded: tuple[int, ...] = ()
    view_commit: str | None = None
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
        return {
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
            body["objects"] = {path: _object(item) for path, item in body["objects"].items()}
            body["excluded"] = tuple(int(row) for row in body["excluded"])
            commit = cls(**body)
            numbers = (commit.part, commit.start, commit.stop, *commit.excluded)
            valid = all(type(number) is int and number >= 0 for number in numbers)
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise FormatError(f"{where}: not a commit record of this version ({error})") from error
        if not valid or not isinstance(commit.stats, Mapping):
            raise FormatError(f"{where}: not a commit record of this version")
        return commit


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """How far a view set or column is, and what it takes.

    Units:
        ``bytes`` as stored; ``fp16_bytes`` what the committed rows would take as plain float16, 0 for a view set;
        ``seconds`` that writers reported.
    """

    rows: int
    committed_rows: int
    excluded_rows: int
    parts: int
    committed_parts: int
    bytes: int
    fp16_bytes: int
    seconds: float
    stats: Mapping[str, Any]


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

    def path(self, part: int, /) -> str:
        """Path of a part's record."""
        return f"{self._folder}/commits/{part_name(part)}.json"

    def parts(self) -> tuple[int, ...]:
        """Committed parts, ascending."""
        matches = (_RECORD.fullmatch(name) for name in self._root.names(f"{self._folder}/commits"))
        found = sorted(int(match[1]) for match in matches if match)
        return tuple(part for part in found if part < self._spec.parts)

    def find(self, part: int, /) -> PartCommit | None:
        """A part's record, or None when it is not committed.

        Raises:
            CorruptShardError: The record's bytes have changed, or it belongs to another part.
            FormatError: It is of another version.
        """
        known = self._known.get(part)
        if known is None and self._root.stamp(self.path(part)) is not None:
            known = self._known[part] = self.load(part)
        return known

    def load(self, part: int, /) -> PartCommit:
        """Read and check a part's record, whatever was read before.

        Raises:
            CorruptShardError: As in ``find``, or the record is missing.
            FormatError: As in ``find``.
        """
        relative = self.path(part)
        where = str(self._root.local(relative))
        commit = PartCommit.parse(self._root.read_bytes(relative, max_bytes=MAX_DOCUMENT_BYTES), where=where)
        if (commit.owner, commit.part, commit.rows) != (self._folder, part, self._spec.part_rows(part)):
            raise CorruptShardError(
                f"{where}: expected the record of {self._folder} part {part}, got that of {commit.owner} part "
                f"{commit.part}; a file was moved, run sak store verify"
            )
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

    def publish(self, commit: PartCommit, /, *, objects: Iterable[tuple[str, bytes]], seconds: float) -> PartCommit:
        """Write a part's objects, then its cost, then its record; the first of several writers wins.

        Args:
            commit: The record without its objects.
            objects: Paths and contents, taken and written one at a time: an iterator need not hold them all at once.

        Returns:
            The record that stands.

        Raises:
            StoreError: The disk is full or fails; nothing is committed.
        """
        with self._root.lock(f"{self._folder}/commits"):
            standing = self.find(commit.part)
            if standing is not None:
                return standing
            digests: dict[str, ObjectDigest] = {}
            for relative, data in objects:
                self._root.write_atomic(f"{self._folder}/{relative}", data)
                digests |= digest_objects({relative: data})
            commit = replace(commit, objects=digests)
            # The cost differs from run to run, so it stays out of the record.
            cost = render_document("cost", {"seconds": round(float(seconds), 3), "host": socket.gethostname()})
            self._root.write_atomic(self.cost_path(commit.part), cost)
            self._root.write_atomic(self.path(commit.part), commit.render())
        self._known[commit.part] = commit
        return commit

    def cost_path(self, part: int, /) -> str:
        """Path of what a part cost to make."""
        return f"{self._folder}/costs/{part_name(part)}.json"

    def discard(self, part: int, /) -> None:
        """Remove a part's record: the part no longer exists, and a rerun makes it again."""
        self._known.pop(part, None)
        self._root.remove(self.path(part))

    def summary(self, *, fp16_bytes_per_row: int) -> Summary:
        """Add up all records.

        Raises:
            CorruptShardError: A record is damaged.
        """
        commits = self.require(self.parts())
        rows = sum(len(commit.rows) for commit in commits)
        excluded = sum(len(commit.excluded) for commit in commits)
        return Summary(
            rows=self._spec.rows,
            committed_rows=rows,
            excluded_rows=excluded,
            parts=self._spec.parts,
            committed_parts=len(commits),
            bytes=sum(commit.size for commit in commits),
            fp16_bytes=rows * fp16_bytes_per_row,
            seconds=sum(self._seconds(commit.part) for commit in commits),
            stats=_average([(commit.stats, len(commit.rows)) for commit in commits]),
        )

    def _seconds(self, part: int) -> float:
        relative = self.cost_path(part)
        if self._root.stamp(relative) is None:
            return 0.0
        data = self._root.read_bytes(relative, max_bytes=MAX_DOCUMENT_BYTES)
        return float(parse_document(data, kind="cost", where=relative).get("seconds", 0.0))


def digest_objects(objects: Mapping[str, bytes], /) -> dict[str, ObjectDigest]:
    """Digests of files."""
    return {path: ObjectDigest(sha256=digest_bytes(data), size=len(data)) for path, data in objects.items()}


def _object(item: Mapping[str, Any]) -> ObjectDigest:
    digest = ObjectDigest(**item)
    if not _SHA256.fullmatch(digest.sha256) or type(digest.size) is not int or digest.size < 0:
        raise ValueError(f"bad object digest {item!r}")
    return digest


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
