"""Where a store is: what every kind of root offers, and the names that are safe in one.

``LocalRoot`` is a local folder, ``ObjectRoot`` a prefix in an S3-compatible object store. Everything that touches
storage goes through the protocol ``Root``; docs/object-stores.md says what each kind guarantees.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from itertools import count
from pathlib import Path
from typing import NamedTuple, Protocol

from store.errors import FormatError

__all__ = [
    "DEFAULT_CACHE_BYTES",
    "Root",
    "Stamp",
    "StoredFile",
    "TemporaryMaker",
    "check_name",
    "check_relative",
    "is_name",
    "is_temporary",
    "made_temporary",
    "temporary_name",
]

DEFAULT_CACHE_BYTES = 20 << 30

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_TEMPORARY = re.compile(r"\.tmp-(?P<host>[A-Za-z0-9_]+)-(?P<pid>\d+)-\d+")

_serial = count()


class Stamp(NamedTuple):
    """What tells one version of a file from the next without reading it: an inode number, or an object's ETag."""

    identity: int | str
    size: int
    modified_ns: int


class TemporaryMaker(NamedTuple):
    """Who made a temporary file: whether on this machine, and as which process."""

    here: bool
    pid: int

    def is_dead(self) -> bool:
        """Whether that process was one of this machine's and is gone."""
        if not self.here:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except (PermissionError, OverflowError):
            pass
        return False


class StoredFile(Protocol):
    """One open file or object; reads by position, so that threads may share it."""

    @property
    def size(self) -> int:
        """Bytes in it when it was opened."""

    @property
    def stamp(self) -> Stamp:
        """Identity of what was opened."""

    def read(self, offset: int, size: int, /) -> bytes:
        """Bytes from a position; fewer only where the file ends.

        Raises:
            OSError: The disk fails, or the object has been replaced; ``strerror`` says what.
            UnreachableError: The network or the service fails.
        """

    def digest(self) -> str:
        """SHA-256 of the whole.

        Raises:
            OSError: As in ``read``.
            UnreachableError: As in ``read``.
        """

    def close(self) -> None:
        """Let it go; a second time does nothing."""


class Root(Protocol):
    """A store's folder or prefix, addressed by relative posix paths that cannot leave it.

    It can be sent to other processes. Every method that takes a path raises FormatError for one that is absolute, has
    ``..`` or odd characters, or leads outside, and every one UnreachableError when the network or the service fails.
    """

    @property
    def url(self) -> str:
        """What messages call the store, and what ``store.roots.open_root`` opens it by."""

    @property
    def overwrites(self) -> bool:
        """Whether ``write_atomic`` replaces what is there; else it creates, and leftovers are removed first."""

    def where(self, relative: str, /) -> str:
        """What messages call a file."""

    def local(self, relative: str, /) -> Path:
        """Path on the local disk, for libraries that open paths themselves.

        Raises:
            StoreError: The store is not on a local disk.
        """

    def prepare(self) -> None:
        """Make sure that a store can begin here.

        Raises:
            FormatError: Something else is here.
            StoreError: The place cannot hold a store.
        """

    def exists(self, relative: str, /) -> bool:
        """Whether a file or folder is there."""

    def stamp(self, relative: str, /) -> Stamp | None:
        """Identity of a regular file, or None when there is none."""

    def is_link(self, relative: str, /) -> bool:
        """Whether something listed is a link."""

    def open(self, relative: str, /, *, sha256: str | None = None) -> StoredFile:
        """Open a file for reading by position.

        Args:
            sha256: What it should hold: a local copy of a remote object that holds anything else is refused. What is
                read in place is for the caller to check.

        Raises:
            OSError: It is missing, or the disk fails; ``strerror`` says what.
        """

    def read_bytes(self, relative: str, /, *, max_bytes: int) -> bytes:
        """Read a whole file of bounded size.

        Raises:
            CorruptShardError: It is missing, larger than the bound, or cannot be read.
        """

    def digest(self, relative: str, /) -> str:
        """SHA-256 of a file as it is in the store now, read in blocks.

        Raises:
            CorruptShardError: It cannot be read.
        """

    def names(self, relative: str, /) -> list[str]:
        """Sorted names in a folder without temporary files and odd names; empty when there is no such folder."""

    def stamps(self, relative: str, /) -> dict[str, Stamp]:
        """``names`` of regular files in a folder, each with its stamp: all from one listing.

        They are to be compared with each other alone: an object's times may be finer in one answer than in another.
        """

    def folders(self, relative: str, /) -> list[str]:
        """``names`` of real folders alone: neither files nor links."""

    def files(self, relative: str | None = None, /) -> list[str]:
        """Sorted paths in the store of everything below a folder, or the root, that is not a folder itself.

        Links and temporary files are among them.
        """

    def listing(self) -> dict[str, Stamp]:
        """Every regular file below the root, temporary ones included, with its stamp; links are left out."""

    def abandoned(self) -> list[str]:
        """Temporary files whose writer has died: what ``clean`` removes."""

    def is_locked(self, relative: str, /, *, alone: bool = False) -> bool | None:
        """Whether somebody holds a folder's lock at this moment; None where nothing is locked, as on object stores.

        Args:
            alone: Only who holds it alone counts.
        """

    def write_atomic(self, relative: str, data: bytes, /, *, replace: bool = False) -> None:
        """Write a file that readers see whole or not at all, whatever happens meanwhile.

        Args:
            replace: Write over another content even where ``overwrites`` is false; for files that no record vouches
                for.

        Raises:
            ConflictError: Another content is there, and ``overwrites`` is false.
            StoreError: The disk is full, or the disk or network fails; what was there before still stands.
        """

    def remove(self, relative: str, /) -> None:
        """Remove a file durably; nothing happens when it is not there."""

    def remove_tree(self, relative: str, /) -> None:
        """Remove a folder and everything below it."""

    def lock(self, relative: str, /, *, shared: bool = False) -> AbstractContextManager[None]:
        """Hold a folder's lock where ``overwrites`` needs one; on object stores nothing.

        Nobody is first in line: who wants it alone waits while others who share it come and go.
        """

    def lock_name(self, relative: str, /) -> AbstractContextManager[None]:
        """Hold the lock of a name under which nothing is stored, where ``overwrites`` needs one."""

    def clean(self, relative: str | None, /, *, skip: Callable[[str], bool] | None = None) -> int:
        """Remove temporary files whose writer has died, below a folder or, for None, in the root alone.

        Where objects are never half written, none are looked for in folders of the folder.

        Args:
            skip: Folders, by their path in the store, that need no look.

        Returns:
            How many.
        """


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


def is_name(name: str, /) -> bool:
    """Whether a listed name is one that a path in a store can have; what others left there is for verify to tell."""
    return _NAME.fullmatch(name) is not None


def check_relative(relative: str, /) -> list[str]:
    """Parts of a relative path.

    Raises:
        FormatError: It is absolute, has ``..``, empty parts or odd characters.
    """
    parts = relative.split("/")
    if not all(_NAME.fullmatch(part) for part in parts):
        raise FormatError(f"expected a plain relative path inside the store, got {relative!r}")
    return parts


def temporary_name() -> str:
    """A new name for a write in flight."""
    return f".tmp-{_host()}-{os.getpid()}-{next(_serial)}"


def is_temporary(name: str) -> bool:
    """Whether a file name is that of a write in flight or of one that died."""
    return _TEMPORARY.fullmatch(name) is not None


def made_temporary(name: str, /) -> TemporaryMaker | None:
    """Who made a temporary file, from its name; None for another name."""
    match = _TEMPORARY.fullmatch(name)
    return TemporaryMaker(match["host"] == _host(), int(match["pid"])) if match else None


@cache
def _host() -> str:
    """The machine and its space of process numbers, as far as the system tells them apart.

    Machines and containers may share a host name and a disk, and a process number of one says nothing in another.
    """
    name = re.sub(r"[^A-Za-z0-9_]", "_", socket.gethostname())[:50] or "host"
    marks = [_mark(lambda: Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))]
    marks.append(_mark(lambda: os.readlink("/proc/self/ns/pid")))
    return f"{name}_{hashlib.sha256(repr(marks).encode()).hexdigest()[:8]}"


def _mark(read: Callable[[], str]) -> str:
    try:
        return read()
    except OSError:  # another system
        return ""
