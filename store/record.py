"""The commit record of one part: what its file says, and what it must say to be believed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from store.digests import ObjectDigest, parse_digest
from store.document import parse_document, render_document
from store.errors import FormatError
from store.fingerprint import digest_bytes, plain_json

__all__ = ["PartCommit", "part_name"]

_OBJECT = re.compile(
    r"(?:index/part-(?P<index>[0-9]{5,12})\.parquet|(?:images|shards)/part-(?P<tar>[0-9]{5,12})\.tar"
    r"|level_[0-9]+(?:_[a-z0-9]+)?/c/(?P<shard>[0-9]{1,12})(?:/0)*)"
)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FIELDS = frozenset(
    ("owner", "part", "start", "stop", "keys_sha256", "objects", "excluded", "view_commit", "content", "stats")
)


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
            # Its digest names a record, so there is one spelling of each: one without content does not say so.
            spelt = {*body} == (_FIELDS if body.get("content") else _FIELDS - {"content"})
            spelt &= isinstance(body["excluded"], list)
            body["objects"] = {path: parse_digest(item) for path, item in body["objects"].items()}
            body["excluded"] = tuple(body["excluded"])
            commit = cls(**body)
            fault = _fault(commit) or ("" if spelt else "fields spelt as we do not")
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise FormatError(f"{where}: not a commit record of this version ({error})") from error
        if fault:
            raise FormatError(f"{where}: not a commit record of this version ({fault})")
        return commit


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
