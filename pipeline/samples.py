"""A few rows of a view set, drawn in memory before any store has them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from pipeline.config import DataConfig
from pipeline.errors import BadImageError, PipelineError
from pipeline.pixels import decode_sample
from pipeline.tensors import to_tensors
from pipeline.viewsets import draw_rows, view_size
from store.rows import ViewRow
from store.spec import ViewSetSpec
from store.tarball import build_tar

__all__ = ["Drawn", "Sample", "image_bound", "image_cost"]

_COST_ROWS = 4
_MOST_DRAWN = 256
_IMAGE, _LABEL = 3, 6  # bytes a pixel: of an image, and of the widest label file, three float16


class Sample(NamedTuple):
    """Rows of a view set, drawn when asked for."""

    data: DataConfig
    spec: ViewSetSpec
    batch: int

    def pixels(self, numbers: Sequence[int]) -> Tensor:
        """Pixels ``(N, 3, H, W)`` uint8 of the rows that have an image; if none has, of the first row after them.

        Raises:
            PipelineError: None has, nor any of the next few hundred.
        """
        rows = _usable(draw_rows(self.data, self.spec, numbers=numbers))
        last = numbers[-1] + min(_MOST_DRAWN, self.spec.rows)
        following = iter(range(numbers[-1] + 1, last + 1))
        while not rows:
            number = next(following, None)
            if number is None:
                raise PipelineError(f"rows {numbers[0]} to {last % self.spec.rows} have no image; mend the source")
            rows = _usable(draw_rows(self.data, self.spec, numbers=[number % self.spec.rows]))
        return to_tensors([decode_sample(row.files, key=row.key, tasks=()) for row in rows]).pixels


class Drawn(NamedTuple):
    """What a row's image and labels cost.

    Attributes:
        stored: Bytes in the store, as packed.
        decoded: Bytes in memory.
        seconds: To read, draw and encode one row in one process; None where no sample could be drawn.
    """

    stored: float
    decoded: float
    seconds: float | None


def image_bound(spec: ViewSetSpec, /) -> Drawn:
    """What a row takes at most, from its shape; PNG and headers could add a few bytes to noise."""
    height, width = view_size(spec)
    size = (_IMAGE + _LABEL * len(spec.tasks)) * height * width
    return Drawn(size, size, None)


def image_cost(data: DataConfig, spec: ViewSetSpec, /) -> Drawn:
    """Draw a few rows and weigh them; where their images cannot be used, ``image_bound``."""
    begun = time.perf_counter()
    try:
        drawn = draw_rows(data, spec, numbers=range(min(_COST_ROWS, spec.images)))
    except BadImageError:
        drawn = []
    seconds = (time.perf_counter() - begun) / max(1, len(drawn))
    rows = _usable(drawn)
    if not rows:
        return image_bound(spec)
    samples = [decode_sample(row.files, key=row.key, tasks=spec.tasks) for row in rows]
    decoded = sum(item.image.nbytes + sum(label.nbytes for label in item.labels.values()) for item in samples)
    return Drawn(_packed(rows) / len(rows), decoded / len(rows), seconds)


def _usable(rows: Sequence[ViewRow]) -> list[ViewRow]:
    return [row for row in rows if row.error is None]


def _packed(rows: Sequence[ViewRow]) -> int:
    return len(build_tar([(row.row, suffix, data) for row in rows for suffix, data in row.files.items()]).data)
