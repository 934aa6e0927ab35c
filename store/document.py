"""JSON documents that carry their kind, format version and own digest, so that any flipped byte in them is found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from store.errors import CorruptShardError, FormatError
from store.fingerprint import digest_json

__all__ = ["FORMAT_VERSION", "MAX_DOCUMENT_BYTES", "is_newer", "parse_document", "render_document"]

FORMAT_VERSION = 1
MAX_DOCUMENT_BYTES = 64 << 20
"""A bound on what a hostile store can make us parse."""


def render_document(kind: str, body: Mapping[str, Any]) -> bytes:
    """Render a document deterministically: equal bodies give equal bytes.

    Raises:
        FormatError: The body is not JSON, or has an integer that takes more than 64 bits.
    """
    content = {"body": dict(body), "format_version": FORMAT_VERSION, "kind": kind}
    content["sha256"] = digest_json(content)
    _require_64_bits(content)
    text = json.dumps(content, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8") + b"\n"


def parse_document(data: bytes, *, kind: str, where: str) -> dict[str, Any]:
    """Return the body of a document after checking its version, kind and every byte.

    Raises:
        FormatError: It is no document of this kind, or a newer program wrote it.
        CorruptShardError: It is one, but its bytes have changed since it was written.
    """
    try:
        content = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CorruptShardError(f"{where}: expected a JSON document, got {error}; run sak store verify") from error
    if not isinstance(content, dict) or not isinstance(content.get("body"), dict):
        raise FormatError(f"{where}: expected a {kind} document, got other JSON; is this a sak store?")
    version = content.get("format_version")
    if type(version) is not int or version > FORMAT_VERSION:
        raise FormatError(
            f"{where}: format version {version!r} is newer than {FORMAT_VERSION}, which this sak reads; upgrade sak"
        )
    if content.get("kind") != kind:
        raise FormatError(f"{where}: expected a {kind} document, got kind {content.get('kind')!r}")
    body: dict[str, Any] = content["body"]
    try:
        sound = render_document(kind, body) == data
    except FormatError as error:
        raise FormatError(f"{where}: {error}") from error
    if not sound:
        raise CorruptShardError(f"{where}: its bytes differ from its own digest; run sak store verify")
    return body


def is_newer(data: bytes, /) -> bool:
    """Whether a newer program wrote this document, and no byte of it has changed since."""
    try:
        content = json.loads(data.decode("utf-8"))
        version, digest = content.get("format_version"), content.pop("sha256")
        return type(version) is int and version > FORMAT_VERSION and bool(digest_json(content) == digest)
    except (ValueError, RecursionError, AttributeError, KeyError):
        return False


def _require_64_bits(value: object) -> None:
    """Other languages read documents too."""
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        raise FormatError("expected integers of at most 64 bits")
    if isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            _require_64_bits(item)
