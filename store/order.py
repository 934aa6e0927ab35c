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

from store.errors import FormatError, MissingRowsError
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
    rows_N = np.asarray(rows, dtype=np.int64)
    if rows_N.size and (rows_N.min() < 0 or rows_N.max() >= spec.rows):
        raise MissingRowsError(f"view set {spec.name}: expected rows from 0 to {spec.rows - 1}, got {list(rows)[:8]}")
    order = image_permutation(spec.images, order_seed=spec.order_seed)
    return RowSamples(image=order[rows_N % spec.images], view=rows_N // spec.images)


def epoch_rows(rows: int, rows_per_shard: int, *, seed: int, epoch: int, window: int) -> NDArray[np.int64]:
    """Order in which one epoch visits all rows: shards permuted, then rows permuted in each window of shards.

    At any moment only ``window`` shards are being read, however large the store is.

    Shapes:
        returns: ``(rows,)``, a permutation of ``0 .. rows - 1``.

    Raises:
        FormatError: ``rows_per_shard`` or ``window`` is less than 1.
    """
    if rows < 0 or rows_per_shard < 1 or window < 1:
        raise FormatError(
            f"epoch order: expected rows >= 0, rows_per_shard and window >= 1, got {rows}, {rows_per_shard}, {window}"
        )
    shards = _permutation(-(-rows // rows_per_shard), "shards", seed, epoch)
    windows = []
    for first in range(0, len(shards), window):
        starts = shards[first : first + window, None] * rows_per_shard
        inside = (starts + np.arange(rows_per_shard)).ravel()
        inside = inside[inside < rows]
        windows.append(inside[_permutation(len(inside), "rows", seed, epoch, first)])
    return np.concatenate(windows) if windows else np.empty(0, dtype=np.int64)


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
