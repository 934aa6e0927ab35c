"""Task metrics as sums that merge exactly, and Δm against a baseline.

The sums are plain int64 arrays. Those of batches, ranks and Dask workers are added, in any order and grouping, to the
same result, bit for bit: what is a float in them is summed without rounding (``sak.exact``).

Legend: B batch, C channels, H W image rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sak.dense.registry import LABELS, TASKS
from sak.dense.spec import DenseTask
from sak.errors import SakError, UnknownNameError
from sak.exact import exact, rounded
from sak.meters.classes import CLASSES
from sak.meters.depth import DEPTH
from sak.meters.edge import EDGE
from sak.meters.meter import Meter
from sak.meters.normals import NORMALS
from sak.meters.saliency import SALIENCY
from sak.tasks import TaskSpec, dataset_spec, metric_spec

__all__ = ["ABSENT", "TaskMetrics", "delta_m"]

Counts = NDArray[np.int64]

ABSENT = ("zero", "ignore")
"""What a class that occurs neither in labels nor in predictions counts in mIoU: 0, as published, or nothing."""


def _meter(module: DenseTask) -> Meter:
    return Meter(
        lambda logits_1CHW, label_1CHW, _task: module.tally(logits_1CHW, label_1CHW),
        lambda sums, _task, _absent: module.score(sums),
    )


_METERS: Mapping[str, Meter] = MappingProxyType(
    {
        "semseg": CLASSES,
        "human_parts": CLASSES,
        "sal": SALIENCY,
        "normals": NORMALS,
        "edge": EDGE,
        "depth": DEPTH,
        **{name: _meter(module) for name, module in TASKS.items()},
    }
)


class TaskMetrics:
    """Accumulates every metric of some tasks of a data set.

    Call ``update`` per batch and ``compute`` at the end; ``merge`` joins the sums of several workers.

    Args:
        dataset: Name in ``sak.tasks.DATASETS``.
        tasks: Tasks to measure.
        absent: One of ``ABSENT``.

    Raises:
        UnknownNameError: The data set, a task or ``absent`` is unknown.

    Source:
        The published meters, without their crashes on empty masks; medians, shares, relative errors and classes are
        further ones. Saliency ``mIoU`` is the best over thresholds of the images' mean foreground IoU; an image without
        any salient pixel, predicted as such, counts 100. ``edge/loss`` is the published one (a cross entropy of
        probabilities taken for logits: even a perfect prediction does not reach 0). ``edge/maxF`` of ``scenes`` is the
        best F1 over thresholds of pixels matched exactly: it has no tolerance, no thinning, and is not the paper's
        odsF, which is in ``sak.boundary``.
    """

    def __init__(self, dataset: str, tasks: Sequence[str], *, absent: str = "zero") -> None:
        if absent not in ABSENT:
            raise UnknownNameError(
                f"unknown treatment of absent classes {absent!r}: expected one of {', '.join(ABSENT)}"
            )
        spec = dataset_spec(dataset)
        self._specs = {name: spec.task(name) for name in tasks}
        self._absent = absent
        self._sums: dict[str, dict[str, Counts]] = {}
        self._floats: set[tuple[str, str]] = set()
        self.reset()

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
            for image in range(len(logits[name])):
                one = slice(image, image + 1)
                for key, value in _tally(logits[name][one], labels[name][one], task).items():
                    self._sums[name][key] += _integers(value)

    def compute(self) -> dict[str, dict[str, float]]:
        """Task → metric → value, in the metrics' units (per cent, degrees, metres); NaN where no pixel was valid.

        Of class maps each class has one too, ``IoU/<class>``: NaN where it occurs neither in labels nor predictions.
        """
        return {
            name: _METERS[name].score(self._rounded(name), task, self._absent) for name, task in self._specs.items()
        }

    def state(self) -> dict[str, Counts]:
        """A copy of the sums, keyed ``task/sum``: plain arrays of integers, to be added to those of other workers."""
        return {f"{name}/{key}": value.copy() for name, sums in self._sums.items() for key, value in sums.items()}

    def merge_state(self, state: Mapping[str, Counts], /) -> None:
        """Add the ``state`` of another worker, or of an earlier, interrupted run.

        Raises:
            SakError: It is of other tasks, or of another version of this module; nothing is added then.
        """
        own = {key: (value.shape, value.dtype) for key, value in self.state().items()}
        found = {key: (np.shape(value), getattr(value, "dtype", None)) for key, value in state.items()}
        if own != found:
            strange = sorted(key for key in {*own, *found} if own.get(key) != found.get(key))
            raise SakError(
                f"metrics: expected the int64 sums of tasks {', '.join(self._specs)}, got others at {strange[0]!r} (and"
                f" {len(strange) - 1} more); merge what measures the same tasks by the same version"
            )
        for joined, value in state.items():
            name, _, key = joined.partition("/")
            self._sums[name][key] += value

    def merge(self, other: TaskMetrics, /) -> None:
        """Add the counts of another worker that measures the same tasks.

        Raises:
            SakError: It counts other tasks.
        """
        self.merge_state(other.state())

    def reset(self) -> None:
        """Forget everything counted."""
        for name, task in self._specs.items():  # what an image without a labelled pixel counts
            label_1CHW = torch.full((1, LABELS[name].channels, 1, 1), float(LABELS[name].invalid))
            found = _tally(torch.zeros(1, task.channels, 1, 1), label_1CHW, task)
            self._floats |= {(name, key) for key, value in found.items() if value.dtype.kind == "f"}
            self._sums[name] = {key: _integers(value) for key, value in found.items()}

    def _rounded(self, name: str) -> dict[str, NDArray[np.generic]]:
        return {
            key: rounded(value) if (name, key) in self._floats else value for key, value in self._sums[name].items()
        }


def _tally(logits_1CHW: Tensor, label_1CHW: Tensor, task: TaskSpec) -> dict[str, NDArray[np.generic]]:
    found = _METERS[task.name].tally(logits_1CHW.float(), label_1CHW.float(), task)
    return {key: value.cpu().numpy() for key, value in found.items()}


def _integers(value: NDArray[np.generic]) -> Counts:
    """Counts as they are, floats as exact numbers."""
    return exact(value) if value.dtype.kind == "f" else np.array(value, dtype=np.int64)


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
