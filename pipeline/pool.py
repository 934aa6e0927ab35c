"""Parts of a view set made by worker processes, which end with the process that started them."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeAlias, TypeVar

from pipeline.config import DataConfig
from pipeline.errors import PipelineError
from pipeline.viewsets import end_with_parent
from store.viewset import ViewSet

__all__ = ["Make", "interrupts_held", "parts_done"]

T = TypeVar("T")
Make: TypeAlias = Callable[[str, str, int, DataConfig], T]
"""Work on one part, given the store's URL, the view set's name, the part and the data; it must pickle."""


def parts_done(
    make: Make[T], view_set: ViewSet, parts: Sequence[int], /, *, data: DataConfig, workers: int
) -> Iterator[T]:
    """What ``make`` gives for parts, as each is done.

    Raises:
        PipelineError: A worker was killed.
    """
    root, name = view_set.root.url, view_set.name
    if workers <= 1:
        for part in parts:
            yield make(root, name, part, data)
        return
    # spawn: a forked child of a process that has run torch can deadlock in its thread pool.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_parent) as pool:
        with interrupts_held():
            futures = [pool.submit(make, root, name, part, data) for part in parts]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise PipelineError(
                f"views {name}: a worker process was killed, most often for want of memory; lower extract.workers"
                f" (now {workers}) or rows_per_shard and rerun: finished shards are kept"
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back for a moment: a process started meanwhile inherits that, and so its parent alone answers."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
