"""The data sets, their tasks and their metrics: one literal table that losses, metrics, heads and reports read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from sak.dense.registry import LABELS, TASKS
from sak.dense.spec import MetricSpec
from sak.errors import UnknownNameError

__all__ = [
    "DATASETS",
    "DEPTH_INVALID",
    "IGNORE",
    "METRICS",
    "TASK_NAMES",
    "DatasetSpec",
    "MetricSpec",
    "TaskSpec",
    "dataset_spec",
    "metric_spec",
]

IGNORE = 255
"""Label of a pixel that counts in no loss and no metric."""

DEPTH_INVALID = 255.0
"""Depth, in metres, of a pixel without a measurement."""

TASK_NAMES = tuple(LABELS)
"""Every task, in the order in which tables show them."""

_PASCAL_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
_PART_CLASSES = ("background", "head", "torso", "upper arm", "lower arm", "upper leg", "lower leg")
_NYUD_CLASSES = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf",
    "picture", "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat",
    "clothes", "ceiling", "books", "refrigerator", "television", "paper", "towel", "shower curtain", "box",
    "whiteboard", "person", "night stand", "toilet", "sink", "lamp", "bathtub", "bag", "otherstructure",
    "otherfurniture", "otherprop",
)  # fmt: skip
_CITYSCAPES_CLASSES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
_SCENES_CLASSES = (
    "ground", "wall", "sky", "person", "ball", "crate", "pillar", "cone", "table", "tree", "lamp", "car",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """One dense task of one data set.

    Attributes:
        channels: Channels of the logits.
        loss_weight: Factor of this task's loss in the total.
        metric: The metric that tables and Δm use; ``sak.metrics.TaskMetrics`` computes it.
        higher_is_better: Direction of ``metric``.
        classes: Class names in label order; empty for regression.
        pos_weight: Weight of a positive pixel in the boundary loss; None for other tasks.
        metric_pos_weight: The same in the boundary metric (the published NYUD value differs from its loss).
        extra_metrics: Further metrics that are computed for this task.
    """

    name: str
    channels: int
    loss_weight: float
    metric: str
    higher_is_better: bool
    classes: tuple[str, ...] = ()
    pos_weight: float | None = None
    metric_pos_weight: float | None = None
    extra_metrics: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Short column title, for example ``semseg mIoU ↑``."""
        return f"{self.short_name} {self.metric} {metric_spec(self.metric).arrow}"

    @property
    def short_name(self) -> str:
        """What tables and pictures call the task, for example ``parts``."""
        return LABELS[self.name].title


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSpec:
    """A data set: its name, its tasks in table order, and how it is written in prose."""

    name: str
    title: str
    tasks: Mapping[str, TaskSpec]

    def task(self, name: str) -> TaskSpec:
        """The named task.

        Raises:
            UnknownNameError: This data set has no such task; the message lists those it has.
        """
        if name not in self.tasks:
            raise UnknownNameError(
                f"unknown task {name!r} of data set {self.name!r}: expected one of {', '.join(self.tasks)}"
            )
        return self.tasks[name]


METRICS: Mapping[str, MetricSpec] = MappingProxyType(
    {
        spec.name: spec
        for spec in (
            MetricSpec(name="mIoU", higher_is_better=True, unit="%", decimals=2),
            MetricSpec(name="IoU", higher_is_better=True, unit="%", decimals=2),
            MetricSpec(name="maxF", higher_is_better=True, unit="%", decimals=2),
            MetricSpec(name="odsF", higher_is_better=True, unit="%", decimals=2),
            MetricSpec(name="odsF-invpt", higher_is_better=True, unit="%", decimals=2),
            MetricSpec(name="odsF-mtinet", higher_is_better=True, unit="%", decimals=2),
            MetricSpec(name="oisF", higher_is_better=True, unit="%", decimals=2),
            MetricSpec(name="oisF-invpt", higher_is_better=True, unit="%", decimals=2),
            MetricSpec(name="oisF-mtinet", higher_is_better=True, unit="%", decimals=2),
            MetricSpec(name="AP", higher_is_better=True, unit="%", decimals=2),
            MetricSpec(name="AP-invpt", higher_is_better=True, unit="%", decimals=2),
            MetricSpec(name="AP-mtinet", higher_is_better=True, unit="%", decimals=2),
            MetricSpec(name="mErr", higher_is_better=False, unit="°", decimals=2),
            MetricSpec(name="median", higher_is_better=False, unit="°", decimals=2),
            MetricSpec(name="under11.25", higher_is_better=True, unit="%", decimals=2),
            MetricSpec(name="under22.5", higher_is_better=True, unit="%", decimals=2),
            MetricSpec(name="under30", higher_is_better=True, unit="%", decimals=2),
            MetricSpec(name="RMSE", higher_is_better=False, unit=" m", decimals=4),
            MetricSpec(name="rel", higher_is_better=False, unit="", decimals=4),
            MetricSpec(name="delta1", higher_is_better=True, unit="%", decimals=2),
            MetricSpec(name="delta2", higher_is_better=True, unit="%", decimals=2),
            MetricSpec(name="delta3", higher_is_better=True, unit="%", decimals=2),
            MetricSpec(name="loss", higher_is_better=False, unit="", decimals=4),
            *(metric for task in TASKS.values() for metric in task.metrics),
        )
    }
)


def metric_spec(name: str, /) -> MetricSpec:
    """Direction and display of a metric.

    Raises:
        UnknownNameError: No such metric; the message lists those there are.
    """
    if name not in METRICS:
        raise UnknownNameError(f"unknown metric {name!r}: expected one of {', '.join(METRICS)}")
    return METRICS[name]


def _classes(name: str, *, weight: float, classes: tuple[str, ...]) -> TaskSpec:
    return TaskSpec(
        name=name, channels=len(classes), loss_weight=weight, metric="mIoU", higher_is_better=True, classes=classes
    )


def _edge(*, metric: str, metric_pos_weight: float) -> TaskSpec:
    return TaskSpec(
        name="edge",
        channels=1,
        loss_weight=50.0,
        metric=metric,
        higher_is_better=METRICS[metric].higher_is_better,
        pos_weight=0.95,
        metric_pos_weight=metric_pos_weight,
        extra_metrics=("loss",) if metric != "loss" else (),
    )


_SALIENCY = TaskSpec(
    name="sal",
    channels=2,
    loss_weight=5.0,
    metric="maxF",
    higher_is_better=True,
    classes=("background", "salient"),
    extra_metrics=("mIoU",),
)
_NORMALS = TaskSpec(
    name="normals",
    channels=3,
    loss_weight=10.0,
    metric="mErr",
    higher_is_better=False,
    extra_metrics=("median", "under11.25", "under22.5", "under30"),
)
_DEPTH = TaskSpec(
    name="depth",
    channels=1,
    loss_weight=1.0,
    metric="RMSE",
    higher_is_better=False,
    extra_metrics=("rel", "delta1", "delta2", "delta3"),
)


def _dataset(name: str, *, title: str, tasks: tuple[TaskSpec, ...]) -> DatasetSpec:
    by_name = {task.name: task for task in tasks}
    return DatasetSpec(
        name=name, title=title, tasks=MappingProxyType({key: by_name[key] for key in TASK_NAMES if key in by_name})
    )


# Source: the published recipe. Loss weights 1, 2, 10, 5, 50, 1; positive weight 0.95 in every boundary loss,
# but 0.8 in the NYUD boundary meter. The paper's boundary metric is odsF, which `sak.boundary` computes where a recipe
# asks for it; else the real data sets show the boundary loss, and `scenes` maxF of pixels, which is not odsF.
DATASETS: Mapping[str, DatasetSpec] = MappingProxyType(
    {
        spec.name: spec
        for spec in (
            _dataset(
                "pascalcontext",
                title="PASCAL-Context",
                tasks=(
                    _classes("semseg", weight=1.0, classes=_PASCAL_CLASSES),
                    _classes("human_parts", weight=2.0, classes=_PART_CLASSES),
                    _SALIENCY,
                    _NORMALS,
                    _edge(metric="loss", metric_pos_weight=0.95),
                ),
            ),
            _dataset(
                "nyud",
                title="NYUD-v2",
                tasks=(
                    _classes("semseg", weight=1.0, classes=_NYUD_CLASSES),
                    _NORMALS,
                    _edge(metric="loss", metric_pos_weight=0.8),
                    _DEPTH,
                ),
            ),
            _dataset(
                "cityscapes",
                title="Cityscapes",
                tasks=(
                    _classes("semseg", weight=1.0, classes=_CITYSCAPES_CLASSES),
                    TaskSpec(
                        name="disparity",
                        channels=1,
                        loss_weight=1.0,
                        metric="absErr",
                        higher_is_better=False,
                        extra_metrics=("relErr",),
                    ),
                ),
            ),
            _dataset(
                "scenes",
                title="Scenes",
                tasks=(
                    _classes("semseg", weight=1.0, classes=_SCENES_CLASSES),
                    _classes("human_parts", weight=2.0, classes=_PART_CLASSES),
                    _SALIENCY,
                    _NORMALS,
                    _edge(metric="maxF", metric_pos_weight=0.95),
                    _DEPTH,
                ),
            ),
        )
    }
)


def dataset_spec(name: str, /) -> DatasetSpec:
    """The named data set.

    Raises:
        UnknownNameError: No such data set; the message lists those there are.
    """
    if name not in DATASETS:
        raise UnknownNameError(f"unknown data set {name!r}: expected one of {', '.join(DATASETS)}")
    return DATASETS[name]
