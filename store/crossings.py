"""Bytes of content that cross between this process and a store, counted where they cross.

Whoever wants to know what some work moved does it inside ``counted``; elsewhere nothing is counted.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

__all__ = ["Crossings", "count", "counted"]


@dataclass(slots=True)
class Crossings:
    """Bytes read from a store and written to it; what is read again to check it counts again."""

    read: int = 0
    written: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, read: int, written: int, /) -> None:
        """Count further; threads may."""
        with self._lock:
            self.read += read
            self.written += written


_current: ContextVar[Crossings | None] = ContextVar("crossings", default=None)


@contextmanager
def counted(into: Crossings | None = None, /) -> Iterator[Crossings]:
    """Count what this thread, and threads of ``store.workers`` that work for it, move meanwhile.

    Args:
        into: Where it is added to; None for a new count.
    """
    crossings = into or Crossings()
    token = _current.set(crossings)
    try:
        yield crossings
    finally:
        _current.reset(token)


def count(*, read: int = 0, written: int = 0) -> None:
    """Note what has just crossed."""
    crossings = _current.get()
    if crossings is not None:
        crossings.add(read, written)
