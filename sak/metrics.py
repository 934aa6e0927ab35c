"""Task metrics as additive counts, and Δm against a baseline.

Each metric is a pair of pure functions: one tallies a batch into named sums, one turns the sums into numbers. Sums of
batches, workers and ranks therefore add up to the same result in any order.

Legend: B batch, C channels, H W image rows and columns, K classes, T thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from sak.dense.registry import LABELS, TASKS
from sak.dense.spec import DenseTask
from sak.errors import SakError, UnknownNameError
from sak.losses.tasks import normals_valid
from sak.tasks import IGNORE, TaskSpec, dataset_spec, metric_spec

__all__ = ["ABSENT", "DEPTH_RANGE", "THRESHOLDS", "TaskMetrics", "delta_m"]

ABSENT = ("zero", "ignore")
"""What a class that occurs neither in labels nor in predictions counts in mIoU: 0, as published, or nothing."""

THRESHOLDS = 19
"""Thresholds of maxF: 0.05, 0.10, … 0.95."""

DEPTH_RANGE = (0.0, 80.0)
"""Metres, exclusive, within which a depth label counts."""

_BETA2 = 0.3  # the saliency literature's weight of precision over recall


class TaskMetrics:
    """Accumulates every metric of some tasks of a data set.

    Call ``update`` per batch and ``compute`` at the end; ``merge`` joins the counts of several workers.

    Args:
        dataset: Name in ``sak.tasks.DATASETS``.
        tasks: Tasks to measure.
        absent: One of ``ABSENT``.

    Raises:
        UnknownNameError: The data set, a task or ``absent`` is unknown.

    Source:
        The published meters, without their crashes on empty masks. Saliency ``mIoU`` is the best over thresholds of
        the images' mean foreground IoU; an image without any salient pixel, predicted as such, counts 100.
        ``edge/loss`` is the published one (a cross entropy of probabilities taken for logits: even a perfect
        prediction does not reach 0). ``edge/maxF`` of ``scenes`` is the best F1 over thresholds of pixels matched
        exactly: it has no tolerance, no thinning, and is not the paper's odsF, which is in ``sak.boundary``.
    """

    def __init__(self, dataset: str, tasks: Sequence[str], *, absent: str = "zero") -> None:
        if absent not in ABSENT:
            raise UnknownNameError(
                f"unknown treatment of absent classes {absent!r}: expected one of {', '.join(ABSENT)}"
            )
        spec = dataset_spec(dataset)
        self._specs = {name: spec.task(name) for name in tasks}
        self._absent = absent
        self._sums: dict[str, dict[str, Tensor]] = {name: {} for name in tasks}

    @torch.no_grad()
    def update(self, logits: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> None:
        """Count one batch; tasks beyond those measured are ignored.

        Shapes:
            logits: ``(B, C, H, W)``.
            labels: ``(B, 1, H, W)``, or ``(B, 3, H, W)`` for ``normals``, of the same size.

        Raises:
            SakError: A measured task is missing, or its logits and labels do not fit.
        """
        for name, task in self._specs.items():
            _check_batch(task, logits=logits, labels=labels)
            for key, value in _METRICS[name].tally(logits[name].float(), labels[name].float(), task).items():
                self._add(name, key, value)

    def compute(self) -> dict[str, dict[str, float]]:
        """Task → metric → value, in the metrics' units (per cent, degrees, metres); NaN where no pixel was valid."""
        return {
            name: _METRICS[name].score(self._sums[name], task, self._absent) if self._sums[name] else _nothing(task)
            for name, task in self._specs.items()
        }

    def state(self) -> dict[str, Tensor]:
        """The sums as plain CPU tensors, keyed ``task/sum``."""
        return {f"{name}/{key}": value.clone() for name, sums in self._sums.items() for key, value in sums.items()}

    def merge_state(self, state: Mapping[str, Tensor], /) -> None:
        """Add the ``state`` of another worker, or of an earlier, interrupted run.

        Raises:
            SakError: It counts other tasks.
        """
        for joined, value in state.items():
            name, _, key = joined.partition("/")
            if name not in self._specs:
                raise SakError(f"metrics: expected sums of tasks {', '.join(self._specs)}, got {joined!r}")
            self._add(name, key, value)

    def merge(self, other: TaskMetrics, /) -> None:
        """Add the counts of another worker that measures the same tasks.

        Raises:
            SakError: It counts other tasks.
        """
        self.merge_state(other.state())

    def reset(self) -> None:
        """Forget everything counted."""
        self._sums = {name: {} for name in self._specs}

    def _add(self, name: str, key: str, value: Tensor) -> None:
        sums = self._sums[name]
        sums[key] = sums[key] + value.cpu() if key in sums else value.cpu().clone()


def delta_m(
    values: Mapping[str, Mapping[str, float]],
    baseline: Mapping[str, Mapping[str, float]],
    dataset: str,
    *,
    metrics: Mapping[str, str] | None = None,
) -> float:
    """Mean over tasks of the relative change against a baseline, signed so that positive is better.

    Args:
        values: Task → metric → value, as ``TaskMetrics.compute`` returns.
        baseline: The same of the baseline; its tasks must be the same.
        dataset: Name in ``sak.tasks.DATASETS``; gives each task's metric.
        metrics: Task → metric, where another than the table's is meant (``{"edge": "odsF"}``).

    Units: per cent.

    Raises:
        UnknownNameError: The data set, a task or a metric is unknown.
        SakError: The tasks differ, a metric is missing or not finite, or a baseline is 0.

    Source: the paper's Δm.
    """
    if set(values) != set(baseline) or not values:
        raise SakError(f"Δm: expected the same tasks on both sides, got {sorted(values)} against {sorted(baseline)}")
    spec, chosen = dataset_spec(dataset), metrics or {}
    changes = []
    for name in values:
        metric = metric_spec(chosen.get(name, spec.task(name).metric))
        ours = _number(values[name], metric.name, f"{name}, value")
        theirs = _number(baseline[name], metric.name, f"{name}, baseline")
        if theirs == 0:
            raise SakError(
                f"Δm: {name} {metric.name} of the baseline is 0, no relative change exists; leave the task out"
            )
        changes.append((ours - theirs) / theirs * (1 if metric.higher_is_better else -1))
    return 100 * sum(changes) / len(changes)


def _number(values: Mapping[str, float], metric: str, where: str) -> float:
    if metric not in values or not math.isfinite(values[metric]):
        raise SakError(f"Δm: {where}: expected a finite {metric}, got {dict(values)}; evaluate on labelled pixels")
    return values[metric]


def _check_batch(task: TaskSpec, *, logits: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> None:
    missing = [what for what, maps in (("logits", logits), ("labels", labels)) if task.name not in maps]
    if missing:
        raise SakError(f"metrics: task {task.name!r} has no {' and no '.join(missing)}; measure only what is there")
    got, label = tuple(logits[task.name].shape), tuple(labels[task.name].shape)
    channels = LABELS[task.name].channels
    if len(got) != 4 or got[1] != task.channels or label != (got[0], channels, *got[2:]):
        raise SakError(
            f"metrics: task {task.name!r}: expected logits (B, {task.channels}, H, W) and labels (B, {channels}, H, W),"
            f" got {got} and {label}; resize the logits to the labels"
        )


def _nothing(task: TaskSpec) -> dict[str, float]:
    return dict.fromkeys((task.metric, *task.extra_metrics), math.nan)


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Element-wise quotient in float64, 0 where the denominator is 0."""
    return torch.where(denominator > 0, numerator.double() / denominator.double().clamp(min=1e-300), 0.0)


def _tally_classes(logits_BCHW: Tensor, label_B1HW: Tensor, task: TaskSpec) -> dict[str, Tensor]:
    label_BHW = label_B1HW[:, 0].long()
    valid_BHW = label_BHW != IGNORE
    true, pred = label_BHW[valid_BHW], logits_BCHW.argmax(dim=1)[valid_BHW]
    if true.numel() and not 0 <= int(true.min()) <= int(true.max()) < task.channels:
        raise SakError(
            f"metrics: task {task.name!r}: expected labels 0 to {task.channels - 1} or {IGNORE}, got"
            f" {int(true.min())} to {int(true.max())}; check the label encoding"
        )
    counts = torch.bincount(true * task.channels + pred, minlength=task.channels**2)
    return {"confusion": counts.view(task.channels, task.channels)}


def _score_classes(sums: Mapping[str, Tensor], _task: TaskSpec, absent: str) -> dict[str, float]:
    confusion_KK = sums["confusion"]
    hit_K = confusion_KK.diagonal()
    union_K = confusion_KK.sum(0) + confusion_KK.sum(1) - hit_K
    iou_K = _ratio(hit_K, union_K)
    if not union_K.any():
        return {"mIoU": math.nan}
    return {"mIoU": 100 * float((iou_K[union_K > 0] if absent == "ignore" else iou_K).mean())}


def _at_thresholds(prob_BHW: Tensor, true_BHW: Tensor, valid_BHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Counts per image and threshold: hits (B, T), predicted (B, T), and true pixels (B, 1)."""
    thresholds = torch.linspace(0, 1, THRESHOLDS + 2, device=prob_BHW.device)[1:-1]
    # A loop, not a (T, B, H, W) tensor: full-size evaluation images would take gigabytes.
    masks = [(prob_BHW > threshold) & valid_BHW for threshold in thresholds]
    hits_BT = torch.stack([(mask & true_BHW).sum((1, 2)) for mask in masks], dim=1)
    return hits_BT, torch.stack([mask.sum((1, 2)) for mask in masks], dim=1), true_BHW.sum((1, 2)).unsqueeze(1)


def _max_f(sums: Mapping[str, Tensor], *, beta2: float) -> float:
    precision_T, recall_T = _ratio(sums["hits"], sums["predicted"]), _ratio(sums["hits"], sums["true"])
    if not int(sums["valid"]):
        return math.nan
    return 100 * float(_ratio((1 + beta2) * precision_T * recall_T, beta2 * precision_T + recall_T).max())


def _tally_saliency(logits_B2HW: Tensor, label_B1HW: Tensor, _task: TaskSpec) -> dict[str, Tensor]:
    label_BHW = label_B1HW[:, 0]
    valid_BHW = label_BHW != IGNORE
    hits_BT, predicted_BT, true_B1 = _at_thresholds(
        logits_B2HW.softmax(dim=1)[:, 1], (label_BHW == 1) & valid_BHW, valid_BHW
    )
    union_BT = predicted_BT + true_B1 - hits_BT
    iou_BT = torch.where(union_BT > 0, _ratio(hits_BT, union_BT), 1.0)
    return _pooled(hits_BT, predicted_BT, true_B1, valid_BHW) | {
        "iou": iou_BT.sum(0),
        "images": torch.tensor(len(iou_BT)),
    }


def _pooled(hits_BT: Tensor, predicted_BT: Tensor, true_B1: Tensor, valid_BHW: Tensor) -> dict[str, Tensor]:
    return {"hits": hits_BT.sum(0), "predicted": predicted_BT.sum(0), "true": true_B1.sum(), "valid": valid_BHW.sum()}


def _score_saliency(sums: Mapping[str, Tensor], _task: TaskSpec, _absent: str) -> dict[str, float]:
    miou = 100 * float((sums["iou"] / sums["images"]).max()) if int(sums["valid"]) else math.nan
    return {"maxF": _max_f(sums, beta2=_BETA2), "mIoU": miou}


def _tally_normals(pred_B3HW: Tensor, label_B3HW: Tensor, _task: TaskSpec) -> dict[str, Tensor]:
    valid_BHW = normals_valid(label_B3HW)[:, 0]
    cosine_BHW = (functional.normalize(pred_B3HW.double(), dim=1) * label_B3HW.double()).sum(dim=1)
    degrees = torch.rad2deg(torch.acos(cosine_BHW.clamp(-1, 1)))[valid_BHW]
    return {"degrees": degrees.sum(), "pixels": valid_BHW.sum()}


def _score_normals(sums: Mapping[str, Tensor], _task: TaskSpec, _absent: str) -> dict[str, float]:
    return {"mErr": float(sums["degrees"] / sums["pixels"])}


def _tally_edge(logits_B1HW: Tensor, label_B1HW: Tensor, task: TaskSpec) -> dict[str, Tensor]:
    assert task.metric_pos_weight is not None, task.name
    prob_BHW, label_BHW = logits_B1HW[:, 0].sigmoid(), label_B1HW[:, 0]
    valid_BHW, true_BHW = label_BHW != IGNORE, label_BHW == 1
    loss_BHW = functional.binary_cross_entropy_with_logits(prob_BHW, true_BHW.float(), reduction="none")
    weighted_BHW = loss_BHW * torch.where(true_BHW, task.metric_pos_weight, 1 - task.metric_pos_weight)
    sums = {"loss": weighted_BHW[valid_BHW].double().sum(), "valid": valid_BHW.sum()}
    return sums | _pooled(*_at_thresholds(prob_BHW, true_BHW, valid_BHW), valid_BHW) if task.metric == "maxF" else sums


def _score_edge(sums: Mapping[str, Tensor], task: TaskSpec, _absent: str) -> dict[str, float]:
    scores = {"loss": float(sums["loss"] / sums["valid"])}
    return {"maxF": _max_f(sums, beta2=1.0)} | scores if task.metric == "maxF" else scores


def _tally_depth(pred_B1HW: Tensor, label_B1HW: Tensor, _task: TaskSpec) -> dict[str, Tensor]:
    near, far = DEPTH_RANGE
    valid_B1HW = (label_B1HW > near) & (label_B1HW < far)
    # As published, a negative depth is read as 0.
    error = (pred_B1HW.double().clamp(min=0) - label_B1HW.double())[valid_B1HW]
    return {"squares": error.square().sum(), "pixels": valid_B1HW.sum()}


def _score_depth(sums: Mapping[str, Tensor], _task: TaskSpec, _absent: str) -> dict[str, float]:
    return {"RMSE": float((sums["squares"] / sums["pixels"]).sqrt())}


class _Metric(NamedTuple):
    tally: Callable[[Tensor, Tensor, TaskSpec], dict[str, Tensor]]
    score: Callable[[Mapping[str, Tensor], TaskSpec, str], dict[str, float]]


def _of_module(module: DenseTask) -> _Metric:
    return _Metric(
        lambda logits_BCHW, label_BCHW, _task: module.tally(logits_BCHW, label_BCHW),
        lambda sums, _task, _absent: module.score(sums),
    )


_METRICS: Mapping[str, _Metric] = MappingProxyType(
    {
        "semseg": _Metric(_tally_classes, _score_classes),
        "human_parts": _Metric(_tally_classes, _score_classes),
        "sal": _Metric(_tally_saliency, _score_saliency),
        "normals": _Metric(_tally_normals, _score_normals),
        "edge": _Metric(_tally_edge, _score_edge),
        "depth": _Metric(_tally_depth, _score_depth),
        **{name: _of_module(task) for name, task in TASKS.items()},
    }
)
