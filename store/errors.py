"""Errors that the store raises for its users' mistakes and for damaged data."""

from __future__ import annotations

__all__ = [
    "ConflictError",
    "CorruptShardError",
    "FormatError",
    "MissingColumnError",
    "MissingRowsError",
    "StoreError",
    "UnreachableError",
    "one_line",
]


_LONGEST = 2000


class StoreError(ValueError):
    """Base of every store error that a user can mend; the message says what, where and how, in one line.

    What a store holds gets into messages: control characters in it are escaped, and long texts are cut in the middle.
    """

    def __init__(self, message: str, /) -> None:
        super().__init__(one_line(message))


class FormatError(StoreError):
    """Metadata that is absent, malformed, unsafe or of another format version."""


class MissingColumnError(StoreError):
    """The store lacks a view set or column that was asked for."""


class MissingRowsError(StoreError):
    """Rows were asked for whose shard has no commit record."""


class CorruptShardError(StoreError):
    """Stored bytes differ from what their commit record says."""


class UnreachableError(ValueError):
    """A remote store could not be asked: nothing is known of what it holds.

    No StoreError, so that whoever collects what is wrong with a store stops instead of calling all of it damaged.
    """


class ConflictError(StoreError):
    """Another writer's content stands where an object was to be created."""


def one_line(message: str, /) -> str:
    """A message that prints on one line, whatever names and texts from a store are in it."""
    if len(message) > _LONGEST:
        message = f"{message[: _LONGEST // 2]} ... {message[-_LONGEST // 2 :]}"
    if message.isprintable():
        return message
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in message)
