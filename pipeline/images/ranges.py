"""Files read by ranges, wherever they are: a local path, ``http://``, ``https://`` or ``s3://``; nothing else.

A file is the one that was opened: every read fails once another is in its place.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from email.message import Message
from functools import lru_cache
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple, Protocol

from pipeline.errors import DataError
from store.errors import UnreachableError, one_line
from store.local_file import LocalFile
from store.object_client import ObjectClient, ReplacedError, TransferError

__all__ = ["RangeFile", "is_remote", "open_range", "s3_names"]

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_REMOTE = ("http://", "https://", "s3://")
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
_S3 = re.compile(r"s3://([A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9])/(.+)")
_SECONDS = 60.0
_REMOTE_WINDOW = 8 << 20  # a request takes as long as some megabytes, and most images are smaller
_ATTEMPTS = 4
_CHECK = "check the address and the network, and run the same command again"


class RangeFile(Protocol):
    """One file.

    Attributes:
        where: What messages call it.
        size: Bytes in it.
        address: Tells it from every other file.
        identity: Tells this version of it from the next without reading it; empty where nothing does.
        window: Bytes that are worth asking for at once where a few are needed.
    """

    where: str
    address: str
    size: int
    identity: str
    window: int

    def read(self, offset: int, size: int, /) -> bytes:
        """Just these bytes.

        Raises:
            DataError: The file ends before, cannot be read, or is another one by now.
            UnreachableError: The network or the service fails.
        """
        ...


def is_remote(where: str, /) -> bool:
    """Whether it is a URL, of a kind that is read.

    Raises:
        DataError: It is a URL of another kind, such as ``pipe:``, which would start a program.
    """
    if where.startswith(_REMOTE):
        return True
    if _SCHEME.match(where) and not os.path.exists(where):
        kinds = ", ".join(_REMOTE)
        raise DataError(one_line(f"{where}: expected a path, or a URL that begins with {kinds}; no program is started"))
    return False


def open_range(where: str, /) -> RangeFile:
    """Find a file; its size and identity are asked for, and no byte of it is kept.

    Raises:
        DataError: There is none, it cannot be read, or its server gives no ranges.
        UnreachableError: The network or the service fails.
        StoreError: It is in an object store and obstore is not installed.
    """
    if not is_remote(where):
        return _LocalRange(Path(where))
    return _S3Range(where) if where.startswith("s3://") else _HttpRange(where)


def s3_names(prefix: str, /) -> list[str]:
    """URLs of all objects below an ``s3://bucket/folder/``, sorted.

    Raises:
        DataError: It is no such URL.
        UnreachableError: The network or the service fails.
    """
    bucket, key = _s3_parts(prefix)
    folder = key[: key.rfind("/") + 1]
    try:
        return sorted(f"s3://{bucket}/{info.key}" for page in _client_of(bucket).list(folder) for info in page)
    except TransferError as error:
        raise _unreachable(prefix, error.strerror) from error


class _LocalRange:
    window = 4096

    def __init__(self, path: Path) -> None:
        self.where, self._path = str(path), path.absolute()
        self.address = os.path.realpath(path)
        with self._opened() as file:
            self._stamp = file.stamp
        self.size = self._stamp.size
        self.identity = f"{self.size} bytes, modified {self._stamp.modified_ns}"

    def read(self, offset: int, size: int, /) -> bytes:
        # Opened for each read: a thousand shards would take a thousand descriptors, and opening costs microseconds.
        with self._opened() as file:
            if file.stamp != self._stamp:
                raise DataError(f"{self.where}: has changed since it was opened; run the same command again")
            data = file.read(offset, size)
        return _whole(data, size, where=self.where, offset=offset)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[LocalFile]:
        try:
            with contextlib.closing(LocalFile.open(self._path)) as file:
                yield file
        except FileNotFoundError as error:
            raise DataError(f"{self.where}: file not found; check the root in the recipe") from error
        except OSError as error:
            raise DataError(f"{self.where}: cannot be read ({error.strerror}); check the disk") from error


class _S3Range:
    window = _REMOTE_WINDOW

    def __init__(self, url: str) -> None:
        self.where = self.address = url
        bucket, self._key = _s3_parts(url)
        self._client = _client_of(bucket)
        try:
            self._info = self._client.head(self._key)
        except FileNotFoundError as error:
            raise DataError(f"{url}: no such object; check the root in the recipe") from error
        except TransferError as error:
            raise _unreachable(url, error.strerror) from error
        self.size = self._info.size
        self.identity = f"{self.size} bytes, {self._info.etag or self._info.modified_ns}"

    def read(self, offset: int, size: int, /) -> bytes:
        stop = min(offset + size, self.size)
        try:
            data = self._client.get(self._key, start=offset, stop=stop, etag=self._info.etag)
        except ReplacedError as error:
            raise DataError(f"{self.where}: {error.strerror}; run the same command again") from error
        except TransferError as error:
            raise _unreachable(self.where, error.strerror) from error
        return _whole(data, size, where=self.where, offset=offset)


class _Answer(NamedTuple):
    data: bytes
    first: int
    total: int
    headers: Message


class _HttpRange:
    window = _REMOTE_WINDOW

    def __init__(self, url: str) -> None:
        # A query may hold a signature, which belongs in no message and no log.
        try:
            parts = urllib.parse.urlsplit(url)
        except ValueError as error:
            raise DataError(one_line(f"{url.partition('?')[0]}: no URL ({error}); correct the root")) from error
        self._url, self.where = url, parts._replace(query="", fragment="").geturl()
        # Two queries may be two files, so an index is kept for each; its text stays out of the index's name.
        self.address = self.where + (f"?{hashlib.sha256(parts.query.encode()).hexdigest()}" if parts.query else "")
        answer = self._ask(0, 1)
        self.size, self._version = answer.total, _version(answer.headers)
        self.identity = f"{self.size} bytes, {self._version}" if self._version else ""

    def read(self, offset: int, size: int, /) -> bytes:
        if not size:
            return b""
        if offset >= self.size:
            return _whole(b"", size, where=self.where, offset=offset)
        answer = self._ask(offset, size)
        if (answer.total, _version(answer.headers)) != (self.size, self._version):
            raise DataError(f"{self.where}: has changed since it was opened; run the same command again")
        if answer.first != offset:
            raise _unreachable(self.where, f"asked for byte {offset}, got {answer.first}")
        return _whole(answer.data, size, where=self.where, offset=offset)

    def _ask(self, offset: int, size: int) -> _Answer:
        headers = {"Range": f"bytes={offset}-{offset + size - 1}", "Accept-Encoding": "identity"}
        request = urllib.request.Request(self._url, headers=headers)
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return self._answer(request, size)
            except urllib.error.HTTPError as error:
                error.close()
                if error.code in (404, 410):
                    raise DataError(
                        f"{self.where}: no such file ({error.code}); check the root in the recipe"
                    ) from error
                if error.code < 500 or attempt == _ATTEMPTS:
                    raise _unreachable(self.where, f"HTTP {error.code} {error.reason}") from error
            except (OSError, HTTPException, UnicodeError) as error:
                if attempt == _ATTEMPTS:
                    raise _unreachable(self.where, str(error) or type(error).__name__) from error
            time.sleep(0.1 * 4 ** (attempt - 1))
        raise AssertionError("unreachable")

    def _answer(self, request: urllib.request.Request, size: int) -> _Answer:
        with urllib.request.urlopen(request, timeout=_SECONDS) as response:
            match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range") or "")
            if response.status != 206 or match is None:
                raise DataError(f"{self.where}: its server gives no ranges of a file; copy the file to a local folder")
            first, last, total = (int(number) for number in match.groups())
            data = response.read(size + 1)
            if len(data) != last - first + 1:
                raise HTTPException(f"expected {last - first + 1} bytes, got {len(data)}")
            return _Answer(data, first, total, response.headers)


def _version(headers: Message) -> str:
    return headers.get("ETag") or headers.get("Last-Modified") or ""


def _whole(data: bytes, size: int, *, where: str, offset: int) -> bytes:
    if len(data) != size:
        raise DataError(f"{where}: ends at byte {offset + len(data)}, expected {offset + size}; the copy is incomplete")
    return data


def _s3_parts(url: str) -> tuple[str, str]:
    match = _S3.fullmatch(url)
    if match is None:
        raise DataError(one_line(f"{url}: expected s3://bucket/path; correct the root in the recipe"))
    return match[1], match[2]


def _client_of(bucket: str) -> ObjectClient:
    return _client(bucket, os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "")


@lru_cache(maxsize=8)
def _client(bucket: str, endpoint: str) -> ObjectClient:
    """One connection pool for a bucket of a service."""
    return ObjectClient(bucket)


def _unreachable(where: str, reason: str | None) -> UnreachableError:
    return UnreachableError(one_line(f"{where}: cannot be read ({reason}); {_CHECK}"))
