"""Label maps that take long to derive from their annotation, made once and kept in the cache folder.

An entry is named after the SHA-256 of the annotation's bytes: the same file in another folder finds it, a changed one
does not, and nothing is ever written into a data set. Entries are written whole or not at all and end in their own
digest; one that is not as it should be is made again. All of ``labels/`` below the cache folder may be deleted.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import tempfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.tracking import CONSOLE
from store.object_cache import cache_folder

__all__ = ["derived_map"]

_HEAD = struct.Struct("<II")
_DIGEST_BYTES = 32


def derived_map(kind: str, source: bytes, /, *, make: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """A class map ``(H, W)``, from the cache if it is there.

    Args:
        kind: How it is derived, with a number to raise whenever the same bytes would give another map.
        source: The bytes it is derived from, and depends on alone.
        make: Derives it.

    Raises:
        BadImageError: As ``make``; nothing is kept then.
    """
    name = hashlib.sha256(source).hexdigest()
    path = cache_folder() / "labels" / kind / name[:2] / name
    found = _load(path)
    if found is not None:
        return found
    map_HW = make()
    try:
        _save(path, map_HW)
    except OSError as error:
        _tell(str(path.parent.parent), error.strerror or str(error))
    return map_HW


@cache
def _tell(folder: str, why: str) -> None:
    """Say once in each process that nothing is kept."""
    CONSOLE.print(f"{folder}: derived labels cannot be kept ({why}) and are made each time; set SAK_CACHE")


def _load(path: Path) -> NDArray[np.uint8] | None:
    try:
        data = path.read_bytes()
    except OSError:
        return None
    body, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if len(body) < _HEAD.size or hashlib.sha256(body).digest() != digest:
        return None
    height, width = _HEAD.unpack_from(body)
    return np.frombuffer(zlib.decompress(body[_HEAD.size :]), np.uint8).reshape(height, width).copy()


def _save(path: Path, map_HW: NDArray[np.uint8]) -> None:
    body = _HEAD.pack(*map_HW.shape) + zlib.compress(map_HW.tobytes())
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(body + hashlib.sha256(body).digest())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
