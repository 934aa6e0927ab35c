"""Threads for work that releases the interpreter: packing and unpacking rows, hashing, reading files."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

__all__ = ["available_threads", "map_threads", "pool", "processors"]

_MOST_THREADS = 4

_In = TypeVar("_In")
_Out = TypeVar("_Out")

# By process, because a fork keeps this table and loses the threads.
_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_threads() -> int:
    """A sensible number of threads: the processors that this process may use, at most 4.

    Readers stand beside a training step and often beside other readers, which need processors too.
    """
    return max(1, min(_MOST_THREADS, processors()))


def pool(threads: int, /) -> ThreadPoolExecutor:
    """The process's pool of so many threads; tasks in it must not wait for other tasks."""
    key = (os.getpid(), threads)
    found = _pools.get(key)
    # A pool that loses the race starts no thread, so this needs no lock, which a fork could leave locked for ever.
    return found or _pools.setdefault(key, ThreadPoolExecutor(threads, thread_name_prefix="sak-store"))


def map_threads(work: Callable[[_In], _Out], items: Sequence[_In], /, *, threads: int) -> list[_Out]:
    """Results in the order of the items; the first error is raised once all have ended."""
    if threads == 1 or len(items) < 2:
        return [work(item) for item in items]
    # In a copy of the caller's context each: what they move counts as the caller's (``store.crossings``).
    futures = [pool(threads).submit(copy_context().run, work, item) for item in items]
    errors = [error for future in futures if (error := future.exception()) is not None]
    if errors:
        raise errors[0]
    return [future.result() for future in futures]
