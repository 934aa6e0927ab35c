"""Where a store's bytes are: by view set, column and level, and which of them nobody can read."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from store.gc import owners
from store.root import is_temporary
from store.store import Store
from store.verify import locate_part

__all__ = ["LevelUsage", "Usage", "disk_usage"]

_LEVEL = re.compile(r"level_(\d+)(?:_\w+)?/.*")


class LevelUsage(NamedTuple):
    """Bytes of one level of a column, scales and the like included."""

    level: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Bytes of one view set or column, or (``path`` empty) of what belongs to none.

    ``dead`` counts those of ``bytes`` that no reader reaches: parts that were discarded or never finished, remains of
    a removed column, and temporary files. ``levels`` is empty where a level has no files of its own.
    """

    path: str
    bytes: int
    dead: int
    files: int
    levels: tuple[LevelUsage, ...]


def disk_usage(store: Store, /) -> list[Usage]:
    """Add up every file of a store; opens none, so that damage is no obstacle. Paths ascend, the rest comes last."""
    root = store.root
    sizes = {path: stamp.size for path, stamp in root.listing().items()}
    found = [_usage(folder, sizes) for folder in sorted(owners(root))]
    rest = {path: size for path, size in sizes.items() if not any(path.startswith(f"{item.path}/") for item in found)}
    dead = sum(size for path, size in rest.items() if is_temporary(_name(path)))
    return [*found, Usage(path="", bytes=sum(rest.values()), dead=dead, files=len(rest), levels=())]


def _usage(folder: str, sizes: dict[str, int]) -> Usage:
    mine = {path: size for path, size in sizes.items() if path.startswith(f"{folder}/")}
    exists = f"{folder}/{'column' if folder.startswith('columns/') else 'view_set'}.json" in sizes
    committed = {found.part for path in mine if "/commits/part-" in path and (found := locate_part(path))}
    levels: Counter[int] = Counter()
    dead = 0
    for path, size in mine.items():
        part = locate_part(path)
        if not exists or is_temporary(_name(path)) or (part is not None and part.part not in committed):
            dead += size
        elif match := _LEVEL.fullmatch(path[len(folder) + 1 :]):
            levels[int(match[1])] += size
    ordered = tuple(LevelUsage(level, levels[level]) for level in sorted(levels))
    return Usage(path=folder, bytes=sum(mine.values()), dead=dead, files=len(mine), levels=ordered)


def _name(path: str) -> str:
    return path.rsplit("/", 1)[-1]
