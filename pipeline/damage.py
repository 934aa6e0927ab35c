"""From what a verification found to what is to be made again, in the order in which that can be done."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple

from store.commits import CommitLog, PartLocation, is_at_work, locate_part, part_name
from store.document import MAX_DOCUMENT_BYTES, is_newer
from store.errors import StoreError
from store.root import Root, is_temporary
from store.store import Store
from store.verify import Finding
from store.viewset import ViewSet

__all__ = ["Item", "Rank", "damage", "merged", "newer_record"]

_COLUMN_FILE = re.compile(r"columns/[^/]+/[^/]+(?=/)")
_VIEW_RECORD = re.compile(r"(views/[^/]+)/view_set\.json")


class Rank(IntEnum):
    """Kinds of damaged things; the later ones are made from the earlier ones."""

    COST = 0
    VIEWS = 1
    VIEW_PART = 2
    COLUMN = 3
    COLUMN_PART = 4


class Item(NamedTuple):
    """Something damaged.

    Attributes:
        folder: Of the view set or column; the file itself for ``COST``.
        part: -1 where the description of the whole is meant.
    """

    rank: Rank
    folder: str
    part: int = -1

    @property
    def views(self) -> str:
        """Name of the view set."""
        return self.folder.split("/")[1]

    @property
    def column(self) -> str:
        """Name of the column."""
        return self.folder.split("/")[2]


def damage(store: Store, findings: Iterable[Finding], /) -> list[Item]:
    """What is damaged, or was left half made by a writer that died; what comes first is to be mended first.

    Files that belong to nothing are not among it, nor records of uses.
    """
    return sorted({item for found in findings for item in _items(store, found)})


def newer_record(root: Root, item: Item, /) -> str | None:
    """The record of something, where a newer program wrote it soundly: it must not be written over."""
    if item.rank == Rank.COST:
        return None
    kind = "column" if item.folder.startswith("columns/") else "view_set"
    name = f"{kind}.json" if item.part < 0 else f"commits/{part_name(item.part)}.json"
    path = f"{item.folder}/{name}"
    try:
        data = root.read_bytes(path, max_bytes=MAX_DOCUMENT_BYTES)
    except StoreError:
        return None
    return path if is_newer(data) else None


def merged(before: Sequence[Finding], after: Sequence[Finding], /, *, paths: Collection[str]) -> list[Finding]:
    """Findings after these files and folders were verified again."""
    kept = [found for found in before if not any(_is_in(found.path, path) for path in paths)]
    return sorted({*kept, *after}, key=lambda found: (found.path, found.severity, found.problem))


def _is_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


def _items(store: Store, found: Finding) -> Iterator[Item]:
    where = locate_part(found.path)
    if found.stray or (found.severity == "info" and (where is None or not _is_left_over(store, found.path, where))):
        return
    if where is None:
        yield from _descriptions(store, found.path)
    elif "/costs/" in found.path and found.severity == "error":
        yield Item(Rank.COST, found.path)
    elif where.folder.startswith("views/"):
        yield Item(Rank.VIEW_PART, *where)
    else:
        views = f"views/{where.folder.split('/')[1]}"
        if store.root.stamp(f"{views}/commits/{part_name(where.part)}.json") is None:
            yield Item(Rank.VIEW_PART, views, where.part)
        yield Item(Rank.COLUMN_PART, *where)


def _descriptions(store: Store, path: str) -> Iterator[Item]:
    views, column = _VIEW_RECORD.fullmatch(path), _COLUMN_FILE.match(path)
    if views:
        yield Item(Rank.VIEWS, views[1])
    elif column:
        item = Item(Rank.COLUMN, column[0])
        # A column without its view set is not looked into: whether it is damaged shows when that is there again.
        yield item if _opens(store, item.views) else Item(Rank.VIEWS, f"views/{item.views}")


def _opens(store: Store, views: str) -> bool:
    try:
        store.view_set(views)
    except StoreError:
        return False
    return True


def _is_left_over(store: Store, path: str, where: PartLocation) -> bool:
    """Whether a file is of a part without a record that nobody is writing at this moment, as far as locks tell.

    Where nothing is locked that cannot be told; an hour after the last write it is an error, and that is mended.
    """
    root = store.root
    if is_temporary(path.rsplit("/", 1)[-1]) or is_at_work(root, where) is not False:
        return False
    try:
        view_set: ViewSet = store.view_set(where.folder.split("/")[1])
    except StoreError:
        return False
    log = CommitLog(root, where.folder, spec=view_set.spec)
    return where.part < view_set.spec.parts and root.stamp(log.path(where.part)) is None
