"""Digests of bytes, of JSON values and of key lists: the identity of everything in a store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from store.errors import FormatError

__all__ = ["canonical_json", "digest_bytes", "digest_json", "digest_keys", "fingerprint", "plain_json"]

FINGERPRINT_CHARS = 16
_DEEPEST = 64


def canonical_json(value: object) -> bytes:
    """Encode a JSON value in its one canonical form: sorted keys, no spaces, UTF-8, no NaN.

    Raises:
        FormatError: The value is not JSON (another type, a NaN or infinity, a key that is no string), or nested more
            than 64 deep.
    """
    try:
        _require_plain(value, depth=0)
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise FormatError(f"expected a finite JSON value, got {str(value)[:200]!r}: {error}") from error


def plain_json(value: object) -> Any:
    """Return a fresh copy made of dict, list, str, int, float, bool and None only; tuples become lists.

    Raises:
        FormatError: The value is not JSON.
    """
    return json.loads(canonical_json(value))


def digest_bytes(data: bytes | memoryview) -> str:
    """SHA-256 of bytes, 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def digest_json(value: object) -> str:
    """SHA-256 of the canonical JSON form, 64 hex digits."""
    return digest_bytes(canonical_json(value))


def fingerprint(value: object) -> str:
    """First 16 hex digits of ``digest_json``: short enough for a folder name."""
    return digest_json(value)[:FINGERPRINT_CHARS]


def digest_keys(keys: Iterable[str]) -> str:
    """SHA-256 of an ordered list of sample keys; equal only for equal keys in equal order.

    Each key enters with its length in front, so that moving a boundary between two keys changes the digest.
    """
    state = hashlib.sha256()
    for key in keys:
        data = key.encode("utf-8")
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return state.hexdigest()


def _require_plain(value: object, *, depth: int) -> None:
    """``json.dumps`` would turn other keys into strings, and two different values would share a digest."""
    if depth > _DEEPEST:
        raise ValueError(f"nested more than {_DEEPEST} deep")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"key {key!r} is not a string")
            _require_plain(item, depth=depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            _require_plain(item, depth=depth + 1)
