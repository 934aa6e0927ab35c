"""Who reads what: one record for each experiment of the view sets, columns and commit digests that it was given.

``uses/<id>.json`` is written before the experiment reads its first row. It keeps ``sak store gc`` away from what the
experiment needs, and lets a resumed experiment prove that the store still holds the very same bytes.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from store.column import Column
from store.commits import CommitLog
from store.document import MAX_DOCUMENT_BYTES, parse_document, render_document
from store.errors import FormatError, StoreError
from store.fingerprint import digest_json, plain_json
from store.root import Root, check_name
from store.store import Store
from store.viewset import ViewSet

__all__ = ["USES", "Use", "all_uses", "check_commits", "commits_of", "load_use", "make_use", "save_use"]

USES = "uses"
"""Folder of the records; its lock is held by whoever records a use or removes what nobody uses."""
_OWNER = re.compile(r"views/[^/]+|columns/[^/]+/[^/]+")
_PART = re.compile(r"0|[1-9][0-9]{0,11}")  # of one spelling only
_SHA256 = re.compile(r"[0-9a-f]{64}")

# owner's folder in the store -> part -> digest of its commit record
Commits = Mapping[str, Mapping[int, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What one experiment reads.

    ``experiment`` names it, ``folder`` and ``host`` say where its results lie; ``commits`` maps the folder of each
    view set and column to the digest of each part's commit record.

    Raises:
        FormatError: A field is malformed.
    """

    experiment: str
    folder: str
    host: str
    commits: Commits

    def __post_init__(self) -> None:
        check_name(self.experiment, what="experiment")
        if not isinstance(self.folder, str) or not isinstance(self.host, str) or not isinstance(self.commits, Mapping):
            raise FormatError(f"use of {self.experiment}: expected text for folder and host, and a mapping of commits")
        for owner, parts in self.commits.items():
            sound = _OWNER.fullmatch(owner) and isinstance(parts, Mapping)
            if not sound or not all(type(part) is int and _SHA256.fullmatch(item) for part, item in parts.items()):
                raise FormatError(f"use of {self.experiment}: expected digests of parts of view sets, got {owner!r}")

    @property
    def id(self) -> str:
        """Name of its record: the same for the same folder on the same host, whatever it reads."""
        return f"{self.experiment[:80]}-{digest_json([self.host, self.folder, self.experiment])[:12]}"

    @property
    def path(self) -> str:
        """Its record in the store."""
        return f"{USES}/{self.id}.json"

    def render(self) -> bytes:
        """The record's bytes."""
        commits = {owner: {str(part): item for part, item in parts.items()} for owner, parts in self.commits.items()}
        body = {"experiment": self.experiment, "folder": self.folder, "host": self.host, "commits": commits}
        return render_document("use", plain_json(body))

    @classmethod
    def parse(cls, data: bytes, *, where: str) -> Use:
        """Inverse of ``render``.

        Raises:
            FormatError: It is no such record of this version.
            CorruptShardError: Its bytes have changed.
        """
        body: dict[str, Any] = parse_document(data, kind="use", where=where)
        try:
            body["commits"] = {
                owner: {_part(part): item for part, item in parts.items()} for owner, parts in body["commits"].items()
            }
            return cls(**body)
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise FormatError(f"{where}: not a record of a use of this version ({error})") from error


def _part(text: str) -> int:
    if not _PART.fullmatch(text):
        raise ValueError(f"expected the number of a part, got {text!r}")
    return int(text)


def commits_of(items: Iterable[ViewSet | Column], /) -> dict[str, dict[int, str]]:
    """Digests of all committed parts of view sets and columns, as ``Use.commits`` holds them.

    Raises:
        StoreError: A record is damaged or went while we looked.
    """
    return {item.folder: item.commits.ledger().hex_digests() for item in items}


def make_use(store: Store, /, *, experiment: str, folder: str, items: Iterable[ViewSet | Column]) -> Use:
    """What an experiment that reads these finds in the store at this moment; writes nothing.

    Args:
        folder: Where its results lie on this host, absolute.

    Raises:
        MissingColumnError: One of them was removed since it was opened.
        StoreError: A record is damaged.
    """
    commits = commits_of(_again(store, item) for item in items)
    return Use(experiment=experiment, folder=folder, host=socket.gethostname(), commits=commits)


def save_use(store: Store, use: Use, /) -> None:
    """Put a use on record, after checking that nobody has begun to remove what it names; twice is once.

    Raises:
        StoreError: Something that it names is gone or differs, or the record cannot be written.
    """
    root, data = store.root, use.render()
    if len(data) > MAX_DOCUMENT_BYTES:
        parts = sum(map(len, use.commits.values()))
        raise StoreError(
            f"{use.path}: {use.experiment} reads {parts} parts, and a record holds {MAX_DOCUMENT_BYTES} bytes: "
            f"{MAX_DOCUMENT_BYTES * parts // len(data)} of them; extract its view set with more rows_per_shard"
        )
    with root.lock(USES):
        check_commits(store, use.commits, where=use.folder)
        if root.stamp(use.path) is None or root.read_bytes(use.path, max_bytes=MAX_DOCUMENT_BYTES) != data:
            root.write_atomic(use.path, data, replace=True)


def _again(store: Store, item: ViewSet | Column) -> ViewSet | Column:
    if isinstance(item, ViewSet):
        return store.view_set(item.name, views=item.spec.views)
    return store.column(item.view_set.name, item.name, views=item.view_set.spec.views)


def check_commits(store: Store, commits: Commits, /, *, where: str) -> None:
    """Prove that the store holds, byte for byte, what an experiment read before.

    Args:
        where: Folder of the experiment, for the message.

    Raises:
        StoreError: A part was made again with other bytes, or is gone; names column, part and remedy.
    """
    for owner, parts in commits.items():
        record = f"{owner}/{'column' if owner.startswith('columns/') else 'view_set'}.json"
        if store.root.stamp(record) is None:
            raise StoreError(
                f"{where}: refuses to mix: {owner}, which it read, is no longer in the store; run sak extract, and if "
                f"that does not give the same bytes, delete {where} to train anew"
            )
        view_set = store.view_set(owner.split("/")[1])
        standing = CommitLog(store.root, owner, spec=view_set.spec).ledger().hex_digests()
        for part, digest in parts.items():
            if part not in standing:
                raise StoreError(
                    f"{where}: refuses to mix: {owner} part {part}, which it read, is not committed any more; run sak "
                    f"extract, and if that does not give the same bytes, delete {where} to train anew"
                )
            if standing[part] != digest:
                raise StoreError(
                    f"{where}: refuses to mix: {owner} part {part} holds other bytes than it read before (made again "
                    f"since); restore that part from a copy, or delete {where} to train anew"
                )


def load_use(root: Root, name: str, /) -> Use:
    """One record, by the name of its file.

    Raises:
        FormatError: It is malformed, or was moved.
        CorruptShardError: Its bytes have changed.
    """
    relative = f"{USES}/{name}"
    use = Use.parse(root.read_bytes(relative, max_bytes=MAX_DOCUMENT_BYTES), where=relative)
    if use.path != relative:
        raise FormatError(f"{relative}: expected the record {use.path}; a file was moved")
    return use


def all_uses(root: Root, /) -> tuple[Use, ...]:
    """All records, by name.

    Raises:
        StoreError: One is damaged, so that nobody can tell what it protects; names it.
    """
    return tuple(load_use(root, name) for name in root.names(USES))
