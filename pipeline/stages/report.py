"""Stage ``report``: everything a recipe's runs left, as one self-contained HTML page."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from pipeline.boundary.counts import read_counts
from pipeline.needs import needs
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
from pipeline.report.pr import PrLine
from pipeline.report.render import write_report
from pipeline.results import RunResult, RunStages, delta_notes, main_values, other_baselines, shown_tasks
from pipeline.runs import collect, stage_dirs
from pipeline.scores import score_lines
from pipeline.stagedir import StageDir, read_json
from pipeline.targets import find_column
from pipeline.tracking import read_metrics
from pipeline.viewsets import view_set_spec
from sak.tasks import TaskSpec
from store.store import Store

__all__ = ["report"]

Array = NDArray[np.generic]

_COSINE = "cosine/"


def report(recipe: Recipe, path: Path, /) -> list[RunResult]:
    """Write the report of a recipe whose stages are done; returns the table it shows.

    Raises:
        NotDoneError: A stage is not done.
    """
    results = collect(recipe)
    runs = [stage_dirs(plan, recipe.out) for plan in recipe.runs]
    write_report(_data(recipe, results, runs), path)
    return results


def _data(recipe: Recipe, results: Sequence[RunResult], runs: Sequence[RunStages]) -> ReportData:
    dataset = results[0].dataset
    shown = shown_tasks(results)
    columns = tuple(_column(task) for task in shown)
    if not columns and any("distill" in row.metrics for row in results):
        columns = (
            MetricColumn(
                task="distill", metric="loss", label="held-out distillation", higher_is_better=False, digits=4
            ),
        )
    used, origin = _Used.of(recipe), _Origin.of(runs)
    return ReportData(
        title=recipe.name,
        created=origin.device,
        summary=recipe.summary,
        dataset=dataset,
        columns=columns,
        runs=tuple(_run_row(row, shown) for row in results),
        curves=tuple(curve for run in runs for curve in _curves(run)),
        gallery=_gallery(runs),
        routers=tuple(item for run in runs for item in _routers(run)),
        costs=(*used.costs, *(cost for run in runs for cost in _costs(run))),
        store=used.columns,
        recipe_yaml=yaml.safe_dump(dict(recipe.resolved), sort_keys=False),
        versions=origin.versions,
        boundary=tuple(line for slot, run in enumerate(runs) for line in _pr_lines(run, slot)),
        notes=(*_notes(shown, runs), *delta_notes(recipe, results), *origin.notes),
        scores=tuple(score_lines(results)),
        against=tuple(_run_row(row, shown) for row in other_baselines(recipe, results)),
        classes={task.name: task.classes for task in shown if task.classes},
    )


def _column(task: TaskSpec) -> MetricColumn:
    return MetricColumn(
        task=task.name, metric=task.metric, label=task.short_name, higher_is_better=task.higher_is_better
    )


def _run_row(row: RunResult, tasks: Sequence[TaskSpec]) -> RunRow:
    values = main_values(row, tasks) or {
        task: value["loss"] for task, value in row.metrics.items() if task == "distill"
    }
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
            yield Curve(
                run=run.plan.name,
                stage="distill" if stage == "distill" else "finetune",
                steps=np.array([line["step"] for line in lines]),
                values=_series(lines),
            )


def _series(lines: list[dict[str, float]]) -> dict[str, NDArray[np.float64]]:
    """Losses, the total first, then each teacher's cosine as the mean over its levels; not a number where it has none.

    Other names with a slash are for trackers: they are too many for a page.
    """
    names = dict.fromkeys(name for line in lines for name in line)
    losses = [name for name in names if "/" not in name and name not in ("step", "lr", "grad_norm", "total")]
    found = {name: [line.get(name, math.nan) for line in lines] for name in ("total", *losses)}
    for teacher in dict.fromkeys(_teacher(name) for name in names if name.startswith(_COSINE)):
        levels = [[value for name, value in line.items() if _teacher(name) == teacher] for line in lines]
        found[f"cosine to {teacher}"] = [statistics.fmean(values) if values else math.nan for values in levels]
    return {name: np.array(values) for name, values in found.items()}


def _teacher(name: str) -> str:
    """Of ``cosine/<teacher>_level<i>``; empty for other names."""
    return name[len(_COSINE) :].rpartition("_level")[0] if name.startswith(_COSINE) else ""


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
                rate=_rate(images, seconds, "images"),
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
    """Samples that every run was scored on, in the first run's order."""
    parts = [(run.plan.name, _samples(stages["eval"])) for run in runs for stages in run.stages]
    shared = [found for found in parts[0][1] if all(found in samples for _, samples in parts)]
    features: dict[str, list[list[NDArray[np.uint8]]]] = {}
    for _, samples in parts:
        features = features or _features([samples[found] for found in shared])
    gallery = []
    for index, found in enumerate(shared):
        predictions: dict[str, dict[str, Array]] = {}
        labels: dict[str, Array] = {}
        for run, samples in parts:
            labels = _below("label/", samples[found]) | labels
            predictions.setdefault(run, {}).update(_below("pred/", samples[found]))
        gallery.append(
            GallerySample(
                key=found.key,
                image=parts[0][1][found]["image"],  # type: ignore[arg-type]
                labels=labels,
                predictions=predictions,
                features={name: tuple(level[index] for level in levels) for name, levels in features.items()},
            )
        )
    return tuple(gallery)


class _Seen(NamedTuple):
    """A sample as runs are joined on it: the key, and the pixels, since a key may have several views."""

    key: str
    pixels: bytes


def _samples(stage: StageDir) -> dict[_Seen, dict[str, Array]]:
    """Gallery arrays of a finished evaluation, by sample."""
    with np.load(stage.path / "gallery.npz", allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    return {
        _Seen(str(key), arrays["image"][index].tobytes()): {name: array[index] for name, array in arrays.items()}
        for index, key in enumerate(arrays.get("key", ()))
    }


def _below(prefix: str, sample: Mapping[str, Array]) -> dict[str, Array]:
    return {name.removeprefix(prefix): item for name, item in sample.items() if name.startswith(prefix)}


def _features(samples: Sequence[Mapping[str, Array]]) -> dict[str, list[list[NDArray[np.uint8]]]]:
    """PCA colours by name, level and image: each level's basis is fitted on the teacher and shows the student too."""
    found: dict[str, list[list[NDArray[np.uint8]]]] = {}
    names = [name for sample in samples[:1] for name in sample]
    for teacher in dict.fromkeys(name.split("/")[1] for name in names if name.startswith("teacher/")):
        rows: list[list[NDArray[np.uint8]]] = []
        others: list[list[NDArray[np.uint8]]] = []
        for level in range(4):
            real, ours = ([one[f"{side}/{teacher}/{level}"] for one in samples] for side in ("teacher", "student"))
            coloured = pca_colours([*real, *ours], fitted=len(real))
            rows.append(coloured[: len(real)])
            others.append(coloured[len(real) :])
        found |= {f"teacher {teacher}": rows, f"student {teacher}": others}
    return found


class _Origin(NamedTuple):
    """Where the results were made, as their stages recorded it; the machine that writes the report is no part of it."""

    device: str
    versions: Mapping[str, str]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, runs: Sequence[RunStages]) -> _Origin:
        """Devices and versions of all stages, with a note where they differ."""
        records = [stage.record() for run in runs for stages in run.stages for stage in stages.values()]
        devices = list(dict.fromkeys(str(record.get("device", "a device not recorded")) for record in records))
        found: dict[str, dict[str, None]] = {}
        for record in records:
            packages = record.get("versions")
            for name, version in packages.items() if isinstance(packages, dict) else ():
                found.setdefault(str(name), {})[str(version)] = None
        mixed = [name for name, several in found.items() if len(several) > 1]
        differ = [*(["the device"] if len(devices) > 1 else []), *mixed]
        note = f"Runs were not all made alike: {', '.join(differ)} changed between stages, so times may not compare."
        versions = {name: " / ".join(several) for name, several in found.items()}
        return cls(" / ".join(devices), versions, (note,) if differ else ())


class _Used(NamedTuple):
    """What the recipe's runs use of the store."""

    costs: tuple[StageCost, ...]
    columns: tuple[StoreUsage, ...]

    @classmethod
    def of(cls, recipe: Recipe) -> _Used:
        """Every view set and column, once: as much of it as the run that reads most views."""
        costs: dict[str, StageCost] = {}
        columns: dict[str, StoreUsage] = {}
        wanted = [(plan.study, need) for plan in recipe.runs for need in needs(plan.study)]
        for study, need in sorted(wanted, key=lambda item: item[1].data.views):
            store, views = Store.open(study.store), view_set_spec(need.data, labels=need.labels)
            summary = store.view_set(views.name, views=views.views).summary()
            costs[views.name] = _store_cost(f"views {views.name}", summary.spent.total, summary.rows, summary.bytes)
            for name, codec in need.teachers.items():
                column = find_column(store, study.teachers[name].spec(name), view_set=views, codec=codec)
                if column is None:
                    continue
                done = column.summary()
                key = f"{need.purpose} / {name}"
                costs[key] = _store_cost(f"teacher {key}", done.spent.total, done.rows, done.bytes)
                columns[key] = _usage(key, column.spec.codec.name, done.rows, done.bytes, done.fp16_bytes, done.stats)
        return cls(tuple(costs.values()), tuple(columns.values()))


def _store_cost(detail: str, seconds: float, rows: int, size: int) -> StageCost:
    text = f"{detail}: {rows} rows, {size / 1e6:.1f} MB"
    return StageCost(stage="extract", seconds=seconds, rate=_rate(rows, seconds, "rows"), detail=text)


def _rate(count: int, seconds: float, unit: str) -> str:
    """Text of a speed; work that took no measured time has none."""
    return f"{count / seconds:.0f} {unit}/s" if seconds > 0 else "–"


def _usage(key: str, codec: str, rows: int, size: int, fp16: int, stats: Mapping[str, object]) -> StoreUsage:
    cosines = [
        float(str(level["token_cosine"]))
        for level in stats.values()
        if isinstance(level, dict) and "token_cosine" in level
    ]
    return StoreUsage(
        column=key,
        codec=codec,
        rows=rows,
        bytes_stored=size,
        bytes_fp16=fp16,
        bytes_per_image=size / max(rows, 1),
        fidelity=f"cosine {sum(cosines) / len(cosines):.5f}" if cosines else "",
    )


def _pr_lines(run: RunStages, slot: int) -> Iterator[PrLine]:
    """The run's precision over recall of boundaries, where odsF was asked for."""
    for stages in run.stages:
        path = stages["eval"].path / "boundary.parquet"
        if path.exists():
            table = read_counts(path)
            yield PrLine(run.plan.name, slot, table.curve(), table.scores())


def _notes(tasks: Sequence[TaskSpec], runs: Sequence[RunStages]) -> tuple[str, ...]:
    notes = [
        "Teachers ran once, at extraction; no training or evaluation stage above loaded one unless it says online."
    ]
    if any(task.name == "edge" and not task.metric.startswith("odsF") for task in tasks):
        notes.append("The boundary number is a per-pixel score without matching tolerance, not the field's odsF.")
    about = [stages["eval"].record().get("boundary") for run in runs for stages in run.stages]
    for text in dict.fromkeys(_boundary_note(item) for item in about if isinstance(item, dict)):
        notes.append(text)
    return tuple(notes)


def _boundary_note(about: Mapping[str, object]) -> str:
    how = "protocol {protocol}, tolerance {max_dist} of the diagonal, against {truth}, on {view} views"
    return f"odsF of boundaries: {how}.".format_map(about)


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []
