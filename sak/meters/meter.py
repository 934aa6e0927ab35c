"""What a meter is: one function that tallies an image into named sums, one that turns the sums into numbers.

Images are tallied one by one, since vectorised arithmetic may round a number otherwise beside others. Counts are int64;
what is a float is added over images without rounding (``sak.exact``). So no result depends on how images were batched,
ordered or shared out.

Legend: 1 one image, C channels, H W image rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sak.tasks import TaskSpec

__all__ = ["Meter", "Sums", "ratio", "share"]

Sums = Mapping[str, NDArray[np.generic]]
"""Named sums of a task over all images: counts in int64, and float64."""


class Meter(NamedTuple):
    """The two functions of a task.

    Attributes:
        tally: Logits ``(1, C, H, W)``, labels ``(1, 1, H, W)`` (3 for normals) and the task, to named sums, integers or
            floats: all zeros where every pixel is ignored.
        score: The sums of all batches, the task and what absent classes count (``sak.metrics.ABSENT``), to metrics.
    """

    tally: Callable[[Tensor, Tensor, TaskSpec], dict[str, Tensor]]
    score: Callable[[Sums, TaskSpec, str], dict[str, float]]


def ratio(numerator: NDArray[np.generic], denominator: NDArray[np.generic], /) -> NDArray[np.float64]:
    """Element-wise quotient in float64, 0 where the denominator is 0."""
    above, below = np.broadcast_arrays(np.asarray(numerator, np.float64), np.asarray(denominator, np.float64))
    found: NDArray[np.float64] = np.divide(above, below, out=np.zeros(above.shape), where=below > 0)
    return found


def share(sums: Sums, name: str, /, *, of: str) -> float:
    """A sum over a count, not a number where the count is 0."""
    count = int(sums[of])
    return float(sums[name]) / count if count else math.nan
