"""Depth: root mean square and relative error, and shares of pixels within a factor, over all pixels of all images.

Legend: 1 one image, H W image rows and columns.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sak.meters.meter import Meter, Sums, share
from sak.tasks import TaskSpec

__all__ = ["DEPTH", "DEPTH_RANGE"]

DEPTH_RANGE = (0.0, 80.0)
"""Metres, exclusive, within which a depth label counts."""

_FACTORS = (1.25, 1.25**2, 1.25**3)


def _tally(pred_11HW: Tensor, label_11HW: Tensor, _task: TaskSpec) -> dict[str, Tensor]:
    near, far = DEPTH_RANGE
    valid_1HW = ((label_11HW > near) & (label_11HW < far))[:, 0]
    # As published, a negative depth is read as 0.
    pred_1HW, true_1HW = pred_11HW[:, 0].double().clamp(min=0), torch.where(valid_1HW, label_11HW[:, 0].double(), 1.0)
    error_1HW = torch.where(valid_1HW, pred_1HW - true_1HW, 0.0)
    # Written without a division by the prediction, which may be 0.
    within = [(pred_1HW < factor * true_1HW) & (true_1HW < factor * pred_1HW) & valid_1HW for factor in _FACTORS]
    return {
        "squares": error_1HW.square().sum(),
        "relative": (error_1HW.abs() / true_1HW).sum(),
        "pixels": valid_1HW.sum(),
        "within": torch.stack([mask.sum() for mask in within]),
    }


def _score(sums: Sums, _task: TaskSpec, _absent: str) -> dict[str, float]:
    pixels = int(sums["pixels"])
    within = [100 * int(count) / pixels if pixels else math.nan for count in sums["within"]]
    return {
        "RMSE": math.sqrt(share(sums, "squares", of="pixels")),
        "rel": share(sums, "relative", of="pixels"),
        **{f"delta{power}": value for power, value in enumerate(within, start=1)},
    }


DEPTH = Meter(_tally, _score)
