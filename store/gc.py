"""What a store could do without, and its removal in an order that a crash cannot turn into damage.

A column or view set is removed part by part: commit records first, then its own record, then everything else. Every
state in between is one that writers leave too, so a killed run leaves a store that verifies, and the next finishes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from store.audit import record_of
from store.commits import locate_part, part_name
from store.root import Root, is_temporary
from store.store import Store
from store.uses import USES, all_uses

__all__ = ["GRACE_SECONDS", "Garbage", "Kept", "Plan", "collect", "owners", "plan"]

GRACE_SECONDS = 7 * 24 * 3600.0
"""What is younger stays unless asked: its experiment may not have begun."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Garbage:
    """Something that no record references.

    ``part`` is what a discarded or unfinished part left in a column or view set that stays; ``remains`` is a folder
    whose own record is gone already; ``use`` is the record of an experiment that the caller said is gone.
    """

    kind: Literal["column", "view set", "part", "remains", "temporary", "use"]
    path: str
    files: tuple[str, ...]
    bytes: int


class Kept(NamedTuple):
    """A column or view set that stays, and why."""

    path: str
    why: str


class Plan(NamedTuple):
    """What goes, in the order of removal, and what stays."""

    garbage: tuple[Garbage, ...]
    kept: tuple[Kept, ...]

    @property
    def bytes(self) -> int:
        """Bytes that removal frees."""
        return sum(item.bytes for item in self.garbage)


def plan(
    store: Store, /, *, grace: float = GRACE_SECONDS, forget: Collection[str] = (), now: float | None = None
) -> Plan:
    """Find what nobody uses.

    Args:
        grace: Seconds; what was written to within them stays.
        forget: Ids of uses that no longer count; their records go too.
        now: Unix time; the present by default.

    Raises:
        StoreError: The record of a use is damaged: nobody can tell what it protects.
    """
    return _Planner(store, grace=grace, forget=forget, now=time.time() if now is None else now).plan()


def collect(store: Store, /, *, grace: float = GRACE_SECONDS, forget: Collection[str] = ()) -> Plan:
    """Remove what nobody uses; returns what went and what stayed.

    Raises:
        StoreError: As ``plan``, or the disk fails; running it again goes on where it stopped.
    """
    # With the lock held no experiment can begin to use what is being removed.
    with store.root.lock(USES):
        found = plan(store, grace=grace, forget=forget)
        removed = tuple(item for item in found.garbage if _remove(store.root, item))
    left = [Kept(item.path, "written to just now") for item in found.garbage if item not in removed]
    return Plan(removed, (*found.kept, *left))


def owners(root: Root, /) -> tuple[str, ...]:
    """Folders of all view sets and columns, columns first, with or without their records."""
    columns = [f"columns/{views}/{name}" for views in root.names("columns") for name in root.names(f"columns/{views}")]
    return (*columns, *(f"views/{name}" for name in root.names("views")))


class _Planner:
    def __init__(self, store: Store, *, grace: float, forget: Collection[str], now: float) -> None:
        self._root = store.root
        self._grace, self._now = grace, now
        listing = self._root.listing()
        self._sizes = {path: stamp.size for path, stamp in listing.items()}
        self._times = {path: stamp.modified_ns / 1e9 for path, stamp in listing.items()}
        self._abandoned = set(self._root.abandoned())
        uses = all_uses(self._root)
        self._forgotten = [use for use in uses if use.id in forget]
        self._used = [use for use in uses if use.id not in forget]

    def plan(self) -> Plan:
        garbage: list[Garbage] = [self._item("use", use.path, [use.path]) for use in self._forgotten]
        kept: list[Kept] = []
        busy_views: set[str] = set()
        for folder in owners(self._root):
            files = [path for path in self._sizes if path.startswith(f"{folder}/")]
            if not files and not self._root.overwrites:
                continue  # some object stores go on listing a folder that they emptied
            why = self._why_kept(folder, files, busy_views)
            if why is None:
                garbage.append(self._item(self._kind(folder), folder, files))
                continue
            kept.append(Kept(folder, why))
            busy_views.add(f"views/{folder.split('/')[1]}")
            garbage += self._parts(folder, files)
        gone = {path for item in garbage for path in item.files}
        garbage += [self._item("temporary", path, [path]) for path in sorted(self._abandoned & set(self._sizes) - gone)]
        return Plan(tuple(garbage), tuple(kept))

    def _item(
        self,
        kind: Literal["column", "view set", "part", "remains", "temporary", "use"],
        path: str,
        files: list[str],
    ) -> Garbage:
        return Garbage(kind=kind, path=path, files=tuple(files), bytes=sum(self._sizes[file] for file in files))

    def _kind(self, folder: str) -> Literal["column", "view set", "remains"]:
        if record_of(folder) not in self._sizes:
            return "remains"
        return "column" if folder.startswith("columns/") else "view set"

    def _why_kept(self, folder: str, files: list[str], busy_views: Collection[str]) -> str | None:
        users = sum(folder in use.commits for use in self._used)
        if users:
            return f"{users} experiment{'s' if users > 1 else ''} use{'s' if users == 1 else ''} it"
        if folder in busy_views:
            return "a column over it stays"
        if record_of(folder) not in self._sizes and any(path.startswith(f"{folder}/commits/part-") for path in files):
            return "its own record is missing; sak store verify"
        if self._is_young(files):
            return f"written to within the last {self._grace / 3600:g} hours"
        if _is_locked(self._root, folder):
            return "being written"
        return None

    def _is_young(self, files: list[str]) -> bool:
        return any(self._times[path] > self._now - self._grace for path in files)

    def _parts(self, folder: str, files: list[str]) -> Iterator[Garbage]:
        """What discarded and unfinished parts left in a folder that stays."""
        left: dict[int, list[str]] = {}
        for path in files:
            found = locate_part(path)
            if found is None or is_temporary(path.rsplit("/", 1)[-1]):
                continue
            if f"{folder}/commits/{part_name(found.part)}.json" not in self._sizes:
                left.setdefault(found.part, []).append(path)
        for part, paths in sorted(left.items()):
            if not self._is_young(paths) and not _is_locked(self._root, folder):
                yield self._item("part", f"{folder} part {part}", sorted(paths))


def _is_locked(root: Root, folder: str) -> bool:
    """Whether a writer is at work in a folder at this moment."""
    return bool(root.is_locked(folder) or root.is_locked(f"{folder}/commits"))


def _remove(root: Root, item: Garbage) -> bool:
    """Remove what was planned; False when somebody has written to it since."""
    if item.kind == "use":
        root.remove(item.path)
        return True
    if item.kind == "temporary":
        root.clean(item.path.rpartition("/")[0] or None)
        return True
    if item.kind == "part":
        return _remove_part(root, item)
    if item.kind in ("column", "view set", "remains"):
        return _remove_owner(root, item)
    raise AssertionError(item.kind)


def _remove_part(root: Root, item: Garbage) -> bool:
    folder, _, number = item.path.rpartition(" part ")
    if _is_locked(root, folder):  # writers come and go, and no lock says that it is our turn
        return False
    with root.lock(f"{folder}/commits"):
        if root.stamp(f"{folder}/commits/{part_name(int(number))}.json") is not None:
            return False
        for path in item.files:
            root.remove(path)
    return True


def _remove_owner(root: Root, item: Garbage) -> bool:
    commits, columns = f"{item.path}/commits", f"columns/{item.path.split('/')[1]}"
    if _is_locked(root, item.path):
        return False
    # A column that could not be removed, or that was begun meanwhile, keeps its view set.
    if item.kind == "view set" and any(root.files(f"{columns}/{name}") for name in root.names(columns)):
        return False
    with contextlib.ExitStack() as stack:
        for place in (item.path, commits):
            if root.exists(place):
                stack.enter_context(root.lock(place))
        planned = {path for path in item.files if path.startswith(f"{commits}/part-")}
        if {f"{commits}/{name}" for name in root.names(commits)} != planned:
            return False
        for path in [*sorted(planned), record_of(item.path)]:
            root.remove(path)
        root.remove_tree(item.path)
    if item.kind == "view set" and not root.names(columns):
        root.remove_tree(columns)
    return True
