"""Requests to one bucket of an S3-compatible service, counted, with failures as OSError.

The only module that knows ``obstore``. Nothing is decided here: what the requests add up to is in
``store.object_root`` and ``store.object_cache``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from store.crossings import count
from store.errors import StoreError, UnreachableError

if TYPE_CHECKING:
    from obstore.store import S3Store

__all__ = ["Children", "ObjectClient", "ObjectInfo", "ReplacedError", "Traffic", "TransferError", "Whole"]

_CONNECT_SECONDS = 10
_READ_SECONDS = 60
_WRITE_SECONDS = 15 * 60  # one request carries up to 5 GiB
_RETRIES = 5
_RETRY_SECONDS = 120

_processes: set[int] = set()
"""The process that connected first. In a child forked from it every request would wait for ever."""


class TransferError(OSError):
    """The network or the service failed; ``strerror`` says how."""


class ReplacedError(OSError):
    """The object is no longer the one that was opened."""


class ObjectInfo(NamedTuple):
    """What a service tells of an object: its whole key, and an ETag that changes with its content."""

    key: str
    size: int
    etag: str
    modified_ns: int


class Whole(NamedTuple):
    """An object with its content, None where it is too large."""

    info: ObjectInfo
    data: bytes | None


class Children(NamedTuple):
    """Names directly below a prefix."""

    objects: tuple[str, ...]
    folders: tuple[str, ...]


@dataclass(slots=True)
class Traffic:
    """Requests made, by kind, and bytes of content sent and received; retries are not counted."""

    requests: Counter[str] = field(default_factory=Counter)
    sent: int = 0
    received: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def count(self, kind: str, /, *, sent: int = 0, received: int = 0) -> None:
        """Add one request."""
        with self._lock:
            self.requests[kind] += 1
            self.sent += sent
            self.received += received
        count(read=received, written=sent)


class ObjectClient:
    """One bucket. Credentials, endpoint and region come from the usual ``AWS_*`` environment variables.

    Attributes:
        service: Tells this service's buckets from those of the same name elsewhere.

    Raises:
        StoreError: obstore is not installed, or a variable has a value that it refuses.
    """

    def __init__(self, bucket: str) -> None:
        self.bucket = bucket
        self.service = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "aws"
        self.traffic = Traffic()
        self._reader = _connect(bucket, seconds=_READ_SECONDS)
        self._writer = _connect(bucket, seconds=_WRITE_SECONDS)

    def put(self, key: str, data: bytes, /, *, create: bool) -> str:
        """Store an object in one atomic request; returns its ETag, empty when the service gives none.

        The service refuses other bytes than these: their SHA-256 is part of the request, signed and as a checksum.

        Raises:
            FileExistsError: ``create``, and there is one already.
            TransferError: The service or the network fails.
        """
        import obstore

        self.traffic.count("put", sent=len(data))
        with _explained():
            result = obstore.put(self._writer, key, data, mode="create" if create else "overwrite", use_multipart=False)
        return result["e_tag"] or ""

    def head(self, key: str, /) -> ObjectInfo:
        """What the service knows of an object.

        Raises:
            FileNotFoundError: There is none.
            TransferError: The service or the network fails.
        """
        import obstore

        self.traffic.count("head")
        with _explained():
            return _info(obstore.head(self._reader, key))

    def get(self, key: str, /, *, start: int, stop: int, etag: str) -> bytes:
        """Bytes of an object from ``start`` to before ``stop``, as long as it is still the one with this ETag.

        Raises:
            ReplacedError: It has another ETag by now, or is gone.
            TransferError: The service or the network fails, or gives another range.
        """
        import obstore

        if stop <= start:
            return b""
        with _explained(opened=True):
            result = obstore.get(self._reader, key, options={"range": (start, stop), "if_match": etag or None})
            given = tuple(result.range)
            data = bytes(result.bytes()) if given == (start, stop) else b""
        self.traffic.count("get", received=len(data))
        if given != (start, stop) or len(data) != stop - start:
            raise TransferError(errno.EIO, f"expected bytes {start} to {stop}, got {given[0]} to {given[1]}")
        return data

    def get_whole(self, key: str, /, *, max_bytes: int) -> Whole:
        """An object and its content in one request; no content when it is larger than the bound.

        Raises:
            FileNotFoundError: There is none.
            TransferError: The service or the network fails.
        """
        import obstore

        with _explained():
            result = obstore.get(self._reader, key)
            info = _info(result.meta)
            data = bytes(result.bytes()) if info.size <= max_bytes else None
        self.traffic.count("get", received=len(data or b""))
        if data is not None and len(data) != info.size:
            raise TransferError(errno.EIO, f"expected {info.size} bytes, got {len(data)}")
        return Whole(info, data)

    def list(self, prefix: str, /) -> Iterator[list[ObjectInfo]]:
        """Objects whose key begins with a prefix that ends in a slash, a page at a time.

        Raises:
            TransferError: The service or the network fails, or a key has empty or dotted parts.
        """
        import obstore

        self.traffic.count("list")
        with _explained():
            pages = iter(obstore.list(self._reader, prefix or None, chunk_size=1000))
        while True:
            with _explained():
                page = next(pages, None)
            if page is None:
                return
            yield [_info(item) for item in page]

    def children(self, prefix: str, /) -> Children:
        """What lies directly below a prefix that ends in a slash.

        Raises:
            TransferError: As in ``list``.
        """
        import obstore

        self.traffic.count("list")
        with _explained():
            found = obstore.list_with_delimiter(self._reader, prefix or None)
        start = len(prefix)
        objects = tuple(item["path"][start:] for item in found["objects"])
        return Children(objects, tuple(path[start:].rstrip("/") for path in found["common_prefixes"]))

    def delete(self, key: str, /) -> None:
        """Remove an object; nothing happens when there is none.

        Raises:
            TransferError: The service or the network fails.
        """
        import obstore

        self.traffic.count("delete")
        with contextlib.suppress(FileNotFoundError), _explained():
            obstore.delete(self._writer, key)


def _connect(bucket: str, *, seconds: int) -> S3Store:
    try:
        from obstore.exceptions import BaseError
        from obstore.store import S3Store
    except ImportError as error:
        raise StoreError(f"s3://{bucket}: object stores need obstore; pip install 'sak-distill[s3]'") from error
    if not _processes:
        _processes.add(os.getpid())
    # Options given here hide those of the environment, so the one that matters is passed on.
    plain = os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true", "yes")
    try:
        return S3Store(
            bucket,
            config={"checksum_algorithm": "SHA256"},
            client_options={
                "allow_http": plain,
                "connect_timeout": timedelta(seconds=_CONNECT_SECONDS),
                "timeout": timedelta(seconds=seconds),
            },
            retry_config={"max_retries": _RETRIES, "retry_timeout": timedelta(seconds=_RETRY_SECONDS)},
        )
    except (BaseError, ValueError) as error:
        raise StoreError(f"s3://{bucket}: {_first_line(error)}; check the AWS_* environment variables") from error


@contextlib.contextmanager
def _explained(*, opened: bool = False) -> Iterator[None]:
    """Turn what obstore raises into OSError with one line of text."""
    from obstore import exceptions

    if _processes != {os.getpid()}:
        raise UnreachableError(
            "a forked process cannot use the object store that its parent has used: obstore's threads stayed behind; "
            "start worker processes with spawn or forkserver"
        )
    try:
        yield
    except FileNotFoundError as error:
        if opened:
            raise ReplacedError(errno.ESTALE, "the object has been removed since it was opened") from error
        raise FileNotFoundError(errno.ENOENT, "no such object") from error
    except exceptions.AlreadyExistsError as error:
        raise FileExistsError(errno.EEXIST, "there is an object already") from error
    except exceptions.PreconditionError as error:
        raise ReplacedError(errno.ESTALE, "the object has been replaced since it was opened") from error
    except exceptions.InvalidPathError as error:
        raise TransferError(errno.EINVAL, f"a name with empty or dotted parts: {_first_line(error)}") from error
    except (exceptions.BaseError, OSError, ValueError) as error:
        raise TransferError(errno.EIO, _first_line(error)) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0][:300]


def _info(item: Any) -> ObjectInfo:
    modified = int(item["last_modified"].timestamp() * 1_000_000) * 1000
    return ObjectInfo(item["path"], item["size"], item["e_tag"] or "", modified)
