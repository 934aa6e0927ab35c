"""Memory for results that is used again once nobody holds them.

Fresh pages are zeroed by the system before a process may write to them, which costs a reader of large batches more than
checksums and file reads together. A training loop drops a batch about when it asks for the next one.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque

import numpy as np
from numpy.typing import NDArray

__all__ = ["BUFFERS", "Buffers"]

_SMALLEST = 64 << 10
_IDLE_BYTES = 512 << 20


class Buffers:
    """Hands out byte arrays; those whose last view is gone are handed out again. Threads may share it.

    Args:
        idle_bytes: Most bytes to keep that nobody uses; the ones longest unused are given back to the system first.
    """

    def __init__(self, idle_bytes: int = _IDLE_BYTES) -> None:
        self._idle_bytes = idle_bytes
        self._idle: deque[NDArray[np.uint8]] = deque()
        # Filled by finalizers, which run in any thread and in the middle of anything, so without the lock.
        self._returned: deque[NDArray[np.uint8]] = deque()
        self._lock = threading.Lock()

    def take(self, size: int, /) -> NDArray[np.uint8]:
        """A flat, writable array of so many bytes, with anything in them.

        Raises:
            MemoryError: There is not that much.
        """
        if size < _SMALLEST:
            return np.empty(size, dtype=np.uint8)
        memory = self._find(size)
        if memory is None:
            memory = np.empty(size, dtype=np.uint8)
        # Views of views refer to the array whose memory is not another array's: this one, whoever made them.
        lent = np.frombuffer(memory.data, dtype=np.uint8)
        weakref.finalize(lent, self._returned.append, memory).atexit = False
        return lent

    @property
    def idle_bytes(self) -> int:
        """Bytes kept that nobody uses."""
        with self._lock:
            self._sort_in()
            return sum(memory.nbytes for memory in self._idle)

    def _find(self, size: int) -> NDArray[np.uint8] | None:
        with self._lock:
            self._sort_in()
            for index, memory in enumerate(self._idle):
                if memory.nbytes == size:
                    del self._idle[index]
                    return memory
        return None

    def _sort_in(self) -> None:
        while self._returned:
            self._idle.append(self._returned.popleft())
        kept = sum(memory.nbytes for memory in self._idle)
        while kept > self._idle_bytes:
            kept -= self._idle.popleft().nbytes


BUFFERS = Buffers()
"""The process's own, for rows read from stores."""
