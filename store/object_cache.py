"""Whole remote objects on the local disk, up to a limit of bytes that threads and processes share.

Below the cache folder ``objects/ab/<key>-<sha256>`` is one whole object: ``key`` digests where it came from and its
ETag, ``ab`` is the key's beginning, and the second digest is that of its content, compared when the object arrives and
whenever a process first finds it here. An open file holds a shared lock on itself, and only what nobody locks is
evicted, least recently opened first. Room is taken before the first byte arrives, so the limit holds throughout.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from store import disk
from store.errors import StoreError
from store.fingerprint import digest_bytes
from store.local_file import LocalFile
from store.object_client import ReplacedError
from store.root import Stamp, is_temporary, temporary_name

__all__ = ["CachedFile", "Fetch", "ObjectCache", "cache_folder"]

_BLOCK = 8 << 20
_AHEAD = 4
"""Blocks in flight for one object: with ``_BLOCK`` it bounds the memory of a download."""
_ENTRY = re.compile(r"[0-9a-f]{64}-[0-9a-f]{64}")


class Fetch(NamedTuple):
    """How an object is fetched: what gives its bytes from a start to before a stop, and their SHA-256 where known."""

    blocks: Callable[[int, int], bytes]
    sha256: str | None = None


class _Found(NamedTuple):
    path: Path
    size: int
    used_ns: int


def cache_folder() -> Path:
    """Folder of the cache: ``SAK_CACHE``, or ``sak`` in the user's cache folder."""
    chosen = os.environ.get("SAK_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sak"


class CachedFile:
    """A remote object's local copy, kept from eviction while it is open; see ``store.root.StoredFile``."""

    def __init__(self, file: LocalFile, *, stamp: Stamp, sha256: str) -> None:
        self._file = file
        self._sha256 = sha256
        self.stamp = stamp

    @property
    def size(self) -> int:
        """Bytes in it."""
        return self.stamp.size

    def read(self, offset: int, size: int, /) -> bytes:
        """Bytes from a position; fewer only where the object ends.

        Raises:
            OSError: The disk fails.
        """
        return self._file.read(offset, size)

    def digest(self) -> str:
        """SHA-256 of the whole, which this process has compared with the bytes."""
        return self._sha256

    def close(self) -> None:
        """Let it go; a second time does nothing."""
        self._file.close()


class ObjectCache:
    """Local copies of remote objects.

    Args:
        folder: Made on first use; on a disk with locks, which every local one has.
        limit: Bytes that all copies together may take.
    """

    def __init__(self, folder: Path, *, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self._verified: dict[str, tuple[int, int, int]] = {}
        self._lock = threading.Lock()

    def open(self, source: str, stamp: Stamp, /, *, fetch: Fetch) -> CachedFile | None:
        """The local copy of an object, fetched first where there is none or a damaged one.

        A copy of other content than is expected is given, for the caller to refuse, and not kept: the fault may have
        been the network's.

        Args:
            source: Where the object is.

        Returns:
            None where the limit leaves no room: it is too small, or what fills it is open.

        Raises:
            ReplacedError: ``fetch`` finds the object gone or replaced.
            UnreachableError: ``fetch`` cannot reach it.
            StoreError: The cache's disk is full or fails.
        """
        if stamp.size > self.limit:
            return None
        key = digest_bytes(f"{source}\n{stamp.identity}\n{stamp.size}".encode())
        folder = self.folder / "objects" / key[:2]
        with self._explained():
            disk.mkdirs(folder)
            found = self._find(folder, key, stamp, sha256=fetch.sha256)
            if found is not None:
                return found
            with _locked(self.folder / f"lock-{key[:2]}"):
                # Whoever held the lock may have fetched it.
                found = self._find(folder, key, stamp, sha256=fetch.sha256)
                return self._fetch(folder, key, stamp, fetch) if found is None else found

    def _find(self, folder: Path, key: str, stamp: Stamp, *, sha256: str | None) -> CachedFile | None:
        for name in disk.listdir(folder):
            if name.startswith(key) and _ENTRY.fullmatch(name) and sha256 in (None, name[65:]):
                found = self._open_entry(folder / name, stamp, sha256=name[65:])
                if found is not None:
                    return found
        return None

    def _open_entry(self, path: Path, stamp: Stamp, *, sha256: str) -> CachedFile | None:
        try:
            descriptor = disk.open_read(path)
        except FileNotFoundError:
            return None
        file = LocalFile(descriptor)
        disk.flock(descriptor, fcntl.LOCK_SH)
        info = disk.fstat(descriptor)
        if info.st_nlink == 0:  # evicted between opening and locking it
            file.close()
            return None
        state = (info.st_ino, info.st_size, info.st_mtime_ns)
        if self._verified.get(path.name) != state:
            if info.st_size != stamp.size or file.digest() != sha256:
                file.close()
                with contextlib.suppress(FileNotFoundError):
                    disk.unlink(path)
                return None
            self._remember(path.name, state)
        disk.set_times(descriptor, time.time_ns(), info.st_mtime_ns)
        return CachedFile(file, stamp=stamp, sha256=sha256)

    def _fetch(self, folder: Path, key: str, stamp: Stamp, fetch: Fetch) -> CachedFile | None:
        temporary = folder / temporary_name()
        descriptor = self._reserve(temporary, stamp.size)
        if descriptor is None:
            return None
        file = LocalFile(descriptor)
        try:
            _download(descriptor, stamp.size, fetch.blocks)
            sha256 = file.digest()
            path = folder / f"{key}-{sha256}"
            if fetch.sha256 in (None, sha256):
                disk.replace(temporary, path)
            else:
                disk.unlink(temporary)
        except BaseException:
            with contextlib.suppress(OSError):
                disk.unlink(temporary)
            file.close()
            raise
        info = disk.fstat(descriptor)
        self._remember(path.name, (info.st_ino, info.st_size, info.st_mtime_ns))
        disk.flock(descriptor, fcntl.LOCK_SH)
        return CachedFile(file, stamp=stamp, sha256=sha256)

    def _reserve(self, temporary: Path, size: int) -> int | None:
        """Make room for a file and create it at full size, locked; None where there is no room."""
        with _locked(self.folder / "lock-room"):
            entries = sorted(self._entries(), key=lambda item: item.used_ns)
            used = sum(item.size for item in entries)
            for item in entries:
                if used + size <= self.limit:
                    break
                if _evict(item.path):
                    used -= item.size
            if used + size > self.limit:
                return None
            descriptor = disk.open_new(temporary)
            try:
                disk.flock(descriptor, fcntl.LOCK_EX)
                disk.truncate(descriptor, size)
            except BaseException:
                disk.close(descriptor)
                disk.unlink(temporary)
                raise
            return descriptor

    def _entries(self) -> Iterator[_Found]:
        """Everything that takes room; what a dead process was fetching is removed."""
        for folder, _, names in disk.walk(self.folder / "objects"):
            for name in names:
                path = Path(folder, name)
                if is_temporary(name) and _evict(path):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    info = disk.stat(path)
                    yield _Found(path, info.st_size, info.st_atime_ns)

    def _remember(self, name: str, state: tuple[int, int, int]) -> None:
        with self._lock:
            self._verified[name] = state

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except ReplacedError:
            raise
        except OSError as error:
            raise StoreError(
                f"{self.folder}: the local cache of remote objects failed ({error.strerror}); set SAK_CACHE to a "
                "folder on a local disk with room, or cache_bytes to 0"
            ) from error


def _evict(path: Path) -> bool:
    """Remove a file unless somebody holds it."""
    try:
        descriptor = disk.open_read(path)
    except FileNotFoundError:
        return True
    try:
        disk.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        disk.unlink(path)
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False
    finally:
        disk.close(descriptor)
    return True


def _download(descriptor: int, size: int, blocks: Callable[[int, int], bytes]) -> None:
    """Write an object's blocks in order, a few of them in flight."""
    starts = iter(range(0, size, _BLOCK))
    with ThreadPoolExecutor(_AHEAD, thread_name_prefix="sak-fetch") as pool:
        flying: deque[Future[bytes]] = deque()
        offset = 0
        try:
            while offset < size:
                while len(flying) < _AHEAD and (start := next(starts, None)) is not None:
                    flying.append(pool.submit(blocks, start, min(start + _BLOCK, size)))
                data = flying.popleft().result()
                _write(descriptor, data)
                offset += len(data)
        finally:
            for future in flying:
                future.cancel()


def _write(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[disk.write(descriptor, left) :]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that its holder's death releases. Its file stays: removing it would let two hold it."""
    descriptor = disk.open_lock(path)
    try:
        disk.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        disk.close(descriptor)
