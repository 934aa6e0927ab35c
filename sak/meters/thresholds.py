"""Counts of a probability map against a mask at every threshold, and the best F of them.

Legend: 1 one image, H W image rows and columns, T thresholds.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sak.meters.meter import Sums, ratio

__all__ = ["THRESHOLDS", "counts_at", "max_f"]

THRESHOLDS = 19
"""Thresholds of maxF: 0.05, 0.10, … 0.95."""


def counts_at(prob_1HW: Tensor, true_1HW: Tensor, valid_1HW: Tensor) -> dict[str, Tensor]:
    """Valid pixels above each threshold, those of the mask among them (both ``(T,)``), all of the mask, and all."""
    thresholds = torch.linspace(0, 1, THRESHOLDS + 2, device=prob_1HW.device)[1:-1]
    # A loop, not a (T, H, W) tensor: that of a large image would take a gigabyte.
    masks = [(prob_1HW > threshold) & valid_1HW for threshold in thresholds]
    return {
        "hits": torch.stack([(mask & true_1HW).sum() for mask in masks]),
        "predicted": torch.stack([mask.sum() for mask in masks]),
        "true": (true_1HW & valid_1HW).sum(),
        "valid": valid_1HW.sum(),
    }


def max_f(sums: Sums, *, beta2: float) -> float:
    """The best F over thresholds, in per cent, of counts pooled over images; not a number without a valid pixel."""
    if not int(sums["valid"]):
        return math.nan
    precision_T, recall_T = ratio(sums["hits"], sums["predicted"]), ratio(sums["hits"], sums["true"])
    return 100 * float(ratio((1 + beta2) * precision_T * recall_T, beta2 * precision_T + recall_T).max())
