"""Counts of many images, by worker processes, in the order in which they are given.

What an image counts is a function of it alone: the number of processes changes no result.
"""

from __future__ import annotations

import hashlib
import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import NamedTuple, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.boundary.counts import Counted, Rules
from pipeline.boundary.files import Pair, decode_prediction, decode_truth
from pipeline.errors import BadImageError, PipelineError
from pipeline.images.files import read_file
from pipeline.pool import interrupts_held
from pipeline.viewsets import end_with_parent
from sak.boundary import image_counts
from sak.errors import SakError

__all__ = ["Counters", "FileJob", "MapJob", "Outcome", "count_all", "sha256"]

Outcome: TypeAlias = Counted | BadImageError
"""An image's counts, or why its files cannot be used."""

_AHEAD = 4  # jobs a process that wait for it: enough that none idles, few enough that their maps fit in memory


class FileJob(NamedTuple):
    """An image in files, and the kind that its label must be of."""

    rules: Rules
    pair: Pair
    kind: str

    def counted(self) -> Counted:
        """Read both files and count.

        Raises:
            BadImageError: A file is damaged, or does not fit the others; the message names it.
        """
        pair = self.pair
        data, label = read_file(pair.prediction), read_file(pair.label)
        prediction_HW = decode_prediction(data, where=str(pair.prediction))
        truth = decode_truth(label, where=str(pair.label))
        if truth.kind != self.kind:
            raise BadImageError(
                f"{pair.label}: expected a label of kind {self.kind} as the first one is, got {truth.kind};"
                " keep the labels of one data set in a folder"
            )
        try:
            counts_T4 = image_counts(
                prediction_HW, truth.labels_HW, max_dist=self.rules.max_dist, protocol=self.rules.protocol
            )
        except SakError as error:
            raise BadImageError(f"{pair.prediction}: {error}") from error
        height, width = prediction_HW.shape
        return Counted(pair.key, sha256(data), sha256(label), height, width, counts_T4)


class MapJob(NamedTuple):
    """An image in memory.

    Shapes:
        prediction_HW, labels_HW: ``(H, W)``.
    """

    rules: Rules
    key: str
    prediction_HW: NDArray[np.uint8]
    labels_HW: NDArray[np.generic]

    def counted(self) -> Counted:
        """Count it.

        Raises:
            SakError: The two maps do not fit.
        """
        counts_T4 = image_counts(
            self.prediction_HW, self.labels_HW, max_dist=self.rules.max_dist, protocol=self.rules.protocol
        )
        height, width = self.prediction_HW.shape
        prediction, label = sha256(self.prediction_HW.tobytes()), sha256(self.labels_HW.tobytes())
        return Counted(self.key, prediction, label, height, width, counts_T4)


def sha256(data: bytes, /) -> str:
    """Hex digest."""
    return hashlib.sha256(data).hexdigest()


class Counters:
    """Processes that count images, or none: a context that ends them.

    Args:
        workers: Processes; with 1 each image is counted here, when it is added.
    """

    def __init__(self, *, workers: int) -> None:
        self._workers = workers
        self._waiting: deque[Future[Outcome]] = deque()
        self._pool: ProcessPoolExecutor | None = None
        if workers > 1:
            # spawn: a forked child of a process that has run torch can deadlock in its thread pool.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_parent)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=error is not None)

    def add(self, job: FileJob | MapJob, /) -> None:
        """Have an image counted."""
        if self._pool is None:
            future: Future[Outcome] = Future()
            future.set_result(_outcome(job))
        else:
            with interrupts_held():  # the first submission starts the processes
                future = self._pool.submit(_outcome, job)
        self._waiting.append(future)

    def done(self, *, all_of_them: bool) -> Iterator[Outcome]:
        """Outcomes in the order of ``add``: of so many that the rest keeps the processes busy, or of all.

        Raises:
            PipelineError: A process was killed.
        """
        most = 0 if all_of_them or self._pool is None else _AHEAD * self._workers
        try:
            while len(self._waiting) > most:
                yield self._waiting.popleft().result()
        except BrokenProcessPool as error:
            raise PipelineError(
                f"boundary: one of {self._workers} worker processes was killed, most often for want of memory; use"
                " fewer and rerun"
            ) from error


def count_all(jobs: Iterable[FileJob], /, *, workers: int) -> Iterator[Outcome]:
    """Counts of each image, in order, or why its files cannot be used.

    Raises:
        PipelineError: A process was killed.
    """
    with Counters(workers=workers) as counters:
        for job in jobs:
            counters.add(job)
            yield from counters.done(all_of_them=False)
        yield from counters.done(all_of_them=True)


def _outcome(job: FileJob | MapJob) -> Outcome:
    try:
        return job.counted()
    except BadImageError as error:
        return error
