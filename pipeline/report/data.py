"""What a report is made from: plain values and numpy arrays, put together by the pipeline.

Everything that a person wrote or a file name carried (run names, notes, the recipe) is text to be shown, never markup.
Array shapes: H, W image rows and columns; h, w feature rows and columns; S steps; T tasks; L levels; E experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PipelineError
from pipeline.report.pr import PrLine
from pipeline.scores import ScoreLine

__all__ = [
    "Curve",
    "GallerySample",
    "MetricColumn",
    "ReportData",
    "ReportError",
    "RouterMap",
    "RunRow",
    "StageCost",
    "StoreUsage",
]


class ReportError(PipelineError):
    """Report data that cannot be drawn; the message says which part and what was expected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricColumn:
    """One column of the result table: a task, its metric and how the number is printed."""

    task: str
    metric: str
    label: str
    higher_is_better: bool
    digits: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """One line of the result table.

    ``values`` may lack a task and ``delta`` a baseline (a run has no difference to itself); both then show a dash.

    Units:
        delta: multi-task gain Delta_m in percent, by name of the baseline; positive is better.
        seconds: wall-clock time that this run's own stages took.
    """

    name: str
    description: str = ""
    values: Mapping[str, float]
    delta: Mapping[str, float] = field(default_factory=dict)
    parameters: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Losses of one stage of one run.

    Shapes:
        steps: ``(S,)``; each of ``values``: ``(S,)``, by loss name (``total``, then teachers or tasks).

    Raises:
        ReportError: A series is not as long as ``steps``.
    """

    run: str
    stage: Literal["distill", "finetune"]
    steps: NDArray[np.generic]
    values: Mapping[str, NDArray[np.generic]]

    def __post_init__(self) -> None:
        for name, series in self.values.items():
            if np.shape(series) != np.shape(self.steps) or np.ndim(series) != 1:
                raise ReportError(
                    f"curve {name!r} of run {self.run!r}: expected one value for each of {np.shape(self.steps)} steps, "
                    f"got shape {np.shape(series)}; pass steps and values of one length"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class GallerySample:
    """One image with its labels, the decoded predictions of every run, and coloured feature maps.

    Shapes:
        image: ``(H, W, 3)`` uint8 RGB.
        labels, predictions: task to ``(H, W)``, or ``(H, W, 3)`` for ``normals``. ``semseg`` and ``human_parts`` are
            uint8 classes (255 is ignored); ``depth`` float metres (255.0 is invalid); ``edge`` and ``sal`` are uint8
            0/1 with 255 ignored as labels and float probabilities as predictions.
        features: name to one ``(h, w, 3)`` uint8 map a level, first level first, coloured by
            ``pipeline.report.colour.pca_colours``. ``teacher NAME`` and ``student NAME`` are drawn one above the other.
    """

    key: str
    image: NDArray[np.uint8]
    labels: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)
    predictions: Mapping[str, Mapping[str, NDArray[np.generic]]] = field(default_factory=dict)
    features: Mapping[str, tuple[NDArray[np.uint8], ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterMap:
    """Mean mixing weights of one run's routers.

    Shapes:
        weights: ``(T, L, E)`` for ``tasks``, ``levels``, ``experts``; each bar is scaled to its own sum over E.

    Raises:
        ReportError: The shape of ``weights`` is not that of the names.
    """

    run: str
    tasks: tuple[str, ...]
    levels: tuple[str, ...]
    experts: tuple[str, ...]
    weights: NDArray[np.floating]

    def __post_init__(self) -> None:
        wanted = (len(self.tasks), len(self.levels), len(self.experts))
        if np.shape(self.weights) != wanted:
            raise ReportError(
                f"router weights of run {self.run!r}: expected shape {wanted} (tasks, levels, experts), "
                f"got {np.shape(self.weights)}; average over images first"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCost:
    """Wall-clock time of one stage; an empty ``run`` is work that all runs share (extraction)."""

    stage: str
    run: str = ""
    seconds: float
    rate: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreUsage:
    """Bytes of one column (named ``purpose / teacher``), and what the same features would take as plain fp16.

    Units:
        bytes_per_image: stored bytes a row.
    """

    column: str
    codec: str
    rows: int
    bytes_stored: int
    bytes_fp16: int
    bytes_per_image: float
    fidelity: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """Everything one report shows. A section whose data are empty is left out.

    ``runs[0]`` is the run the report is about: the cards and, when ``summary`` is empty, the headline speak of it.
    ``summary`` is the finding in one sentence. ``created`` is printed as given, so equal data give equal bytes.
    ``scores`` are all metrics and classes, one cell for each of ``runs``; ``against`` are baselines that are no run.
    ``classes`` names the classes of ``semseg`` and ``human_parts`` for the colour key, by task.

    Raises:
        ReportError: Two runs or two metric columns share a name.
    """

    title: str
    created: str
    summary: str = ""
    dataset: str
    columns: tuple[MetricColumn, ...]
    runs: tuple[RunRow, ...]
    curves: tuple[Curve, ...] = ()
    gallery: tuple[GallerySample, ...] = ()
    routers: tuple[RouterMap, ...] = ()
    costs: tuple[StageCost, ...] = ()
    store: tuple[StoreUsage, ...] = ()
    boundary: tuple[PrLine, ...] = ()
    recipe_yaml: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    scores: tuple[ScoreLine, ...] = ()
    against: tuple[RunRow, ...] = ()
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for what, names in (("run", [r.name for r in self.runs]), ("metric column", [c.task for c in self.columns])):
            double = sorted({name for name in names if names.count(name) > 1})
            if double:
                raise ReportError(f"report {self.title!r}: {what} names must differ, got {double} twice; rename one")
