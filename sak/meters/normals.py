"""Surface normals: mean and median angle, and shares of pixels below three angles, over all pixels of all images.

Legend: 1 one image, H W image rows and columns.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from sak.losses.tasks import normals_valid
from sak.meters.meter import Meter, Sums, share
from sak.tasks import TaskSpec

__all__ = ["BIN_DEGREES", "NORMALS", "UNDER"]

BIN_DEGREES = 0.01
"""Width of the histogram that the median is read from: it is at most half of this off."""

UNDER = (11.25, 22.5, 30.0)
"""Degrees below which the shares are counted."""

_BINS = 18_000  # of 180 degrees


def _tally(pred_13HW: Tensor, label_13HW: Tensor, _task: TaskSpec) -> dict[str, Tensor]:
    valid_1HW = normals_valid(label_13HW)[:, 0]
    cosine_1HW = (functional.normalize(pred_13HW.double(), dim=1) * label_13HW.double()).sum(dim=1)
    degrees_1HW = torch.rad2deg(torch.acos(cosine_1HW.clamp(-1, 1)))
    degrees = degrees_1HW[valid_1HW]
    # What is not a number is as wrong as can be; the mean shows it.
    bins = (degrees.nan_to_num(nan=180.0) / BIN_DEGREES).long().clamp(max=_BINS - 1)
    return {
        "degrees": torch.where(valid_1HW, degrees_1HW, 0.0).double().sum(),
        "pixels": valid_1HW.sum(),
        "histogram": torch.bincount(bins, minlength=_BINS),
        "under": torch.stack([(degrees < limit).sum() for limit in UNDER]),
    }


def _score(sums: Sums, _task: TaskSpec, _absent: str) -> dict[str, float]:
    pixels = int(sums["pixels"])
    under = [100 * int(count) / pixels if pixels else math.nan for count in sums["under"]]
    return {
        "mErr": share(sums, "degrees", of="pixels"),
        "median": _median(sums["histogram"]),
        **{f"under{limit:g}": value for limit, value in zip(UNDER, under, strict=True)},
    }


def _median(histogram: NDArray[np.generic]) -> float:
    """The mean of the bins' middles that hold the two middle pixels, which are one if their number is odd."""
    upto = np.cumsum(histogram)
    if not upto[-1]:
        return math.nan
    middle = np.searchsorted(upto, [(upto[-1] - 1) // 2, upto[-1] // 2], side="right")
    return float((middle + 0.5).mean() * BIN_DEGREES)


NORMALS = Meter(_tally, _score)
