"""Saliency: the best F over thresholds, and the best mean IoU of the salient region.

Legend: 1 one image, H W image rows and columns, T thresholds.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sak.meters.meter import Meter, Sums
from sak.meters.thresholds import counts_at, max_f
from sak.tasks import IGNORE, TaskSpec

__all__ = ["SALIENCY"]

_BETA2 = 0.3  # the saliency literature's weight of precision over recall


def _tally(logits_12HW: Tensor, label_11HW: Tensor, _task: TaskSpec) -> dict[str, Tensor]:
    label_1HW = label_11HW[:, 0]
    counts = counts_at(logits_12HW.softmax(dim=1)[:, 1], label_1HW == 1, label_1HW != IGNORE)
    union_T = counts["predicted"] + counts["true"] - counts["hits"]
    iou_T = torch.where(union_T > 0, counts["hits"].double() / union_T.clamp(min=1), 1.0)
    labelled = counts["valid"] > 0
    return counts | {"iou": torch.where(labelled, iou_T, 0.0), "images": labelled.long()}


def _score(sums: Sums, _task: TaskSpec, _absent: str) -> dict[str, float]:
    images = int(sums["images"])
    miou = 100 * float(sums["iou"].max()) / images if images else math.nan
    return {"maxF": max_f(sums, beta2=_BETA2), "mIoU": miou}


SALIENCY = Meter(_tally, _score)
