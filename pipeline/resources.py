"""What this machine has: memory, room on a disk, processors, and how fast a disk reads."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from store.errors import StoreError
from store.root import Root
from store.roots import open_root
from store.store import Store

__all__ = ["Free", "available_memory", "free_space", "own_memory", "read_rate"]

_PROC, _CGROUP = Path("/proc"), Path("/sys/fs/cgroup")
_READ_BYTES, _BLOCK_BYTES, _LEAST_BYTES = 256 << 20, 4 << 20, 1 << 20
_FILES = 64


class Free(NamedTuple):
    """Bytes free on a disk, and the number the system gives it."""

    bytes: int
    disk: int


def available_memory() -> int | None:
    """Bytes that can be had without swapping, or what is left of this container's limit; None where nothing tells."""
    known = [size for size in (_machine_memory(), _group_memory()) if size is not None]
    return min(known, default=None)


def own_memory() -> int:
    """Bytes of memory that this process holds; 0 where nothing tells."""
    try:
        return int((_PROC / "self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def free_space(root: Root, /) -> Free | None:
    """What is free on the disk of a local store, or on the one it would be made on; None for another kind."""
    try:
        path = root.local("store.json").parent
    except StoreError:
        return None
    while not path.exists() and path != path.parent:
        path = path.parent
    return Free(shutil.disk_usage(path).free, path.stat().st_dev)


def read_rate(where: str, /) -> float | None:
    """Bytes a second at which a local store's own files are read from its disk, some hundred megabytes of them.

    None where there is no such store, or less than a megabyte in it.
    """
    root = open_root(where)
    if root.stamp("store.json") is None:
        return None
    try:
        paths = [root.local(relative) for relative in _files(Store.open(where))]
    except StoreError:
        return None
    begun, count = time.perf_counter(), 0
    for path in paths:
        count += _read(path, most=_READ_BYTES - count)
    return count / (time.perf_counter() - begun) if count >= _LEAST_BYTES else None


def _files(store: Store) -> Iterable[str]:
    """Shards of the first view set that has some: of its columns, and its images."""
    for name in store.view_set_names():
        view_set = store.view_set(name)
        columns = [store.column(name, column) for column in store.column_names(name)]
        paths = [
            f"{column.folder}/{path}"
            for column in columns
            for part in column.committed_parts()[:_FILES]
            for path in column.part_files(part)
        ]
        paths += [f"{view_set.folder}/images/part-{part:05d}.tar" for part in view_set.committed_parts()[:_FILES]]
        if paths:
            return paths
    return []


def _read(path: Path, *, most: int) -> int:
    """Read a file from the disk, not from the system's memory of it; bytes that were read."""
    descriptor, count = os.open(path, os.O_RDONLY), 0
    try:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        while count < most and (data := os.read(descriptor, min(_BLOCK_BYTES, most - count))):
            count += len(data)
    finally:
        os.close(descriptor)
    return count


def _machine_memory() -> int | None:
    try:
        lines = (_PROC / "meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return None


def _group_memory() -> int | None:
    """What is left of the limit of this process's control group; pages of files that it can drop count as left."""
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        return max(0, limit - used + int(stat.get("inactive_file", 0)))
    except (OSError, ValueError):
        return None
