"""The order of rows and of epochs: pure functions of integers, equal on every machine.

They sort raw output of the counter-based Philox generator, whose stream NumPy guarantees, because the streams of
``Generator.permutation`` may change between NumPy releases.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from store.errors import FormatError
from store.fingerprint import canonical_json
from store.spec import ViewSetSpec

__all__ = ["RowSamples", "epoch_rows", "image_permutation", "row_samples"]


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
    """Order in which one epoch visits the rows of one view: shards permuted, then rows in each window of shards.

    Epoch ``e`` visits view ``e % views``: every image once, as in training without a store, and images in the same
    order however many views there are. At any moment only ``window`` shards are being read, however large the store is.

    Shapes:
        returns: ``(images,)``, a permutation of the view's rows.

    Raises:
        FormatError: ``window`` is less than 1.
    """
    if window < 1:
        raise FormatError(f"epoch order: expected window >= 1, got {window}")
    view = epoch % spec.views
    shards = (view * spec.parts_per_view + _permutation(spec.parts_per_view, "shards", seed, epoch)).tolist()
    windows = []
    for first in range(0, len(shards), window):
        blocks = map(spec.part_rows, shards[first : first + window])
        inside = np.concatenate([np.arange(rows.start, rows.stop) for rows in blocks])
        windows.append(inside[_permutation(len(inside), "rows", seed, epoch, first)])
    return np.concatenate(windows)


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
