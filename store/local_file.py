"""One open file on the local disk."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from pathlib import Path

from store import disk
from store.crossings import count
from store.root import Stamp

__all__ = ["LocalFile", "digest_of", "stamp_of"]

_BLOCK = 1 << 20


class LocalFile:
    """One open file; reads by position, so that threads may share it.

    Args:
        descriptor: Open for reading; this object closes it.

    Raises:
        OSError: It is no regular file.
    """

    def __init__(self, descriptor: int, /) -> None:
        self._descriptor = descriptor
        self.stamp = stamp_of(disk.fstat(descriptor))

    @classmethod
    def open(cls, path: Path, /) -> LocalFile:
        """Open a file.

        Raises:
            OSError: It cannot be opened, or is no regular file.
        """
        return cls(disk.open_read(path))

    @property
    def size(self) -> int:
        """Bytes in it when it was opened."""
        return self.stamp.size

    def __del__(self) -> None:
        self.close()

    def read(self, offset: int, size: int, /) -> bytes:
        """Bytes from a position; fewer only where the file ends.

        Raises:
            OSError: The disk fails.
        """
        data = _pread(self._descriptor, size, offset)
        if len(data) == size or not data:
            return data
        blocks = [data]  # one call of the system gives at most 2 GiB, and some file systems less
        while data and (left := size - sum(map(len, blocks))):
            data = _pread(self._descriptor, left, offset + size - left)
            blocks.append(data)
        return b"".join(blocks)

    def digest(self) -> str:
        """SHA-256 of the file as it is now.

        Raises:
            OSError: The disk fails.
        """
        return digest_of(self._descriptor)

    def close(self) -> None:
        """Close it; a second time does nothing, and neither does an error: what was read has been checked."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                disk.close(descriptor)


def stamp_of(info: os.stat_result, /) -> Stamp:
    """Stamp of a regular file.

    Raises:
        OSError: It is something else.
    """
    if not stat.S_ISREG(info.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    return Stamp(info.st_ino, info.st_size, info.st_mtime_ns)


def digest_of(descriptor: int, /) -> str:
    """SHA-256 of an open file, read in blocks.

    Raises:
        OSError: The disk fails.
    """
    state = hashlib.sha256()
    offset = 0
    while block := _pread(descriptor, _BLOCK, offset):
        state.update(block)
        offset += len(block)
    return state.hexdigest()


def _pread(descriptor: int, size: int, offset: int) -> bytes:
    data = disk.pread(descriptor, size, offset)
    count(read=len(data))
    return data
