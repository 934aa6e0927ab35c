"""Reading ahead in threads, in order, with a bound on the memory that waits."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

__all__ = ["Ahead", "read_ahead"]

Job = TypeVar("Job")
Item = TypeVar("Item")


class Ahead(NamedTuple):
    """How much is read before it is asked for.

    Units:
        ``nbytes`` of what is read or being read and not yet taken; at least one item is, unless it is 0.
    """

    nbytes: int
    readers: int = 1


def read_ahead(
    jobs: Iterable[Job], read: Callable[[Job], Item], /, *, size: Callable[[Item], int], ahead: Ahead
) -> Generator[Item, None, None]:
    """Results of ``read``, in the order of the jobs.

    An error is raised where its result would have come. Closing the generator ends the threads.

    Args:
        jobs: Taken one at a time in the caller's thread, so that they may keep state.
        size: Bytes of a result. The largest so far stands for those that are still being read.
    """
    if not ahead.nbytes:
        yield from map(read, jobs)
        return
    todo, waiting, largest = iter(jobs), deque[Future[Item]](), 0
    with ThreadPoolExecutor(ahead.readers, thread_name_prefix="sak-loader") as pool:

        def fill() -> None:
            """As many as fit; until the first is there nothing is known of sizes, so one."""
            allowed = max(1, ahead.nbytes // largest) if largest else 1
            for job in itertools.islice(todo, max(0, allowed - len(waiting))):
                waiting.append(pool.submit(read, job))

        try:
            fill()
            while waiting:
                item = waiting.popleft().result()
                largest = max(largest, size(item), 1)
                fill()
                yield item
        finally:
            for future in waiting:
                future.cancel()
