"""The root of a store: safe relative paths, bounded reads, atomic durable writes.

Only local folders now. Everything that touches storage goes through ``Root``, so that an object store can take its
place; ``write_atomic``, ``lock`` and ``clean`` are the operations that would need another implementation there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import socket
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import NamedTuple

from store.errors import CorruptShardError, FormatError, StoreError

__all__ = ["Root", "Stamp", "check_name", "is_temporary"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_TEMPORARY = re.compile(r"\.tmp-(?P<host>[A-Za-z0-9_]+)-(?P<pid>\d+)-\d+")
_ABANDONED_SECONDS = 24 * 3600

_live: set[str] = set()
_serial = count()


class Stamp(NamedTuple):
    """What tells one version of a file from the next without reading it."""

    inode: int
    size: int
    modified_ns: int


def check_name(name: str, *, what: str) -> str:
    """Return a name that is safe as one folder or file name.

    Raises:
        FormatError: It is empty, too long, or has anything but letters, digits, dot, dash and underscore.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name) > 100:
        raise FormatError(
            f"{what}: expected 1 to 100 letters, digits, '.', '_' or '-', starting with a letter or digit, got {name!r}"
        )
    return name


def is_temporary(name: str) -> bool:
    """Whether a file name is that of a write in flight or of one that died."""
    return _TEMPORARY.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class Root:
    """A local folder addressed by relative posix paths that cannot leave it."""

    path: Path

    def local(self, relative: str, /) -> Path:
        """Absolute path of a relative one, refused when it could lead outside the root.

        Raises:
            FormatError: The path is absolute, has ``..`` or odd characters, or passes a link that leaves the root.
        """
        parts = relative.split("/")
        if not all(_NAME.fullmatch(part) for part in parts):
            raise FormatError(f"expected a plain relative path inside the store, got {relative!r}")
        base = self.path.resolve()
        target = base.joinpath(*parts)
        if not target.resolve().is_relative_to(base):
            raise FormatError(f"{target}: a link leads outside the store {base}; remove it")
        return target

    def exists(self, relative: str, /) -> bool:
        """Whether a file or folder is there."""
        return self.local(relative).exists()

    def stamp(self, relative: str, /) -> Stamp | None:
        """Identity of a regular file, or None when there is none."""
        try:
            info = os.stat(self.local(relative))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Stamp(info.st_ino, info.st_size, info.st_mtime_ns) if stat.S_ISREG(info.st_mode) else None

    def read_bytes(self, relative: str, /, *, max_bytes: int) -> bytes:
        """Read a whole file of bounded size.

        Raises:
            CorruptShardError: It is missing, not a regular file, larger than the bound, or the disk fails.
        """
        path = self.local(relative)
        try:
            with open(path, "rb") as file:
                info = os.fstat(file.fileno())
                if not stat.S_ISREG(info.st_mode) or info.st_size > max_bytes:
                    raise CorruptShardError(
                        f"{path}: expected a file of at most {max_bytes} bytes, got {info.st_size}; "
                        "run sak store verify"
                    )
                return file.read(max_bytes)
        except OSError as error:
            raise CorruptShardError(f"{path}: cannot be read ({error.strerror}); run sak store verify") from error

    def digest(self, relative: str, /) -> str:
        """SHA-256 of a file, read in blocks.

        Raises:
            CorruptShardError: It cannot be read.
        """
        path = self.local(relative)
        try:
            with open(path, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise CorruptShardError(f"{path}: cannot be read ({error.strerror}); run sak store verify") from error

    def names(self, relative: str, /) -> list[str]:
        """Sorted names in a folder without temporary files; empty when there is no such folder."""
        try:
            found = os.listdir(self.local(relative))
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(name for name in found if not is_temporary(name))

    def files(self) -> list[str]:
        """Sorted relative paths of everything below the root that is not a folder, temporary files included.

        Links are listed and never followed.
        """
        found = []
        for folder, folders, names in os.walk(self.path, followlinks=False):
            base = Path(folder).relative_to(self.path)
            links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
            found += [(base / name).as_posix() for name in [*names, *links]]
        return sorted(found)

    def write_atomic(self, relative: str, data: bytes, /) -> None:
        """Write a file so that a reader sees the old one, or the whole new one, and a crash leaves no third case.

        Temporary name in the same folder, fsync, read back and compare digests, rename, fsync the folder.

        Raises:
            StoreError: The disk is full or fails; the temporary file is removed and the old file still stands.
        """
        path = self.local(relative)
        temporary = path.with_name(f".tmp-{_host()}-{os.getpid()}-{next(_serial)}")
        _live.add(temporary.name)
        try:
            with _explained(path):
                _make_folders(path.parent)
                _write_durable(temporary, data)
                with open(temporary, "rb") as file:
                    if hashlib.file_digest(file, "sha256").digest() != hashlib.sha256(data).digest():
                        raise StoreError(f"{path}: the disk returned other bytes than were written; check the disk")
                os.replace(temporary, path)
                _sync_folder(path.parent)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
            _live.discard(temporary.name)

    def remove(self, relative: str, /) -> None:
        """Remove a file durably; nothing happens when it is not there."""
        path = self.local(relative)
        with _explained(path):
            if path.exists():
                path.unlink()
                _sync_folder(path.parent)

    @contextlib.contextmanager
    def lock(self, relative: str, /) -> Iterator[None]:
        """Hold a folder's lock, which the system drops when its holder dies; leaves no file behind."""
        folder = self.local(relative)
        with _explained(folder):
            _make_folders(folder)
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError as error:
                # Some network file systems have no locks. Then two writers of one part stay safe as long as they
                # write the same bytes, because every rename is atomic.
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
                    raise
            yield
        finally:
            os.close(descriptor)

    def clean(self, relative: str | None, /) -> int:
        """Remove temporary files whose writer has died, below a folder or, for None, in the root alone.

        Returns:
            How many.
        """
        removed = 0
        walk = os.walk(self.path if relative is None else self.local(relative), followlinks=False)
        for folder, folders, names in walk:
            if relative is None:
                folders.clear()
            for name in names:
                path = Path(folder, name)
                if is_temporary(name) and _is_abandoned(path):
                    with contextlib.suppress(FileNotFoundError):
                        path.unlink()
                        removed += 1
        return removed


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what the system says about a write into one line for the user."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be written ({error.strerror}); mend the cause and run the same command again"
        ) from error


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9_]", "_", socket.gethostname())[:60] or "host"


def _write_durable(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _make_folders(folder: Path) -> None:
    """Create a folder and its parents, each made durable in the one above it."""
    if folder.is_dir():
        return
    _make_folders(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_abandoned(path: Path) -> bool:
    match = _TEMPORARY.fullmatch(path.name)
    if match is None or path.name in _live:
        return False
    pid = int(match["pid"])
    if match["host"] == _host() and (pid == os.getpid() or not _is_alive(pid)):
        return True
    try:
        return time.time() - path.stat().st_mtime > _ABANDONED_SECONDS
    except FileNotFoundError:
        return False


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
