"""The order of rows and of epochs: pure functions of integers, equal on every machine.

They sort raw output of the counter-based Philox generator, whose stream NumPy guarantees, because the streams of
``Generator.permutation`` may change between NumPy releases.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from store.errors import FormatError
from store.fingerprint import canonical_json
from store.spec import ViewSetSpec

__all__ = ["EpochOrder", "RowSamples", "epoch_rows", "image_permutation", "row_samples"]

_KEPT_WINDOWS = 4


class RowSamples(NamedTuple):
    """Which image and which of its views each row holds; both int64 ``(rows,)``."""

    image: NDArray[np.int64]
    view: NDArray[np.int64]


def image_permutation(images: int, *, order_seed: int) -> NDArray[np.int64]:
    """Order of the images within every view.

    Shapes:
        returns: ``(images,)``, read-only; row ``view * images + i`` holds image ``perm[i]``.
    """
    return _image_order(images, order_seed)


def row_samples(spec: ViewSetSpec, /, *, rows: Sequence[int] | NDArray[np.int64]) -> RowSamples:
    """Image index and view number of rows.

    Raises:
        MissingRowsError: A row is not one of the view set's.
    """
    rows_N = spec.require_rows(rows)
    order = image_permutation(spec.images, order_seed=spec.order_seed)
    return RowSamples(image=order[rows_N % spec.images], view=rows_N // spec.images)


def epoch_rows(spec: ViewSetSpec, /, *, seed: int, epoch: int, window: int) -> NDArray[np.int64]:
    """The whole of an ``EpochOrder`` that leaves nothing out.

    Shapes:
        returns: ``(images,)``, a permutation of the view's rows.

    Raises:
        FormatError: ``window`` is less than 1.
    """
    order = EpochOrder(spec, seed=seed, epoch=epoch, window=window)
    return order.rows(0, len(order))


class EpochOrder:
    """Order in which one epoch visits the rows of one view: shards permuted, then rows in each window of shards.

    Epoch ``e`` visits view ``e % views``: every image once, as in training without a store, and images in the same
    order however many views there are. At any moment only ``window`` shards are being read, however large the store is,
    and no more rows than theirs are in memory: a window is computed when it is asked for.

    Args:
        leave_out: Rows to pass over, ascending, of any view; int64 ``(N,)``.

    Raises:
        FormatError: ``window`` is less than 1.
    """

    def __init__(
        self, spec: ViewSetSpec, /, *, seed: int, epoch: int, window: int, leave_out: NDArray[np.int64] | None = None
    ) -> None:
        if window < 1:
            raise FormatError(f"epoch order: expected window >= 1, got {window}")
        self._spec, self._key, self._window = spec, (seed, epoch), window
        view, count = epoch % spec.views, spec.parts_per_view
        outside = np.empty(0, np.int64) if leave_out is None else leave_out
        self._leave_out = outside[slice(*np.searchsorted(outside, (view * spec.images, (view + 1) * spec.images)))]
        order = _permutation(count, "shards", seed, epoch)
        self._shards = view * count + order
        sizes = np.full(count, spec.rows_per_shard)
        sizes[-1] = len(spec.part_rows(count - 1))
        sizes -= np.bincount(spec.parts_of(self._leave_out) - view * count, minlength=count)
        self._ends = np.cumsum(np.add.reduceat(sizes[order], np.arange(0, count, window)))
        self._made: OrderedDict[int, NDArray[np.int64]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def rows(self, start: int, stop: int, /) -> NDArray[np.int64]:
        """Rows from one place in the order to another, or to its end; int64 ``(stop - start,)``."""
        start, stop = max(start, 0), min(stop, len(self))
        if start >= stop:
            return np.empty(0, np.int64)
        first, last = np.searchsorted(self._ends, (start, stop - 1), side="right").tolist()
        begin = int(self._ends[first - 1]) if first else 0
        found = np.concatenate([self._rows_of(number) for number in range(first, last + 1)])
        return found[start - begin : stop - begin]

    def _rows_of(self, number: int) -> NDArray[np.int64]:
        with self._lock:
            if number not in self._made:
                self._made[number] = self._make(number * self._window)
            self._made.move_to_end(number)
            while len(self._made) > _KEPT_WINDOWS:
                self._made.popitem(last=False)
            return self._made[number]

    def _make(self, first: int) -> NDArray[np.int64]:
        blocks = map(self._spec.part_rows, self._shards[first : first + self._window].tolist())
        inside = np.concatenate([np.arange(rows.start, rows.stop) for rows in blocks])
        order = inside[_permutation(len(inside), "rows", *self._key, first)]
        return order[~np.isin(order, self._leave_out)] if len(self._leave_out) else order


@lru_cache(maxsize=4)
def _image_order(images: int, order_seed: int) -> NDArray[np.int64]:
    # Kept, because every part asks for it and sorting all images of a large set takes a good part of a second.
    order = _permutation(images, "images", order_seed)
    order.flags.writeable = False
    return order


def _permutation(size: int, *key: str | int) -> NDArray[np.int64]:
    """Sort 64-bit random numbers; ties, were there any, keep their order, so the result is always defined."""
    stream = int.from_bytes(hashlib.sha256(canonical_json(list(key))).digest()[:16], "little")
    draws = np.random.Philox(key=stream).random_raw(size)
    return np.argsort(draws, kind="stable").astype(np.int64)
