"""Stage ``report``: everything a recipe's runs left, as one self-contained HTML page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from pipeline.recipes import Recipe
from pipeline.report.colour import pca_colours
from pipeline.report.data import (
    Curve,
    GallerySample,
    MetricColumn,
    ReportData,
    RouterMap,
    RunRow,
    StageCost,
    StoreUsage,
)
from pipeline.report.render import write_report
from pipeline.results import RunResult, RunStages, main_values
from pipeline.runtime import device_name, pick_device, versions
from pipeline.stagedir import StageDir, read_json
from pipeline.stages.extract import needs
from pipeline.stages.run import collect, stage_dirs
from pipeline.targets import find_column
from pipeline.tracking import read_metrics
from pipeline.viewsets import view_set_spec
from sak.tasks import DATASETS, TaskSpec
from store.store import Store

__all__ = ["report"]

Array = NDArray[np.generic]


def report(recipe: Recipe, path: Path, /, *, hint: str) -> list[RunResult]:
    """Write the report of a recipe whose stages are done; returns the table it shows.

    Raises:
        PipelineError: A stage is not done.
    """
    results = collect(recipe, hint=hint)
    runs = [stage_dirs(plan, recipe.out, hint=hint) for plan in recipe.runs]
    write_report(_data(recipe, results, runs), path)
    return results


def _data(recipe: Recipe, results: Sequence[RunResult], runs: Sequence[RunStages]) -> ReportData:
    dataset = results[0].dataset
    tasks = list(DATASETS[dataset].tasks.values()) if dataset else []
    shown = [task for task in tasks if any(task.name in row.metrics for row in results)]
    columns = tuple(_column(task) for task in shown)
    if not columns and any("distill" in row.metrics for row in results):
        columns = (
            MetricColumn(
                task="distill", metric="loss", label="held-out distillation loss ↓", higher_is_better=False, digits=4
            ),
        )
    used = _Used.of(recipe)
    device = pick_device(recipe.study.device)
    return ReportData(
        title=recipe.name,
        created=f"{device_name(device)}",
        summary=recipe.summary,
        dataset=dataset,
        columns=columns,
        runs=tuple(_run_row(row) for row in results),
        curves=tuple(curve for run in runs for curve in _curves(run)),
        gallery=_gallery(runs),
        routers=tuple(item for run in runs for item in _routers(run)),
        costs=(*used.costs, *(cost for run in runs for cost in _costs(run))),
        store=used.columns,
        recipe_yaml=yaml.safe_dump(dict(recipe.resolved), sort_keys=False),
        versions=versions(),
        notes=_notes(dataset, shown),
        classes={task.name: task.classes for task in shown if task.classes},
    )


def _column(task: TaskSpec) -> MetricColumn:
    return MetricColumn(
        task=task.name, metric=task.metric, label=task.short_name, higher_is_better=task.higher_is_better
    )


def _run_row(row: RunResult) -> RunRow:
    values = main_values(row) or {task: value["loss"] for task, value in row.metrics.items() if task == "distill"}
    return RunRow(
        name=row.name,
        description=row.description,
        values=values,
        delta=dict(row.delta),
        parameters=row.parameters,
        seconds=sum(row.seconds.values()),
    )


def _curves(run: RunStages) -> Iterator[Curve]:
    if run.plan.split_tasks:
        return
    for stage in ("distill", "finetune"):
        lines = read_metrics(run.stages[0][stage].path / "metrics.jsonl") if stage in run.stages[0] else []
        if lines:
            names = ["total", *(name for name in lines[-1] if name not in ("step", "lr", "grad_norm", "total"))]
            yield Curve(
                run=run.plan.name,
                stage="distill" if stage == "distill" else "finetune",
                steps=np.array([line["step"] for line in lines]),
                values={name: np.array([line.get(name, math.nan) for line in lines]) for name in names},
            )


def _costs(run: RunStages) -> Iterator[StageCost]:
    for stage in ("distill", "finetune", "eval"):
        records = [stages[stage].record() for stages in run.stages if stage in stages]
        if records:
            seconds = sum(float(str(record["seconds"])) for record in records)
            images = sum(int(str(record["images"])) for record in records)
            yield StageCost(
                stage=stage,
                run=run.plan.name,
                seconds=seconds,
                rate=f"{images / max(seconds, 1e-9):.0f} images/s",
                detail=f"{images} images" + (f" over {len(records)} networks" if len(records) > 1 else ""),
            )


def _routers(run: RunStages) -> Iterator[RouterMap]:
    weights: dict[str, object] = {}
    experts: tuple[str, ...] = ()
    for stages in run.stages:
        weights |= read_json(stages["eval"].path / "routers.json")
        experts = tuple(str(name) for name in _list(stages["eval"].record()["experts"]))
    if weights:
        stacked = np.array([weights[task] for task in weights], dtype=np.float64)
        levels = tuple(str(level + 1) for level in range(stacked.shape[1]))
        yield RouterMap(run=run.plan.name, tasks=tuple(weights), levels=levels, experts=experts, weights=stacked)


def _gallery(runs: Sequence[RunStages]) -> tuple[GallerySample, ...]:
    loaded = {run.plan.name: _arrays([stages["eval"] for stages in run.stages]) for run in runs}
    first = next(iter(loaded.values()))
    if "image" not in first:
        return ()
    features = next(
        (_features(arrays) for arrays in loaded.values() if any(k.startswith("teacher/") for k in arrays)), {}
    )
    return tuple(
        GallerySample(
            key=str(first["key"][index]),
            image=first["image"][index],
            labels={
                name.removeprefix("label/"): maps[index] for name, maps in first.items() if name.startswith("label/")
            },
            predictions={
                run: {
                    name.removeprefix("pred/"): maps[index] for name, maps in arrays.items() if name.startswith("pred/")
                }
                for run, arrays in loaded.items()
            },
            features={name: tuple(level[index] for level in levels) for name, levels in features.items()},
        )
        for index in range(len(first["image"]))
    )


def _arrays(stages: Sequence[StageDir]) -> dict[str, Array]:
    found: dict[str, Array] = {}
    for stage in stages:
        with np.load(stage.path / "gallery.npz", allow_pickle=False) as file:
            found |= {name: file[name] for name in file.files}
    return found


def _features(arrays: Mapping[str, Array]) -> dict[str, list[list[NDArray[np.uint8]]]]:
    """PCA colours by name, level and image: each level's basis is fitted on the teacher and shows the student too."""
    found: dict[str, list[list[NDArray[np.uint8]]]] = {}
    for teacher in dict.fromkeys(name.split("/")[1] for name in arrays if name.startswith("teacher/")):
        rows: list[list[NDArray[np.uint8]]] = []
        others: list[list[NDArray[np.uint8]]] = []
        for level in range(4):
            real, ours = arrays[f"teacher/{teacher}/{level}"], arrays[f"student/{teacher}/{level}"]
            coloured = pca_colours([*real, *ours], fitted=len(real))
            rows.append(coloured[: len(real)])
            others.append(coloured[len(real) :])
        found |= {f"teacher {teacher}": rows, f"student {teacher}": others}
    return found


class _Used(NamedTuple):
    """What the recipe's runs use of the store."""

    costs: tuple[StageCost, ...]
    columns: tuple[StoreUsage, ...]

    @classmethod
    def of(cls, recipe: Recipe) -> _Used:
        """Every view set and column, once."""
        costs: dict[str, StageCost] = {}
        columns: dict[str, StoreUsage] = {}
        for study in (plan.study for plan in recipe.runs):
            store = Store.open(study.store)
            for need in needs(study):
                view_set = store.view_set(view_set_spec(need.data, labels=need.labels, seed=study.seed).name)
                summary = view_set.summary()
                costs[view_set.name] = _store_cost(
                    f"views {view_set.name}", summary.seconds, summary.rows, summary.bytes
                )
                for name in need.teachers:
                    spec = study.teachers[name].spec(name)
                    column = find_column(store, spec, view_set=view_set.name, codec=study.extract.codec)
                    if column is None:
                        continue
                    done = column.summary()
                    key = f"{need.purpose} / {name}"
                    costs[key] = _store_cost(f"teacher {key}", done.seconds, done.rows, done.bytes)
                    columns[key] = _usage(key, study.extract.codec, done.rows, done.bytes, done.fp16_bytes, done.stats)
        return cls(tuple(costs.values()), tuple(columns.values()))


def _store_cost(detail: str, seconds: float, rows: int, size: int) -> StageCost:
    rate = f"{rows / max(seconds, 1e-9):.0f} rows/s"
    return StageCost(stage="extract", seconds=seconds, rate=rate, detail=f"{detail}: {rows} rows, {size / 1e6:.1f} MB")


def _usage(key: str, codec: str, rows: int, size: int, fp16: int, stats: Mapping[str, object]) -> StoreUsage:
    cosines = [float(str(level["cosine"])) for level in stats.values() if isinstance(level, dict) and "cosine" in level]
    return StoreUsage(
        column=key,
        codec=codec,
        rows=rows,
        bytes_stored=size,
        bytes_fp16=fp16,
        bytes_per_image=size / max(rows, 1),
        fidelity=f"cosine {sum(cosines) / len(cosines):.5f}" if cosines else "",
    )


def _notes(dataset: str, tasks: Sequence[TaskSpec]) -> tuple[str, ...]:
    notes = [
        "Teachers ran once, at extraction; no training or evaluation stage above loaded one unless it says online."
    ]
    if any(task.name == "edge" and task.metric != "odsF" for task in tasks):
        notes.append("The boundary number is a per-pixel score without matching tolerance, not the field's odsF.")
    return tuple(notes)


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []
