"""Locks of local folders: ``flock``, which the system drops when the holder's descriptor is closed or it dies."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path

from store import disk

__all__ = ["drop_passing", "is_taken", "take", "take_passing"]

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


def take(folder: Path, /, *, shared: bool = False) -> int:
    """Wait for a folder's lock; it is held until what this returns is closed.

    Raises:
        OSError: The folder is not there, or the disk fails.
    """
    with contextlib.ExitStack() as stack:
        descriptor = disk.open_folder(folder)
        stack.callback(disk.close, descriptor)
        try:
            disk.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        except OSError as error:
            # Some network file systems have no locks. Then two writers of one part stay safe as long as they write the
            # same bytes, because every rename is atomic.
            if error.errno not in _NO_LOCKS:
                raise
        stack.pop_all()
    return descriptor


def take_passing(folder: Path, /) -> int:
    """``take`` for an empty folder that is there only while somebody holds or awaits its lock.

    One that a dead holder left is taken over. ``drop_passing`` gives it back.

    Raises:
        OSError: The folder above it is not there, or the disk fails.
    """
    while True:
        with contextlib.suppress(FileExistsError):
            disk.mkdir(folder)
        try:
            descriptor = take(folder)
        except FileNotFoundError:
            if disk.is_link(folder):  # to nowhere: that will not change by itself
                raise
            continue
        with contextlib.ExitStack() as stack:
            stack.callback(disk.close, descriptor)
            if _is_at(descriptor, folder):  # else the holder before removed it, and whoever comes now makes another
                stack.pop_all()
                return descriptor


def drop_passing(folder: Path, descriptor: int, /) -> None:
    """Remove the folder and give its lock back.

    Raises:
        OSError: The disk fails.
    """
    with contextlib.suppress(OSError):  # an empty folder that stays does no harm
        disk.rmdir(folder)  # while it is locked: who waits for it finds it gone, and looks again
    disk.close(descriptor)


def is_taken(folder: Path, /, *, alone: bool = False) -> bool | None:
    """Whether somebody holds a folder's lock, shared or not; None where the file system has no locks.

    Args:
        alone: Only who holds it alone counts.

    Raises:
        OSError: The disk fails.
    """
    try:
        descriptor = disk.open_folder(folder)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        disk.flock(descriptor, (fcntl.LOCK_SH if alone else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (*_NO_LOCKS, errno.EWOULDBLOCK):
            raise
        return True if error.errno == errno.EWOULDBLOCK else None
    finally:
        disk.close(descriptor)
    return False


def _is_at(descriptor: int, folder: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(disk.fstat(descriptor), disk.stat(folder))
    return False
