"""One remote object, read by ranges."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

from store.errors import UnreachableError
from store.object_client import ObjectClient, ObjectInfo, TransferError
from store.root import Stamp

__all__ = ["ObjectFile", "reached", "stamp_object", "unreachable"]

_BLOCK = 8 << 20


class ObjectFile:
    """One remote object read by ranges, as long as it is the one that was opened; see ``store.root.StoredFile``."""

    def __init__(self, client: ObjectClient, info: ObjectInfo) -> None:
        self._client = client
        self._info = info
        self.stamp = stamp_object(info)

    @property
    def size(self) -> int:
        """Bytes in it when it was opened."""
        return self._info.size

    def read(self, offset: int, size: int, /) -> bytes:
        """Bytes from a position, in one request; fewer only where the object ends.

        Raises:
            OSError: The object has been replaced or removed.
            UnreachableError: The service or the network fails.
        """
        stop = min(offset + size, self._info.size)
        with reached(self._client, self._info.key):
            return self._client.get(self._info.key, start=offset, stop=stop, etag=self._info.etag)

    def digest(self) -> str:
        """SHA-256 of the whole, read in blocks.

        Raises:
            OSError: As in ``read``.
            UnreachableError: As in ``read``.
        """
        state = hashlib.sha256()
        for offset in range(0, self._info.size, _BLOCK):
            state.update(self.read(offset, _BLOCK))
        return state.hexdigest()

    def close(self) -> None:
        """Nothing is held."""


@contextlib.contextmanager
def reached(client: ObjectClient, key: str, /) -> Iterator[None]:
    """Turn a failure of the service into one line for the user.

    Raises:
        UnreachableError: The service or the network failed.
    """
    try:
        yield
    except TransferError as error:
        raise unreachable(f"s3://{client.bucket}/{key}", "read", error) from error


def unreachable(where: str, verb: str, error: OSError, /) -> UnreachableError:
    """The error for what could not be done to an object."""
    return UnreachableError(
        f"{where}: cannot be {verb} ({error.strerror}); check the network and the AWS_* variables, and run the same "
        "command again"
    )


def stamp_object(info: ObjectInfo, /) -> Stamp:
    """Stamp of an object: its ETag, or its time where the service gives none."""
    return Stamp(info.etag or str(info.modified_ns), info.size, info.modified_ns)
