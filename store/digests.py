"""What records say of a file: its size and SHA-256."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from store.fingerprint import digest_bytes

__all__ = ["ObjectDigest", "digest_objects", "parse_digest"]

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectDigest:
    """What a record says about one file."""

    sha256: str
    size: int


def digest_objects(objects: Mapping[str, bytes], /) -> dict[str, ObjectDigest]:
    """Digests of files."""
    return {path: ObjectDigest(sha256=digest_bytes(data), size=len(data)) for path, data in objects.items()}


def parse_digest(item: Mapping[str, Any], /) -> ObjectDigest:
    """A record's word on one file.

    Raises:
        TypeError: It is of another form.
        ValueError: It is no digest, or no size.
    """
    digest = ObjectDigest(**item)
    if not _SHA256.fullmatch(digest.sha256) or type(digest.size) is not int or digest.size < 0:
        raise ValueError(f"bad object digest {item!r}")
    return digest
