"""A store in an S3-compatible object store.

What stands in for the local disk's means: one PUT is atomic, as a rename is; objects are *created* (If-None-Match) and
never written over, so that the first writer wins, where a folder has a lock; a record is created after what it
describes. docs/object-stores.md states what follows for users.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from store.errors import ConflictError, CorruptShardError, FormatError, StoreError
from store.fingerprint import digest_bytes
from store.object_cache import Fetch, ObjectCache, cache_folder
from store.object_client import Children, ObjectClient, ObjectInfo, ReplacedError, Traffic
from store.object_file import ObjectFile, reached, stamp_object, unreachable
from store.root import (
    DEFAULT_CACHE_BYTES,
    Stamp,
    StoredFile,
    check_relative,
    is_name,
    is_temporary,
    made_temporary,
    temporary_name,
)

__all__ = ["ObjectRoot"]

_URL = re.compile(r"s3://(?P<bucket>[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9])(?:/(?P<prefix>.*))?")
_MD5 = re.compile(r"[0-9a-f]{32}")
_MAX_PUT_BYTES = 5 << 30
_ATTEMPTS = 5

_proven: set[tuple[str, str]] = set()
_proving = threading.Lock()


class ObjectRoot:
    """``s3://bucket/prefix``; see ``store.root.Root``. Connects on first use, and again in another process.

    Args:
        cache_bytes: Limit of the local cache; 0 reads ranges instead.

    Raises:
        FormatError: The URL is not one of a bucket and a plain prefix.
    """

    def __init__(self, url: str, /, *, cache_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        match = _URL.fullmatch(url.rstrip("/"))
        if match is None:
            raise FormatError(f"{url}: expected s3://bucket or s3://bucket/prefix")
        prefix = match["prefix"] or ""
        if prefix:
            check_relative(prefix)
        self.url = url.rstrip("/")
        self.cache_bytes = cache_bytes
        self._bucket: str = match["bucket"]
        self._prefix = f"{prefix}/" if prefix else ""
        self._cache = ObjectCache(cache_folder(), limit=cache_bytes) if cache_bytes else None
        self._made: ObjectClient | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[object, ...]:
        return (partial(ObjectRoot, cache_bytes=self.cache_bytes), (self.url,))

    @property
    def overwrites(self) -> bool:
        """An object is created once: what a dead writer left is removed before another content can take its place."""
        return False

    @property
    def traffic(self) -> Traffic:
        """Requests and bytes so far, of this process."""
        return self._client.traffic

    def where(self, relative: str, /) -> str:
        """What messages call an object."""
        return f"{self.url}/{'/'.join(check_relative(relative))}"

    def local(self, relative: str, /) -> Path:
        """Refused: there is no such path."""
        raise StoreError(f"{self.where(relative)}: expected a store in a local folder; copy the store to one first")

    def prepare(self) -> None:
        """Make sure that a store can begin here.

        Raises:
            FormatError: Other objects are here.
            StoreError: The service cannot be reached, or lacks conditional writes.
        """
        for page in self._pages(""):
            if any(not is_temporary(info.key.rpartition("/")[2]) for info in page):
                raise FormatError(
                    f"{self.url}: expected an empty prefix or a store, found other objects; choose another"
                )
        self._prove_conditional()

    def exists(self, relative: str, /) -> bool:
        """Whether an object is there, or any below it."""
        if self.stamp(relative) is not None:
            return True
        return any(self._pages(f"{relative}/"))

    def stamp(self, relative: str, /) -> Stamp | None:
        """Identity of an object, or None when there is none."""
        try:
            return stamp_object(self._head(relative))
        except FileNotFoundError:
            return None

    def is_link(self, relative: str, /) -> bool:
        """Object stores have no links."""
        return False

    def open(self, relative: str, /, *, sha256: str | None = None) -> StoredFile:
        """Open an object for reading by position: its local copy, or the object itself where there is no cache.

        Args:
            sha256: What it should hold: a local copy of anything else is refused and not kept.

        Raises:
            OSError: It is missing, or its local copy holds something else.
        """
        remote = ObjectFile(self._client, self._head(relative))
        if self._cache is None:
            return remote
        source = f"{self._client.service} {self.where(relative)}"
        fetch = Fetch(lambda start, stop: remote.read(start, stop - start), sha256)
        copy = self._cache.open(source, remote.stamp, fetch=fetch)
        if copy is not None and sha256 not in (None, copy.digest()):
            copy.close()
            raise OSError(errno.EIO, "its SHA-256 differs from the commit record")
        return copy or remote

    def read_bytes(self, relative: str, /, *, max_bytes: int) -> bytes:
        """Read a whole object of bounded size, never from the cache.

        Raises:
            CorruptShardError: It is missing, larger than the bound, or cannot be read.
        """
        with self._readable(relative), reached(self._client, self._key(relative)):
            info, data = self._client.get_whole(self._key(relative), max_bytes=max_bytes)
        if data is None:
            raise CorruptShardError(
                f"{self.where(relative)}: expected an object of at most {max_bytes} bytes, got {info.size}; "
                "run sak store verify"
            )
        return data

    def digest(self, relative: str, /) -> str:
        """SHA-256 of an object as it is in the store now, never of its local copy.

        Raises:
            CorruptShardError: It cannot be read.
        """
        with self._readable(relative):
            return ObjectFile(self._client, self._head(relative)).digest()

    def names(self, relative: str, /) -> list[str]:
        """Sorted names below a prefix, one level deep, without temporary ones."""
        found = self._children(relative)
        return sorted(name for name in {*found.objects, *found.folders} if is_name(name))

    def stamps(self, relative: str, /) -> dict[str, Stamp]:
        """``names`` of the objects directly below a prefix, each with its stamp."""
        below = "/".join(check_relative(relative)) + "/"
        start = len(self._prefix + below)
        found = {info.key[start:]: stamp_object(info) for page in self._pages(below) for info in page}
        return {name: stamp for name, stamp in found.items() if is_name(name)}

    def folders(self, relative: str, /) -> list[str]:
        """``names`` that have something below them."""
        return sorted(name for name in self._children(relative).folders if is_name(name))

    def files(self, relative: str | None = None, /) -> list[str]:
        """Sorted paths in the store of all objects below a prefix, or the root's, temporary ones included."""
        below = "" if relative is None else "/".join(check_relative(relative)) + "/"
        start = len(self._prefix)
        return sorted(info.key[start:] for page in self._pages(below) for info in page)

    def listing(self) -> dict[str, Stamp]:
        """``files``, each with its stamp."""
        start = len(self._prefix)
        return {info.key[start:]: stamp_object(info) for page in self._pages("") for info in page}

    def abandoned(self) -> list[str]:
        """Probes of processes that died: of this machine's, or of any a day ago."""
        return [path for path, stamp in self.listing().items() if _is_abandoned(path, stamp)]

    def write_atomic(self, relative: str, data: bytes, /, *, replace: bool = False) -> None:
        """Create an object, in one request that others see whole or not at all.

        The service compares the content with its SHA-256 before it accepts it. That it kept these bytes is proven by
        its ETag where that is their MD5, as it is for most services; else the object is read back.

        Args:
            replace: Write over what is there; for objects that no record vouches for.

        Raises:
            ConflictError: An object with another content is there, and ``replace`` is false.
            StoreError: The service or the network fails; nothing is created then, or all of it.
        """
        key, where = self._key(relative), self.where(relative)
        if len(data) > _MAX_PUT_BYTES:
            raise StoreError(
                f"{where}: expected at most 5 GiB in one object, got {len(data)} bytes; lower rows_per_shard"
            )
        self._prove_conditional()
        with self._writable(relative):
            for attempt in range(_ATTEMPTS):
                try:
                    etag = self._client.put(key, data, create=not replace)
                except FileExistsError:
                    standing = self._standing(key)
                    if standing == digest_bytes(data):  # ours, of a run before or a request sent twice, or an equal one
                        return
                    if standing is not None:
                        break
                    # The service refuses for a moment while another request creates or removes the object.
                    time.sleep(0.05 * 2**attempt)
                else:
                    self._check_kept(where, key, data, etag)
                    return
        raise ConflictError(
            f"{where}: another writer's object of other content is there; wait for that writer, or remove what a dead "
            "one left with sak store discard"
        )

    def remove(self, relative: str, /) -> None:
        """Remove an object; nothing happens when it is not there."""
        with self._writable(relative):
            self._client.delete(self._key(relative))

    def remove_tree(self, relative: str, /) -> None:
        """Remove everything below a prefix."""
        for path in self.files(relative):
            self.remove(path)

    def lock(self, relative: str, /, *, shared: bool = False) -> contextlib.AbstractContextManager[None]:
        """Nothing: creating objects decides who is first."""
        check_relative(relative)
        return contextlib.nullcontext()

    def lock_name(self, relative: str, /) -> contextlib.AbstractContextManager[None]:
        """Nothing, as ``lock``."""
        return self.lock(relative)

    def is_locked(self, relative: str, /, *, alone: bool = False) -> None:
        """Nobody can tell: there are no locks."""
        check_relative(relative)

    def clean(self, relative: str | None, /, *, skip: Callable[[str], bool] | None = None) -> int:
        """Remove probes of processes that died, directly below a prefix; objects are never half written."""
        prefix = self._prefix if relative is None else f"{self._key(relative)}/"
        removed = 0
        try:
            for name in filter(is_temporary, self._client.children(prefix).objects):
                with contextlib.suppress(FileNotFoundError):
                    if _is_abandoned(name, stamp_object(self._client.head(prefix + name))):
                        self._client.delete(prefix + name)
                        removed += 1
        except OSError as error:
            raise unreachable(self.url, "cleaned", error) from error
        return removed

    @property
    def _client(self) -> ObjectClient:
        with self._lock:
            if self._made is None:
                self._made = ObjectClient(self._bucket)
            return self._made

    def _key(self, relative: str) -> str:
        return self._prefix + "/".join(check_relative(relative))

    def _pages(self, relative: str) -> Iterator[list[ObjectInfo]]:
        try:
            yield from self._client.list(self._prefix + relative)
        except OSError as error:
            raise unreachable(f"{self.url}/{relative}", "listed", error) from error

    def _children(self, relative: str) -> Children:
        with reached(self._client, self._key(relative)):
            return self._client.children(f"{self._key(relative)}/")

    def _head(self, relative: str) -> ObjectInfo:
        key = self._key(relative)
        with reached(self._client, key):
            return self._client.head(key)

    def _standing(self, key: str) -> str | None:
        """SHA-256 of what is at a key, None for nothing."""
        try:
            return ObjectFile(self._client, self._client.head(key)).digest()
        except (FileNotFoundError, ReplacedError):
            return None

    def _check_kept(self, where: str, key: str, data: bytes, etag: str) -> None:
        tag = etag.strip('"').lower()
        if _MD5.fullmatch(tag) and tag == hashlib.md5(data, usedforsecurity=False).hexdigest():
            return
        standing = self._standing(key)
        if standing not in (digest_bytes(data), None):
            self._client.delete(key)
            raise StoreError(f"{where}: the service returned other bytes than were sent; check the service")

    def _prove_conditional(self) -> None:
        """Refuse a service that would let the second of two writers win, once in each process and bucket."""
        with _proving:
            bucket = (self._client.service, self._bucket)
            if bucket in _proven:
                return
            key = self._prefix + temporary_name()
            try:
                self._client.put(key, b"sak", create=True)
                try:
                    self._client.put(key, b"sak", create=True)
                except FileExistsError:
                    _proven.add(bucket)
                finally:
                    self._client.delete(key)
            except OSError as error:
                raise unreachable(self.url, "written", error) from error
            if bucket not in _proven:
                raise StoreError(
                    f"{self.url}: the service ignores If-None-Match, so two writers could damage each other's parts; "
                    "use a service with conditional writes, or write locally and copy"
                )

    @contextlib.contextmanager
    def _readable(self, relative: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CorruptShardError(
                f"{self.where(relative)}: cannot be read ({error.strerror}); run sak store verify"
            ) from error

    @contextlib.contextmanager
    def _writable(self, relative: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise unreachable(self.where(relative), "written", error) from error


def _is_abandoned(path: str, stamp: Stamp) -> bool:
    maker = made_temporary(path.rpartition("/")[2])
    if maker is None:
        return False
    return maker.is_dead() or time.time_ns() - stamp.modified_ns > 24 * 3600 * 10**9
