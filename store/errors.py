"""Errors that the store raises for its users' mistakes and for damaged data."""

from __future__ import annotations

__all__ = ["CorruptShardError", "FormatError", "MissingColumnError", "MissingRowsError", "StoreError"]


class StoreError(ValueError):
    """Base of every store error that a user can mend; the message says what, where and how."""


class FormatError(StoreError):
    """Metadata that is absent, malformed, unsafe or of another format version."""


class MissingColumnError(StoreError):
    """The store lacks a view set or column that was asked for."""


class MissingRowsError(StoreError):
    """Rows were asked for whose shard has no commit record."""


class CorruptShardError(StoreError):
    """Stored bytes differ from what their commit record says."""
