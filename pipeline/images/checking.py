"""What is in a data set and what is wrong with it, by decoding every file of it once.

Legend: H, W rows and columns of a map; K its 256 possible classes.
"""

from __future__ import annotations

import multiprocessing
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError, PipelineError
from pipeline.images.labelled import ImageParts, LabelledFolder
from pipeline.images.registry import SourceRequest, open_source
from pipeline.images.sample import ImageSource
from pipeline.pool import interrupts_held
from pipeline.viewsets import end_with_parent
from sak.dense.registry import LABELS

__all__ = ["Found", "Labelled", "empty_tasks", "inspected"]

_CHUNK = 8  # images that a process takes at once
_AHEAD = 4  # chunks in the making or done for each process, so that none waits and little is kept


@dataclass(slots=True, kw_only=True)
class Labelled:
    """Label maps of one task: how much of them is labelled, and with what.

    Attributes:
        pixels: All pixels of the maps that could be decoded.
        known: Those with a label.
        classes_K: Pixels of each class; all zero for other tasks.
        low, high: Smallest and largest label that is no class.
    """

    pixels: int = 0
    known: int = 0
    classes_K: NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, dtype=np.int64))
    low: float = np.inf
    high: float = -np.inf

    def add(self, other: Labelled, /) -> None:
        """Count the maps of another one too."""
        self.pixels, self.known = self.pixels + other.pixels, self.known + other.known
        self.classes_K = self.classes_K + other.classes_K
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)


@dataclass(slots=True, kw_only=True)
class Found:
    """What some images of a split hold; ``faults`` are lines that name a file each."""

    images: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    tasks: dict[str, Labelled] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def add(self, other: Found, /) -> None:
        """Count other images too."""
        self.images += other.images
        self.sizes += other.sizes
        self.faults += other.faults
        for task, labelled in other.tasks.items():
            self.tasks.setdefault(task, Labelled()).add(labelled)


def inspected(source: ImageSource, request: SourceRequest, /, *, workers: int) -> Iterator[Found]:
    """Decode all images of a source, some at a time, in their order.

    Args:
        request: What other processes open the source by.

    Raises:
        PipelineError: A process was killed.
    """
    images = len(source.keys())
    chunks = [range(first, min(first + _CHUNK, images)) for first in range(0, images, _CHUNK)]
    if workers <= 1:
        yield from (_inspect(source, chunk) for chunk in chunks)
        return
    # spawn: a forked child of a process that has run torch can deadlock in its thread pool.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(chunks)), mp_context=context, initializer=end_with_parent) as pool:
        try:
            yield from _in_order(pool, request, iter(chunks), ahead=_AHEAD * workers)
        except BrokenProcessPool as error:
            raise PipelineError(
                f"check: one of {workers} worker processes was killed, most often for want of memory; use fewer"
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _in_order(
    pool: ProcessPoolExecutor, request: SourceRequest, chunks: Iterator[range], *, ahead: int
) -> Iterator[Found]:
    waiting: deque[Future[Found]] = deque()
    while True:
        with interrupts_held():  # a submission may start a process
            waiting += [pool.submit(_inspect_opened, request, chunk) for chunk in islice(chunks, ahead - len(waiting))]
        if not waiting:
            return
        yield waiting.popleft().result()


# Of worker processes, which end with the check: nothing is changed while it is open.
_opened = lru_cache(maxsize=2)(open_source)


def _inspect_opened(request: SourceRequest, chunk: Sequence[int]) -> Found:
    return _inspect(_opened(request), chunk)


def _inspect(source: ImageSource, chunk: Sequence[int]) -> Found:
    found = Found()
    for index in chunk:
        parts = _read(source, index)
        found.images += 1
        found.faults += parts.faults
        if parts.image is not None:
            found.sizes[parts.image.shape[0], parts.image.shape[1]] += 1
        for task, label in parts.labels.items():
            counted = _count(task, label)
            found.tasks.setdefault(task, Labelled()).add(counted)
            found.faults += _out_of_range(source, index, task=task, labelled=counted)
    return found


def _read(source: ImageSource, index: int) -> ImageParts:
    if isinstance(source, LabelledFolder):
        return source.read_parts(index)
    try:
        sample = source.read(index)
    except DataError as error:
        return ImageParts(None, {}, (str(error),))
    return ImageParts(sample.image, sample.labels, ())


def _count(task: str, label: NDArray[np.generic]) -> Labelled:
    spec = LABELS[task]
    values = label.reshape(-1, spec.channels)
    if spec.stored == "uint8":
        classes_K = np.bincount(values[:, 0].astype(np.uint8), minlength=256).astype(np.int64)
        known = len(values) - int(classes_K[int(spec.invalid)])
        return Labelled(pixels=len(values), known=known, classes_K=classes_K)
    own = values[(values != spec.invalid).any(axis=1)].astype(np.float64)
    low, high = (float(own.min()), float(own.max())) if own.size else (np.inf, -np.inf)
    return Labelled(pixels=len(values), known=len(own), low=low, high=high)


def _out_of_range(source: ImageSource, index: int, *, task: str, labelled: Labelled) -> Iterable[str]:
    if not isinstance(source, LabelledFolder):
        return
    spec = LABELS[task]
    if spec.shown == "range" and labelled.known and labelled.low > spec.largest:
        yield (
            f"{source.label_file(index, task=task)}: expected {task} of at most {spec.largest:g} {spec.unit}, got"
            f" {labelled.low:g} to {labelled.high:g}; is it in another unit?"
        )


def empty_tasks(tasks: Mapping[str, Labelled], /) -> list[str]:
    """Tasks without a labelled pixel, or whose maps hold nothing but class 0."""
    return [
        name
        for name, found in tasks.items()
        if found.pixels and not (found.classes_K[1:255].any() if LABELS[name].stored == "uint8" else found.known)
    ]
