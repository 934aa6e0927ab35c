"""The supervised losses of the dense tasks.

A batch whose pixels are all ignored contributes 0 and keeps its path to the prediction, so that gradients exist on
every rank. The published losses give NaN (boundary, normals, depth) or crash (saliency) there.

Legend: B batch, C channels, H W image rows and columns, M valid pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional

from sak.dense.registry import LABELS, TASKS
from sak.dense.spec import DenseTask
from sak.errors import SakError
from sak.tasks import DEPTH_INVALID, IGNORE, TaskSpec, dataset_spec

__all__ = ["Total", "normals_valid", "task_losses", "whole_batch"]

Total = Callable[[Tensor], Tensor]
_Loss = Callable[[Tensor, Tensor, TaskSpec, Total], Tensor]


def whole_batch(count: Tensor, /) -> Tensor:
    """The number of pixels that a loss divides by when this batch is all there is."""
    return count


def task_losses(
    dataset: str,
    predictions: Mapping[str, Tensor],
    labels: Mapping[str, Tensor],
    *,
    total: Total = whole_batch,
    weights: Mapping[str, float] = MappingProxyType({}),
) -> dict[str, Tensor]:
    """Compute the weighted loss of each predicted task; the arithmetic is float32 whatever the predictions are.

    Args:
        dataset: Name in ``sak.tasks.DATASETS``.
        predictions: Task → logits at the labels' size.
        labels: Task → labels; tasks that are not predicted are ignored.
        total: A number of pixels here → that number in all parts of a split batch. Each loss is then this part's share
            of the loss of the whole batch, and the shares of all parts add up to it, however unevenly the valid pixels
            are spread. It is called equally often for every part.
        weights: Task → weight in place of the data set's.

    Returns:
        Task → loss with its weight applied, in the order of ``predictions``, and their sum as ``total``.

    Shapes:
        predictions: ``(B, C, H, W)``.
        labels: ``(B, 1, H, W)`` float32, or ``(B, 3, H, W)`` for ``normals``.

    Raises:
        UnknownNameError: The data set or one of its tasks is unknown.
        SakError: A label is missing or its size is not the prediction's; or nothing is predicted.

    Source:
        The published losses and weights.
    """
    spec = dataset_spec(dataset)
    if not predictions:
        raise SakError(
            f"task loss of {dataset!r}: expected at least one prediction, got none; name tasks in the recipe"
        )
    losses = {}
    for name, logits_BCHW in predictions.items():
        task = spec.task(name)
        label_BCHW = _label_of(task, logits_BCHW=logits_BCHW, labels=labels)
        weight = weights.get(name, task.loss_weight)
        losses[name] = weight * _LOSSES[name](logits_BCHW.float(), label_BCHW.float(), task, total)
    return losses | {"total": torch.stack(list(losses.values())).sum()}


def normals_valid(label_B3HW: Tensor, /) -> Tensor:
    """Pixels with a surface normal: neither exact zeros nor the ignore value.

    Shapes: ``(B, 3, H, W)`` → bool ``(B, 1, H, W)``.
    """
    return (label_B3HW != IGNORE).all(dim=1, keepdim=True) & (label_B3HW != 0).any(dim=1, keepdim=True)


def _label_of(task: TaskSpec, *, logits_BCHW: Tensor, labels: Mapping[str, Tensor]) -> Tensor:
    if task.name not in labels:
        raise SakError(
            f"task {task.name!r}: expected labels, got only {sorted(labels)}; drop the task or use data that has it"
        )
    label_BCHW, channels = labels[task.name], LABELS[task.name].channels
    batch, _, rows, columns = logits_BCHW.shape
    if tuple(label_BCHW.shape) != (batch, channels, rows, columns) or logits_BCHW.shape[1] != task.channels:
        raise SakError(
            f"task {task.name!r}: expected logits (B, {task.channels}, H, W) and labels (B, {channels}, H, W), got"
            f" {tuple(logits_BCHW.shape)} and {tuple(label_BCHW.shape)}; resize the logits to the labels"
        )
    return label_BCHW


def _mean_over(loss: Tensor, valid: Tensor, total: Total, /) -> Tensor:
    """Sum of ``loss`` over its valid pixels divided by their number; 0, not NaN, when there is none."""
    return torch.where(valid, loss, 0.0).sum() / total(valid.sum()).clamp(min=1)


def _cross_entropy(logits_BCHW: Tensor, label_B1HW: Tensor, _task: TaskSpec, total: Total) -> Tensor:
    label_BHW = label_B1HW[:, 0].long()
    summed = functional.cross_entropy(logits_BCHW, label_BHW, ignore_index=IGNORE, reduction="sum")
    return summed / total((label_BHW != IGNORE).sum()).clamp(min=1)


def _balanced_cross_entropy(logits_B2HW: Tensor, label_B1HW: Tensor, _task: TaskSpec, total: Total) -> Tensor:
    """Cross entropy that weighs each of the two classes by the batch's share of the other one."""
    label_BHW = label_B1HW[:, 0]
    valid_BHW, positive_BHW = label_BHW != IGNORE, label_BHW == 1
    share = total((valid_BHW & ~positive_BHW).sum()) / total(valid_BHW.sum()).clamp(min=1)
    loss_BHW = functional.cross_entropy(logits_B2HW, positive_BHW.long(), reduction="none")
    return _mean_over(loss_BHW * torch.where(positive_BHW, share, 1 - share), valid_BHW, total)


def _normals_l1(pred_B3HW: Tensor, label_B3HW: Tensor, _task: TaskSpec, total: Total) -> Tensor:
    """L1 of unit vectors, summed over the 3 components as published, averaged over pixels."""
    error_B3HW = (functional.normalize(pred_B3HW, dim=1) - label_B3HW).abs()
    return _mean_over(error_B3HW.sum(dim=1, keepdim=True), normals_valid(label_B3HW), total)


def _boundary(logits_B1HW: Tensor, label_B1HW: Tensor, task: TaskSpec, total: Total) -> Tensor:
    """Binary cross entropy with weight w on boundary pixels and 1 - w on the others."""
    assert task.pos_weight is not None, task.name
    valid_B1HW = label_B1HW != IGNORE
    target_B1HW = torch.where(valid_B1HW, label_B1HW, 0.0)
    weight_B1HW = torch.where(target_B1HW == 1, task.pos_weight, 1 - task.pos_weight)
    loss_B1HW = functional.binary_cross_entropy_with_logits(logits_B1HW, target_B1HW, reduction="none")
    return _mean_over(loss_B1HW * weight_B1HW, valid_B1HW, total)


def _depth_l1(pred_B1HW: Tensor, label_B1HW: Tensor, _task: TaskSpec, total: Total) -> Tensor:
    return _mean_over((pred_B1HW - label_B1HW).abs(), label_B1HW != DEPTH_INVALID, total)


def _of_module(module: DenseTask) -> _Loss:
    return lambda logits_BCHW, label_BCHW, _task, total: module.loss(logits_BCHW, label_BCHW, total)


_LOSSES: Mapping[str, _Loss] = MappingProxyType(
    {
        "semseg": _cross_entropy,
        "human_parts": _cross_entropy,
        "sal": _balanced_cross_entropy,
        "normals": _normals_l1,
        "edge": _boundary,
        "depth": _depth_l1,
        **{name: _of_module(task) for name, task in TASKS.items()},
    }
)
