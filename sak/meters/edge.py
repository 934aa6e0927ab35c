"""Boundaries by pixel: the published loss and, for ``scenes``, the best F of pixels matched exactly.

The field's metric, odsF, is in ``sak.boundary``.

Legend: 1 one image, H W image rows and columns.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from sak.meters.meter import Meter, Sums, share
from sak.meters.thresholds import counts_at, max_f
from sak.tasks import IGNORE, TaskSpec

__all__ = ["EDGE"]


def _tally(logits_11HW: Tensor, label_11HW: Tensor, task: TaskSpec) -> dict[str, Tensor]:
    assert task.metric_pos_weight is not None, task.name
    prob_1HW, label_1HW = logits_11HW[:, 0].sigmoid(), label_11HW[:, 0]
    valid_1HW, true_1HW = label_1HW != IGNORE, label_1HW == 1
    loss_1HW = functional.binary_cross_entropy_with_logits(prob_1HW, true_1HW.float(), reduction="none")
    weighted_1HW = loss_1HW * torch.where(true_1HW, task.metric_pos_weight, 1 - task.metric_pos_weight)
    sums = {"loss": torch.where(valid_1HW, weighted_1HW, 0.0).double().sum(), "valid": valid_1HW.sum()}
    return sums | counts_at(prob_1HW, true_1HW, valid_1HW) if task.metric == "maxF" else sums


def _score(sums: Sums, task: TaskSpec, _absent: str) -> dict[str, float]:
    scores = {"loss": share(sums, "loss", of="valid")}
    return {"maxF": max_f(sums, beta2=1.0)} | scores if task.metric == "maxF" else scores


EDGE = Meter(_tally, _score)
