"""Curves, routers, time and bytes: data to charts and the tables that say the same in numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from pipeline.report.charts import Segment, Series, line_chart, share_bar, stacked_bars, swatch
from pipeline.report.data import Curve, ReportData, RouterMap, StoreUsage
from pipeline.report.quantities import bytes_text, fixed_text, ratio_text, seconds_text

__all__ = [
    "CurveStage",
    "LossChart",
    "RouterTable",
    "StoreLine",
    "TimeChart",
    "curve_stages",
    "router_tables",
    "store_lines",
    "time_chart",
]

STAGES = {"distill": "Stage 1: distillation", "finetune": "Stage 2: fine-tuning"}
SHARED = "shared by all runs"


class LossChart(NamedTuple):
    """One chart and its numbers: (run, loss at the first, middle and last step)."""

    name: str
    svg: Markup
    numbers: tuple[tuple[str, tuple[str, ...]], ...]


class CurveStage(NamedTuple):
    """All losses of one stage; ``main`` is the total, ``parts`` the rest."""

    title: str
    main: LossChart | None
    parts: tuple[LossChart, ...]
    legend: tuple[tuple[Markup, str], ...]


class RouterTable(NamedTuple):
    """One run's mixing weights; each row is a task with one (bar, numbers) a level."""

    run: str
    levels: tuple[str, ...]
    legend: tuple[tuple[Markup, str], ...]
    rows: tuple[tuple[str, tuple[tuple[Markup, str], ...]], ...]


class TimeChart(NamedTuple):
    """Wall-clock time by run, coloured by stage."""

    svg: Markup
    legend: tuple[tuple[Markup, str], ...]
    total: str


class StoreLine(NamedTuple):
    """One column of the store against fp16."""

    usage: StoreUsage
    bar: Markup
    stored: str
    plain: str
    per_image: str
    ratio: str


def _slots(data: ReportData) -> dict[str, int]:
    """Colour slot of each run: its line in the result table, so that a run keeps its colour all over the page."""
    names = [*(run.name for run in data.runs), *(curve.run for curve in data.curves)]
    return {name: slot for slot, name in enumerate(dict.fromkeys(names))}


def _loss_chart(
    curves: Sequence[Curve], *, name: str, title: str, size: tuple[int, int], data: ReportData
) -> LossChart:
    slots = _slots(data)
    having = [curve for curve in curves if name in curve.values and len(curve.steps)]
    series = [Series(curve.run, slots[curve.run], curve.steps, curve.values[name]) for curve in having]
    numbers = []
    for one in series:
        points = [one.y[i] for i in (0, len(one.y) // 2, -1)]
        numbers.append((one.name, tuple(f"{float(p):.4g}" for p in points)))
    name = _labels(data).get(name, name)
    return LossChart(name, line_chart(series, title=f"{title}, {name}", size=size), tuple(numbers))


def curve_stages(data: ReportData) -> list[CurveStage]:
    """Charts of every stage that has curves: the total large, each part small."""
    stages = []
    for stage, title in STAGES.items():
        curves = [curve for curve in data.curves if curve.stage == stage and len(curve.steps)]
        names = list(dict.fromkeys(name for curve in curves for name in curve.values))
        if not names:
            continue
        main = None
        if "total" in names:
            main = _loss_chart(curves, name="total", title=title, size=(540, 392), data=data)
        rest = [name for name in names if name != "total"]
        parts = tuple(_loss_chart(curves, name=name, title=title, size=(262, 172), data=data) for name in rest)
        runs = dict.fromkeys(curve.run for curve in curves)
        legend = tuple((swatch(_slots(data)[run]), run) for run in runs)
        stages.append(CurveStage(title, main, parts, legend))
    return stages


def _labels(data: ReportData) -> dict[str, str]:
    return {column.task: column.label for column in data.columns}


def _router_table(router: RouterMap, *, labels: dict[str, str]) -> RouterTable:
    width = max(60, 880 // max(1, len(router.levels)))
    rows = []
    for task, weights_LE in zip(router.tasks, np.asarray(router.weights, dtype=np.float64), strict=True):
        cells = []
        for level, weights_E in zip(router.levels, weights_LE, strict=True):
            total = float(np.clip(weights_E, 0.0, None).sum())
            shares = [max(0.0, float(w)) / total if total > 0 else 0.0 for w in weights_E]
            segments = [
                Segment(share, slot, f"{100 * share:.0f}", f"{expert} {100 * share:.1f} %")
                for slot, (expert, share) in enumerate(zip(router.experts, shares, strict=True))
            ]
            bar = share_bar(segments, title=f"{task}, {level}", size=(width, 26))
            cells.append((bar, ", ".join(segment.text for segment in segments)))
        rows.append((labels.get(task, task), tuple(cells)))
    legend = tuple((swatch(slot), expert) for slot, expert in enumerate(router.experts))
    return RouterTable(router.run, router.levels, legend, tuple(rows))


def router_tables(data: ReportData) -> list[RouterTable]:
    """Mixing weights as bars; the tasks carry the result table's labels."""
    return [_router_table(router, labels=_labels(data)) for router in data.routers]


def time_chart(data: ReportData) -> TimeChart | None:
    """Where the time went: one bar a run and one for shared work; None without costs."""
    if not data.costs:
        return None
    stages = list(dict.fromkeys(cost.stage for cost in data.costs))
    rows = []
    for run in dict.fromkeys(cost.run for cost in data.costs):
        segments = [
            Segment(
                cost.seconds, stages.index(cost.stage), seconds_text(cost.seconds), _cost_text(cost.stage, cost.seconds)
            )
            for cost in data.costs
            if cost.run == run
        ]
        rows.append((run or SHARED, segments, seconds_text(sum(s.value for s in segments))))
    svg = stacked_bars(rows, title="Wall-clock time by run and stage", width=1100)
    legend = tuple((swatch(slot), stage) for slot, stage in enumerate(stages))
    return TimeChart(svg, legend, seconds_text(sum(cost.seconds for cost in data.costs)))


def _cost_text(stage: str, seconds: float) -> str:
    return f"{stage}: {seconds_text(seconds)}"


def _fill_bar(share: float, *, title: str) -> Markup:
    """A track (fp16) with the stored part filled."""
    frame = (
        '<svg class="bar" viewBox="0 0 200 14" width="200" height="14" role="img" aria-label="{}">'
        '<rect class="track" width="200" height="14" rx="2"/><rect class="f0" width="{:.1f}" height="14" rx="2"/></svg>'
    )
    return Markup(frame).format(title, 200 * min(1.0, max(0.0, share)))


def store_lines(data: ReportData) -> list[StoreLine]:
    """Bytes of every column against fp16, with a line of totals when there are several."""
    usages = list(data.store)
    if len(usages) > 1:
        usages.append(
            StoreUsage(
                column="All columns",
                codec="",
                rows=max(usage.rows for usage in usages),
                bytes_stored=sum(usage.bytes_stored for usage in usages),
                bytes_fp16=sum(usage.bytes_fp16 for usage in usages),
                bytes_per_image=sum(usage.bytes_per_image for usage in usages),
            )
        )
    lines = []
    for usage in usages:
        share = usage.bytes_stored / usage.bytes_fp16 if usage.bytes_fp16 else 0.0
        ratio = ratio_text(1 / share) if share > 0 else fixed_text(None, digits=1)
        bar = _fill_bar(share, title=f"{usage.column}: {100 * share:.0f} % of fp16")
        texts = (bytes_text(usage.bytes_stored), bytes_text(usage.bytes_fp16), bytes_text(usage.bytes_per_image))
        lines.append(StoreLine(usage, bar, *texts, ratio))
    return lines
