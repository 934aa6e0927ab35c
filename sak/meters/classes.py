"""Intersection over union of classes, from one confusion matrix over all images.

Legend: 1 one image, C = K classes, H W image rows and columns.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from sak.errors import SakError
from sak.meters.meter import Meter, Sums, ratio
from sak.tasks import IGNORE, TaskSpec

__all__ = ["CLASSES", "IOU"]

IOU = "IoU/"
"""What the name of a class follows in the name of its metric."""


def _tally(logits_1CHW: Tensor, label_11HW: Tensor, task: TaskSpec) -> dict[str, Tensor]:
    label_1HW = label_11HW[:, 0].long()
    valid_1HW = label_1HW != IGNORE
    true, pred = label_1HW[valid_1HW], logits_1CHW.max(dim=1).indices[valid_1HW]  # argmax is three times slower
    if true.numel() and not 0 <= int(true.min()) <= int(true.max()) < task.channels:
        raise SakError(
            f"metrics: task {task.name!r}: expected labels 0 to {task.channels - 1} or {IGNORE}, got"
            f" {int(true.min())} to {int(true.max())}; check the label encoding"
        )
    counts = torch.bincount(true * task.channels + pred, minlength=task.channels**2)
    return {"confusion": counts.view(task.channels, task.channels)}


def _score(sums: Sums, task: TaskSpec, absent: str) -> dict[str, float]:
    """A class that is neither labelled nor predicted has no IoU of its own, whatever it counts in the mean."""
    confusion_KK = sums["confusion"]
    hit_K = confusion_KK.diagonal()
    union_K = confusion_KK.sum(0) + confusion_KK.sum(1) - hit_K
    iou_K = 100 * ratio(hit_K, union_K)
    seen_K = union_K > 0
    classes = {
        f"{IOU}{name}": float(iou) if seen else math.nan
        for name, iou, seen in zip(task.classes, iou_K, seen_K, strict=True)
    }
    if not seen_K.any():
        return {"mIoU": math.nan, **classes}
    return {"mIoU": float(np.mean(iou_K[seen_K] if absent == "ignore" else iou_K)), **classes}


CLASSES = Meter(_tally, _score)
