"""A store in a local folder: atomic durable writes by rename, locks that die with their holder."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

from store import disk
from store.crossings import count
from store.errors import CorruptShardError, FormatError, StoreError
from store.local_file import LocalFile, digest_of, stamp_of
from store.local_lock import drop_passing, is_taken, take, take_passing
from store.root import Stamp, check_relative, is_name, is_temporary, made_temporary, temporary_name

__all__ = ["LocalRoot"]

_ABANDONED_SECONDS = 24 * 3600

_live: set[str] = set()


@dataclass(frozen=True, slots=True)
class LocalRoot:
    """A local folder addressed by relative posix paths that cannot leave it; see ``store.root.Root``."""

    path: Path

    @property
    def url(self) -> str:
        """What messages call the store, and what opens it again."""
        return str(self.path)

    @property
    def overwrites(self) -> bool:
        """A file is replaced by rename, so what a dead writer left need not be removed first."""
        return True

    def local(self, relative: str, /) -> Path:
        """Absolute path of a relative one, refused when it could lead outside the root.

        Raises:
            FormatError: The path is absolute, has ``..`` or odd characters, or passes a link that leaves the root.
        """
        names = check_relative(relative)
        base = _real(self.path)
        target = f"{base}/{relative}"
        if not any(map(os.path.islink, accumulate(names, "{}/{}".format, initial=base))):
            return Path(target)
        real = os.path.realpath(target)
        if os.path.islink(real):  # what is left of a link to itself
            raise FormatError(f"{target}: a link leads nowhere; remove it")
        if real != target and not real.startswith(f"{base}/"):
            raise FormatError(f"{target}: a link leads outside the store {base}; remove it")
        return Path(target)

    def where(self, relative: str, /) -> str:
        """What messages call a file."""
        return str(self.local(relative))

    def prepare(self) -> None:
        """Make sure that a store can begin here.

        Raises:
            FormatError: There is a file, or a folder with other files.
        """
        try:
            with _readable(self.path):
                names = disk.listdir(self.path)
        except FileNotFoundError:
            return
        except NotADirectoryError as error:
            raise FormatError(f"{self.path}: expected a folder for the store, got a file") from error
        if any(not name.startswith(".") for name in names):
            raise FormatError(f"{self.path}: expected an empty folder or a store, found other files; choose another")

    def exists(self, relative: str, /) -> bool:
        """Whether a file or folder is there."""
        path = self.local(relative)
        try:
            with _readable(path):
                disk.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def stamp(self, relative: str, /) -> Stamp | None:
        """Identity of a regular file, or None when there is none."""
        path = self.local(relative)
        try:
            with _readable(path):
                info = disk.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return stamp_of(info) if stat.S_ISREG(info.st_mode) else None

    def is_link(self, relative: str, /) -> bool:
        """Whether a listed file is a link."""
        with _readable(self.path / relative):
            return disk.is_link(self.path / relative)

    def open(self, relative: str, /, *, sha256: str | None = None) -> LocalFile:
        """Open a file for reading by position; ``sha256`` is for the caller to check.

        Raises:
            OSError: It is missing, or the disk fails.
        """
        return LocalFile.open(self.local(relative))

    def read_bytes(self, relative: str, /, *, max_bytes: int) -> bytes:
        """Read a whole file of bounded size.

        Raises:
            CorruptShardError: It is missing, not a regular file, larger than the bound, or the disk fails.
        """
        path = self.local(relative)
        try:
            with contextlib.closing(LocalFile.open(path)) as file:
                if file.size > max_bytes:
                    raise CorruptShardError(
                        f"{path}: expected a file of at most {max_bytes} bytes, got {file.size}; run sak store verify"
                    )
                return file.read(0, file.size)
        except OSError as error:
            raise CorruptShardError(f"{path}: cannot be read ({error.strerror}); run sak store verify") from error

    def digest(self, relative: str, /) -> str:
        """SHA-256 of a file, read in blocks.

        Raises:
            CorruptShardError: It cannot be read.
        """
        path = self.local(relative)
        try:
            with contextlib.closing(LocalFile.open(path)) as file:
                return file.digest()
        except OSError as error:
            raise CorruptShardError(f"{path}: cannot be read ({error.strerror}); run sak store verify") from error

    def names(self, relative: str, /) -> list[str]:
        """Sorted names in a folder without temporary files and odd names; empty when there is no such folder."""
        folder = self.local(relative)
        try:
            with _readable(folder):
                found = disk.listdir(folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(name for name in found if is_name(name))

    def stamps(self, relative: str, /) -> dict[str, Stamp]:
        """``names`` of regular files in a folder, each with its stamp."""
        folder = self.local(relative)
        try:
            with _readable(folder):
                found = disk.scan(folder)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        return {name: stamp_of(info) for name, info in found if is_name(name) and stat.S_ISREG(info.st_mode)}

    def folders(self, relative: str, /) -> list[str]:
        """``names`` of real folders alone: neither files nor links."""
        base = self.path / relative
        with _readable(base):
            return [name for name in self.names(relative) if (base / name).is_dir() and not disk.is_link(base / name)]

    def files(self, relative: str | None = None, /) -> list[str]:
        """Sorted paths in the store of everything below a folder, or the root, that is not a folder itself.

        Temporary files are among them, and links, which are never followed.
        """
        found = []
        top = self.path if relative is None else self.path / relative
        with _readable(top):
            for folder, folders, names in disk.walk(top):
                base = Path(folder).relative_to(self.path)
                links = [name for name in folders if disk.is_link(Path(folder, name))]
                found += [(base / name).as_posix() for name in [*names, *links]]
        return sorted(found)

    def listing(self) -> dict[str, Stamp]:
        """Every regular file below the root, temporary ones included, with its stamp; links are left out."""
        found = {}
        for path in self.files():
            with contextlib.suppress(FileNotFoundError), _readable(self.path / path):
                info = disk.stat(self.path / path)
                if stat.S_ISREG(info.st_mode) and not disk.is_link(self.path / path):
                    found[path] = stamp_of(info)
        return found

    def abandoned(self) -> list[str]:
        """Temporary files whose writer has died: what ``clean`` removes."""
        with _readable(self.path):
            return [path for path in self.files() if _is_abandoned(self.path / path)]

    def is_locked(self, relative: str, /, *, alone: bool = False) -> bool | None:
        """Whether somebody holds a folder's lock at this moment; None where the file system has no locks.

        Args:
            alone: Only who holds it alone counts.
        """
        folder = self.local(relative)
        with _readable(folder):
            return is_taken(folder, alone=alone)

    def write_atomic(self, relative: str, data: bytes, /, *, replace: bool = False) -> None:
        """Write a file so that a reader sees the old one, or the whole new one, and a crash leaves no third case.

        Temporary name in the same folder, fsync, read back and compare digests, rename, fsync the folder.

        Args:
            replace: Without a meaning here: a file is always replaced.

        Raises:
            StoreError: The disk is full or fails; the temporary file is removed and the old file still stands.
        """
        path = self.local(relative)
        temporary = path.with_name(temporary_name())
        _live.add(temporary.name)
        try:
            with _explained(path):
                _make_folders(path.parent)
                if _write_durable(temporary, data) != hashlib.sha256(data).hexdigest():
                    raise StoreError(f"{path}: the disk returned other bytes than were written; check the disk")
                disk.replace(temporary, path)
                _sync_folder(path.parent)
        finally:
            with contextlib.suppress(OSError):
                disk.unlink(temporary)
            _live.discard(temporary.name)

    def remove(self, relative: str, /) -> None:
        """Remove a file durably; nothing happens when it is not there."""
        path = self.local(relative)
        with _explained(path), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            disk.unlink(path)
            _sync_folder(path.parent)

    def remove_tree(self, relative: str, /) -> None:
        """Remove a folder and everything below it, durably; links are removed and never followed."""
        top = self.local(relative)
        with _explained(top):
            if not top.is_dir():
                return
            for folder, folders, names in reversed(list(disk.walk(top))):
                links = [name for name in folders if disk.is_link(Path(folder, name))]
                for name in [*names, *links]:
                    disk.unlink(Path(folder, name))
                disk.rmdir(Path(folder))
            _sync_folder(top.parent)

    @contextlib.contextmanager
    def lock(self, relative: str, /, *, shared: bool = False) -> Iterator[None]:
        """Hold a folder's lock, which the system drops when its holder dies; leaves no file behind."""
        folder = self.local(relative)
        with _explained(folder):
            _make_folders(folder)
            descriptor = take(folder, shared=shared)
        try:
            yield
        finally:
            with _explained(folder):
                disk.close(descriptor)

    @contextlib.contextmanager
    def lock_name(self, relative: str, /) -> Iterator[None]:
        """Hold the lock of a name: of an empty folder, which a holder that dies leaves behind for the next."""
        folder = self.local(relative)
        with _explained(folder):
            _make_folders(folder.parent)
            descriptor = take_passing(folder)
        try:
            yield
        finally:
            with _explained(folder):
                drop_passing(folder, descriptor)

    def clean(self, relative: str | None, /, *, skip: Callable[[str], bool] | None = None) -> int:
        """Remove temporary files whose writer has died, below a folder or, for None, in the root alone.

        Args:
            skip: Folders, by their path in the store, that need no look.

        Returns:
            How many.
        """
        removed = 0
        top = self.path if relative is None else self.local(relative)
        with _explained(top):
            for folder, folders, names in disk.walk(top):
                if relative is None:
                    folders.clear()
                elif skip is not None:
                    inside = Path(folder).relative_to(top.parents[relative.count("/")])
                    folders[:] = [name for name in folders if not skip(f"{inside}/{name}")]
                for path in (Path(folder, name) for name in names if is_temporary(name)):
                    if _is_abandoned(path):
                        with contextlib.suppress(FileNotFoundError):
                            disk.unlink(path)
                            removed += 1
        return removed


@lru_cache(maxsize=64)
def _real(path: Path) -> str:
    """Where a root really is, asked once: every path in it is checked against this."""
    return os.path.realpath(path).rstrip("/")


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what the system says about a write into one line for the user."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be written ({error.strerror}); mend the cause and run the same command again"
        ) from error


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what the system says about a look at something into one line, but for the news that it is not there."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be read ({error.strerror}); mend the cause and run the same command again"
        ) from error


def _write_durable(path: Path, data: bytes) -> str:
    """Write and sync a new file; returns the digest of what reading it gives."""
    descriptor = disk.open_new(path)
    try:
        left = memoryview(data)
        while left:
            size = disk.write(descriptor, left)
            count(written=size)
            left = left[size:]
        disk.fsync(descriptor)
        return digest_of(descriptor)
    finally:
        disk.close(descriptor)


def _make_folders(folder: Path) -> None:
    """Create a folder and its parents, each made durable in the one above it."""
    if folder.is_dir():
        return
    _make_folders(folder.parent)
    with contextlib.suppress(FileExistsError):
        disk.mkdir(folder)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = disk.open_folder(folder)
    try:
        disk.fsync(descriptor)
    finally:
        disk.close(descriptor)


def _is_abandoned(path: Path) -> bool:
    maker = made_temporary(path.name)
    if maker is None or path.name in _live:
        return False
    if maker.is_dead() or (maker.here and maker.pid == os.getpid()):
        return True
    try:
        return time.time() - disk.stat(path).st_mtime > _ABANDONED_SECONDS
    except FileNotFoundError:
        return False
