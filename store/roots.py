"""From a path or URL to the root of a store there."""

from __future__ import annotations

import os
import re
from pathlib import Path

from store.errors import FormatError
from store.local_root import LocalRoot
from store.object_root import ObjectRoot
from store.root import DEFAULT_CACHE_BYTES, Root

__all__ = ["open_root"]

# A scheme before a colon: what other programs would open a pipe or a connection for.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def open_root(where: str | os.PathLike[str], /, *, cache_bytes: int = DEFAULT_CACHE_BYTES) -> Root:
    """The root at a local path or ``s3://bucket/prefix``; touches neither.

    Args:
        cache_bytes: Limit of the local cache of remote objects; 0 reads without one.

    Raises:
        FormatError: It is a URL of another kind, or of no plain prefix, or has control characters.
    """
    text = os.fspath(where)
    if text.startswith("s3://"):
        return ObjectRoot(text, cache_bytes=cache_bytes)
    if _SCHEME.match(text) or _CONTROL.search(text):
        raise FormatError(
            f"{text}: expected a local folder or s3://bucket/prefix; a folder with a colon in its name is ./name"
        )
    return LocalRoot(Path(text).absolute())
