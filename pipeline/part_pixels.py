"""Pixels of a view set's parts, decoded batch by batch, ahead of the teachers where that pays.

Legend: N rows, H W rows and columns of an image.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.ahead import ahead
from pipeline.images.sample import ImageSample
from pipeline.pixels import decode_sample
from pipeline.viewsets import view_size
from store.costs import UNTIMED, Spent
from store.crossings import counted
from store.rows import ViewRow
from store.viewset import ViewSet
from store.workers import map_threads

__all__ = ["PartPixels", "Reading", "part_pixels", "parts_pixels"]


class Reading(NamedTuple):
    """How pixels are read: in batches of so many rows, each decoded by so many threads.

    Attributes:
        ahead: How many batches are decoded before they are asked for, by a thread of their own; 0: when asked for.
        pinned: Whether in page-locked memory: only from there are copies to a GPU asynchronous.
    """

    batch: int
    threads: int = 1
    ahead: int = 0
    pinned: bool = False


class PartPixels(NamedTuple):
    """A part's rows, which of them ``(N,)`` have an image, and their pixels; rows without an image are black.

    ``batches`` may be gone through again: uint8 ``(n, 3, H, W)`` of consecutive rows, all of them together the part.
    """

    rows: range
    usable: Tensor
    batches: Batches

    @property
    def pixels(self) -> Tensor:
        """All of them, ``(N, 3, H, W)``."""
        return torch.cat(list(self.batches))


class Batches:
    """Batches of one part, taken from a stream of batches when they are first asked for, and kept.

    An error in reading one is kept as well, and raised again: it is the end of the stream.
    """

    def __init__(self, stream: Iterator[_Read | _Head], count: int) -> None:
        self._stream, self._count = stream, count
        self._held: list[Tensor] = []
        self._error: Exception | None = None
        self._spent = UNTIMED

    def __iter__(self) -> Iterator[Tensor]:
        for index in range(self._count):
            if index == len(self._held):
                self._take()
            yield self._held[index]

    def _take(self) -> None:
        if self._error is not None:
            raise self._error
        try:
            read = next(self._stream)
        except Exception as error:
            self._error = error
            raise
        assert isinstance(read, _Read)
        self._held.append(read.pixels)
        self._spent = self._spent.plus(read.spent)

    def spent(self) -> Spent:
        """What reading took since this was last asked: the first of several teachers that share pixels reports it."""
        spent, self._spent = self._spent, UNTIMED
        return spent


class _Head(NamedTuple):
    """Announces a part in a stream of batches."""

    rows: range
    usable: Tensor
    batches: int


class _Read(NamedTuple):
    pixels: Tensor
    spent: Spent


def part_pixels(view_set: ViewSet, part: int, /, *, batch: int) -> PartPixels:
    """Pixels of one part, each batch read when it is asked for.

    Raises:
        StoreError: The part is not committed, or its bytes have changed; also while the batches are gone through.
    """
    stream = _part(view_set, part, True, Reading(batch))
    head = next(stream)
    assert isinstance(head, _Head)
    return PartPixels(head.rows, head.usable, Batches(stream, head.batches))


def parts_pixels(
    view_set: ViewSet, parts: Sequence[int], /, *, reading: Reading, wanted: Callable[[int], bool] = lambda _: True
) -> Generator[PartPixels, None, None]:
    """Pixels of parts, in their order; go through one part's batches before you take the next.

    No reader ever asks for a row without an image. Close the generator to end its thread.

    Args:
        wanted: Whether anyone will look at the pixels of a part; if not, they are not read.

    Raises:
        StoreError: A part is not committed, or its bytes have changed; also while the batches are gone through.
    """
    produced = (item for part in parts for item in _part(view_set, part, wanted(part), reading))
    stream = ahead(produced, count=reading.ahead) if reading.ahead else produced
    try:
        for head in stream:
            assert isinstance(head, _Head)
            yield PartPixels(head.rows, head.usable, Batches(stream, head.batches))
    finally:
        stream.close()


def _part(view_set: ViewSet, part: int, wanted: bool, reading: Reading) -> Iterator[_Head | _Read]:
    rows = view_set.spec.part_rows(part)
    usable = torch.tensor([row.error is None for row in view_set.index(part)], dtype=torch.bool)
    starts = range(0, len(rows), reading.batch)
    yield _Head(rows, usable, len(starts))
    size = view_size(view_set.spec)
    for start in starts:
        some = rows[start : start + reading.batch]
        if wanted:
            good = usable[start : start + reading.batch].numpy()
            yield _read(view_set, some, good.tolist(), reading)
        else:
            yield _Read(torch.zeros((), dtype=torch.uint8).expand(len(some), 3, *size), UNTIMED)


def _read(view_set: ViewSet, rows: range, usable: Sequence[bool], reading: Reading) -> _Read:
    start = time.perf_counter()
    pixels = torch.zeros((len(rows), 3, *view_size(view_set.spec)), dtype=torch.uint8, pin_memory=reading.pinned)
    good = [row for row, is_usable in zip(rows, usable, strict=True) if is_usable]
    with counted() as crossed:
        found = view_set.read_rows(good) if good else []
    fill = partial(_decode_into, pixels, rows.start)
    map_threads(fill, found, threads=reading.threads)
    return _Read(pixels, Spent(read=time.perf_counter() - start, read_bytes=crossed.read))


def _decode_into(pixels_N3HW: Tensor, first: int, row: ViewRow) -> None:
    # NumPy, because this may be a thread beside the one that runs the teacher: torch would start threads for each.
    sample: ImageSample = decode_sample(row.files, key=row.key, tasks=())
    np.copyto(pixels_N3HW.numpy()[row.row - first], sample.image.transpose(2, 0, 1))
