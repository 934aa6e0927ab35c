"""Work ahead and behind: threads of one producer or consumer, bounded, ended whatever happens."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

__all__ = ["Behind", "Room", "ahead"]

T = TypeVar("T")
_POLL_SECONDS = 0.1


class _End(NamedTuple):
    error: BaseException | None


def ahead(items: Iterable[T], /, *, count: int) -> Generator[T, None, None]:
    """The same items, of which a thread makes so many before they are asked for.

    An error in making an item is raised when that item is asked for, so that errors come in the order of the items.
    Close the generator, and the thread has ended.
    """
    ready: queue.Queue[T | _End] = queue.Queue(maxsize=count)
    closed = threading.Event()

    def put(item: T | _End) -> None:
        while not closed.is_set():
            try:
                return ready.put(item, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
        return None

    def work() -> None:
        try:
            for item in items:
                put(item)
                if closed.is_set():
                    return
            put(_End(None))
        except BaseException as error:
            put(_End(error))

    thread = threading.Thread(target=copy_context().run, args=(work,), name="sak-ahead", daemon=True)
    thread.start()
    try:
        while True:
            item = ready.get()
            if not isinstance(item, _End):
                yield item
            elif item.error is None:
                return
            else:
                raise item.error
    finally:
        closed.set()
        thread.join()


class Room:
    """What the tasks of several ``Behind`` share.

    Args:
        times: How many times the tasks of one may be done at once; the memory they keep is that of one all the same.
    """

    def __init__(self, *, times: int = 1) -> None:
        self._times, self._change = times, threading.Condition()
        self._count = self._bytes = 0

    def enter(self, size: int, /, *, count: int, most_bytes: int) -> None:
        """Wait until a task of so many bytes may begin beside those that are being done."""

        def fits() -> bool:
            return self._count < count * self._times and (not self._count or self._bytes + size <= most_bytes)

        with self._change:
            self._change.wait_for(fits)
            self._count, self._bytes = self._count + 1, self._bytes + size

    def leave(self, size: int, /) -> None:
        """It is done."""
        with self._change:
            self._count, self._bytes = self._count - 1, self._bytes - size
            self._change.notify_all()


class _Task(NamedTuple):
    future: Future[object]
    size: int
    then: Callable[[Any], object]


class Behind:
    """Tasks done behind the thread that hands them over, in that order as far as results and errors go.

    Leaving the context waits for all. An error of a task is raised as soon as the tasks before it are done, when the
    next is handed over, at ``settle`` or at the end; there before an error of the context's own, which came later in
    the order of work, unless that is no ``Exception``, as Ctrl-C is none.

    Args:
        count: How many are done at once; 0: each when it is handed over, in the calling thread.
        most_bytes: Most that the tasks in hand may keep in memory; one alone may keep more.
        room: Shared with others, whose tasks count as well.
    """

    def __init__(self, count: int, *, most_bytes: int, room: Room | None = None) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="sak-behind") if count else None
        self._count, self._most_bytes, self._room = count, most_bytes, room or Room()
        self._tasks: deque[_Task] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        if self._pool is None:
            return
        # What has been handed over is whole: it is finished, also when what came after it failed.
        self._pool.shutdown(wait=True)
        if error is None or isinstance(error, Exception):
            self._settle(lambda: False)

    def hand(self, call: Callable[[], T], /, *, size: int, then: Callable[[T], object]) -> None:
        """Have a task done, and ``then`` with its result, in the thread that hands tasks over.

        Args:
            size: Bytes it keeps in memory until it is done.
        """
        if self._pool is None:
            then(call())
            return
        self._settle(lambda: len(self._tasks) < self._count and self._fits(size))
        self._room.enter(size, count=self._count, most_bytes=self._most_bytes)
        future: Future[object] = self._pool.submit(copy_context().run, call)
        future.add_done_callback(lambda _: self._room.leave(size))
        self._tasks.append(_Task(future, size, then))
        if size > self._most_bytes:
            self._settle(lambda: False)

    def settle(self) -> None:
        """Take note of tasks that are done by now."""
        self._settle(lambda: True)

    def _fits(self, size: int) -> bool:
        return sum(task.size for task in self._tasks) + size <= self._most_bytes

    def _settle(self, enough: Callable[[], bool]) -> None:
        """Take results in order: all that are there, and wait for more until there is room."""
        while self._tasks and (self._tasks[0].future.done() or not enough()):
            task = self._tasks.popleft()
            try:
                result = task.future.result()
            except BaseException:
                self._tasks.clear()  # what failed first is what is told
                raise
            task.then(result)
