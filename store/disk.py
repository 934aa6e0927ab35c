"""Every call to the local disk that the store makes, as one plain function each.

Callers look them up at call time (``disk.fsync(descriptor)``), so that a test can count each operation of a run, fail
it, or die there. Nothing is decided here; what the calls add up to is in ``store.local_root`` and
``store.object_cache``.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = [
    "close",
    "flock",
    "fstat",
    "fsync",
    "is_link",
    "listdir",
    "lstat",
    "mkdir",
    "mkdirs",
    "open_folder",
    "open_lock",
    "open_new",
    "open_read",
    "pread",
    "replace",
    "rmdir",
    "scan",
    "set_times",
    "stat",
    "truncate",
    "unlink",
    "walk",
    "write",
]


def open_read(path: Path, /) -> int:
    """Open a file for reading; never waits for the other end of a pipe."""
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def open_new(path: Path, /) -> int:
    """Create a file that must not exist, for reading and writing."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


def open_folder(path: Path, /) -> int:
    """Open a folder, to lock or to sync it."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def close(descriptor: int, /) -> None:
    """Close what was opened."""
    os.close(descriptor)


def write(descriptor: int, data: bytes | memoryview, /) -> int:
    """Write some of the bytes; returns how many."""
    return os.write(descriptor, data)


def pread(descriptor: int, size: int, offset: int, /) -> bytes:
    """Read at most so many bytes from a position."""
    return os.pread(descriptor, size, offset)


def fsync(descriptor: int, /) -> None:
    """Make a file or folder durable."""
    os.fsync(descriptor)


def fstat(descriptor: int, /) -> os.stat_result:
    """What the system knows about an open file."""
    return os.fstat(descriptor)


def stat(path: Path, /) -> os.stat_result:
    """What the system knows about a file, links followed."""
    return os.stat(path)


def lstat(path: Path, /) -> os.stat_result:
    """What the system knows about a file or link, no link followed."""
    return os.lstat(path)


def is_link(path: Path, /) -> bool:
    """Whether a path is a symbolic link."""
    return os.path.islink(path)


def replace(source: Path, target: Path, /) -> None:
    """Rename atomically over what is there."""
    os.replace(source, target)


def unlink(path: Path, /) -> None:
    """Remove a file or link."""
    os.unlink(path)


def open_lock(path: Path, /) -> int:
    """Open a file that is only there to be locked, created where it is missing."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)


def mkdirs(path: Path, /) -> None:
    """Create a folder and its parents where they are missing."""
    os.makedirs(path, exist_ok=True)


def mkdir(path: Path, /) -> None:
    """Create one folder."""
    os.mkdir(path)


def rmdir(path: Path, /) -> None:
    """Remove an empty folder."""
    os.rmdir(path)


def listdir(path: Path, /) -> list[str]:
    """Names in a folder."""
    return os.listdir(path)


def scan(path: Path, /) -> list[tuple[str, os.stat_result]]:
    """Names in a folder, each with what the system knows about it; links are followed, unless they lead nowhere."""
    found = []
    with os.scandir(path) as entries:
        for entry in entries:
            try:
                found.append((entry.name, entry.stat()))
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ELOOP):
                    raise
    return found


def walk(path: Path, /) -> Iterator[tuple[str, list[str], list[str]]]:
    """Folders below one, with the names of folders and files in each; links are never followed.

    A folder that cannot be listed is an error, unless it has just gone: taken for empty, it would be taken for garbage.
    """
    return os.walk(path, onerror=_unless_gone, followlinks=False)


def flock(descriptor: int, mode: int, /) -> None:
    """Lock an open file or folder until it is closed or its holder dies."""
    fcntl.flock(descriptor, mode)


def truncate(descriptor: int, size: int, /) -> None:
    """Give an open file a size."""
    os.ftruncate(descriptor, size)


def set_times(descriptor: int, accessed_ns: int, modified_ns: int, /) -> None:
    """Set an open file's times."""
    os.utime(descriptor, ns=(accessed_ns, modified_ns))


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error
