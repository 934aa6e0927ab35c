"""Files that a benchmark makes: where they lie, their sizes and cached pages; and the machine that it ran on."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.bench.contender import BenchError
from store.workers import processors

__all__ = ["drop_pages", "flush", "folder_bytes", "machine", "memory_bytes", "scratch"]


@contextmanager
def scratch(parent: Path | None, /) -> Iterator[Path]:
    """A new folder, removed at the end, whatever the end.

    Args:
        parent: Where; None for where the system keeps such.

    Raises:
        BenchError: There is no such folder.
    """
    if parent is not None and not parent.is_dir():
        raise BenchError(f"{parent}: expected a folder to write to, found none; make it, or leave out --dir")
    with tempfile.TemporaryDirectory(prefix="sak-bench-", dir=parent, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def folder_bytes(folder: Path, /) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in _files(folder))


def drop_pages(folder: Path, /) -> None:
    """Ask the system to forget the pages of all files below a folder; they must be on the disk already.

    Only a request: pages that are mapped or not yet written stay, and systems without the call ignore it.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    for path in _files(folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def flush(folder: Path, /) -> None:
    """Write all files below a folder to the disk, so that their pages can be dropped and no writing disturbs reads."""
    for path in _files(folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def memory_bytes() -> int:
    """Physical memory, 0 where it cannot be told."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 0


def machine() -> str:
    """Processors and their model, memory, system."""
    count = processors()
    return f"{count} x {_processor()}, {memory_bytes() / 2**30:.0f} GiB, {platform.system()}"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())
