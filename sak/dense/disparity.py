"""Disparity: how far a point moves between the two images of a stereo pair.

An example of a task in one module: with its line in ``sak.dense.registry`` a data set can have it, networks can be
trained and scored on it, views can be stored and pictures shown.

Legend: B batch, H W image rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sak.dense.spec import DenseTask, LabelSpec, MetricSpec, Total

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["INVALID", "TASK"]

INVALID = 255.0
"""Disparity, in pixels, of a pixel without a measurement; it is beyond what stereo matching searches."""


def _loss(pred_B1HW: Tensor, label_B1HW: Tensor, total: Total) -> Tensor:
    """L1 in pixels, over the measured ones."""
    unknown_B1HW = label_B1HW == INVALID
    error_B1HW = (pred_B1HW - label_B1HW).abs().masked_fill(unknown_B1HW, 0.0)
    return error_B1HW.sum() / total((~unknown_B1HW).sum()).clamp(min=1)


def _tally(pred_B1HW: Tensor, label_B1HW: Tensor) -> dict[str, Tensor]:
    known_B1HW = label_B1HW != INVALID
    true = label_B1HW[known_B1HW].double()
    error = (pred_B1HW[known_B1HW].double() - true).abs()
    finite = true > 0  # a point at infinity has no disparity to compare an error with
    shares = (error[finite] / true[finite]).sum()
    return {"error": error.sum(), "pixels": known_B1HW.sum(), "shares": shares, "finite": finite.sum()}


def _score(sums: Mapping[str, NDArray[np.generic]]) -> dict[str, float]:
    """Mean error, and mean share of the true disparity; not a number where there is nothing to average."""
    return {"absErr": _mean(sums["error"], sums["pixels"]), "relErr": 100 * _mean(sums["shares"], sums["finite"])}


def _mean(total: NDArray[np.generic], count: NDArray[np.generic]) -> float:
    return float(total) / int(count) if int(count) else math.nan


TASK = DenseTask(
    label=LabelSpec(
        name="disparity",
        title="disparity",
        stored="float32",
        invalid=INVALID,
        zoom=1,
        shown="range",
        unit="px",
        largest=254,
    ),
    metrics=(
        MetricSpec(name="absErr", higher_is_better=False, unit=" px", decimals=3),
        MetricSpec(name="relErr", higher_is_better=False, unit="%", decimals=2),
    ),
    loss=_loss,
    tally=_tally,
    score=_score,
)
