"""The results table of a recipe: every run's metrics, Delta_m against the baselines, parameters and time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from rich.table import Table

from pipeline.baselines import baseline_label, baseline_story, stored_metrics
from pipeline.errors import PipelineError
from pipeline.recipes import Recipe, RunPlan
from pipeline.stagedir import StageDir, read_json
from sak.metrics import delta_m
from sak.tasks import DATASETS, TaskSpec

__all__ = [
    "RunResult",
    "RunStages",
    "delta_notes",
    "gather",
    "main_values",
    "other_baselines",
    "results_json",
    "results_table",
    "shown_tasks",
]

Metrics = Mapping[str, Mapping[str, float]]

# Best known first. They count where every run that is compared has the same one.
_BOUNDARY = ("odsF", "odsF-invpt", "odsF-mtinet")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunStages:
    """Finished stages of one run: one triple, or one for each task of a ``split_tasks`` run."""

    plan: RunPlan
    stages: Sequence[Mapping[str, StageDir]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """One row of the table.

    Units:
        delta: percent, by baseline.
        seconds: wall clock of each stage; a shared stage counts in every run that uses it.
        parameters: of what inference keeps.
    """

    name: str
    description: str
    dataset: str
    metrics: Metrics
    delta: Mapping[str, float]
    parameters: int
    seconds: Mapping[str, float]


def gather(recipe: Recipe, runs: Sequence[RunStages], /) -> list[RunResult]:
    """Read every run's stage records and compare them with the recipe's baselines.

    Raises:
        PipelineError: A stage's record is missing or damaged.
    """
    rows = [_row(run) for run in runs]
    by_name = {row.name: row for row in rows}
    return [
        dataclasses.replace(
            row,
            delta={
                base.name: _delta(row, base)
                for base in _baselines(recipe, by_name, row.dataset)
                if base.name != row.name and _comparable(row, base)
            },
        )
        for row in rows
    ]


def _baselines(recipe: Recipe, runs: Mapping[str, RunResult], dataset: str) -> list[RunResult]:
    """As rows of a table: runs as they are, and others as if they had been run on this data set."""
    return [
        runs[name]
        if name in runs
        else RunResult(
            name=baseline_label(name),
            description=baseline_story(name, dataset=dataset),
            dataset=dataset,
            metrics=stored_metrics(name, dataset=dataset),
            delta={},
            parameters=0,
            seconds={},
        )
        for name in recipe.baselines
    ]


def other_baselines(recipe: Recipe, results: Sequence[RunResult], /) -> list[RunResult]:
    """Baselines that are no run, as rows of the first run's data set."""
    runs = {row.name: row for row in results}
    return [base for base in _baselines(recipe, runs, results[0].dataset) if base.name not in runs]


def delta_notes(recipe: Recipe, results: Sequence[RunResult], /) -> list[str]:
    """Of each baseline that is no run: what it is, and why there is no Delta_m where there is none."""
    notes: dict[str, None] = {}
    runs = {row.name: row for row in results}
    for row in results:
        for base in _baselines(recipe, runs, row.dataset):
            if base.name not in runs:
                notes[f"Δm vs {base.name}: {base.description}."] = None
                if base.name not in row.delta:
                    notes[f"{row.name} has no Δm vs {base.name}: {_hindrance(row, base)}."] = None
    return [*notes]


def _hindrance(row: RunResult, base: RunResult) -> str:
    tasks = shown_tasks([row, base])
    ours, theirs = main_values(row, tasks), main_values(base, tasks)
    if {*ours} != {*theirs}:
        return f"tasks differ, {', '.join(ours) or 'none'} against {', '.join(theirs) or 'none'}"
    lost = [task for task in tasks if not (math.isfinite(ours[task.name]) and math.isfinite(theirs[task.name]))]
    found = ", ".join(f"{task.name} {task.metric}" for task in lost) or "a change from 0"
    odsf = "; eval.boundary: odsF makes the boundary number of published tables"
    return f"not on both sides: {found}{odsf if any(task.name == 'edge' for task in lost) else ''}"


def shown_tasks(results: Sequence[RunResult], /) -> list[TaskSpec]:
    """Tasks that any of some runs has, in table order, with the metric that stands for each in all of them."""
    found = {task.name: task for row in results if row.dataset for task in DATASETS[row.dataset].tasks.values()}
    having = {name: [row.metrics[name] for row in results if name in row.metrics] for name in found}
    return [_by_odsf(task, having[name]) for name, task in found.items() if having[name]]


def main_values(result: RunResult, tasks: Sequence[TaskSpec], /) -> dict[str, float]:
    """Each task's headline metric, of the tasks that the run has; NaN where it has another metric."""
    having = [task for task in tasks if task.name in result.metrics]
    return {task.name: result.metrics[task.name].get(task.metric, math.nan) for task in having}


def results_json(results: Sequence[RunResult], /) -> dict[str, object]:
    """The table as plain data."""
    return {"runs": [dataclasses.asdict(result) for result in results]}


def results_table(results: Sequence[RunResult], /) -> Table:
    """The table for a terminal; the best value of each column is bold."""
    table = Table(title=None, header_style="bold")
    table.add_column("run")
    tasks = shown_tasks(results)
    values = [main_values(row, tasks) for row in results]
    best = {task.name: _best([row.get(task.name, math.nan) for row in values], task) for task in tasks}
    for task in tasks:
        table.add_column(task.label, justify="right")
    if any("distill" in row.metrics for row in results) and not tasks:
        table.add_column("held-out distill loss ↓", justify="right")
    baselines = list(dict.fromkeys(name for row in results for name in row.delta))
    for name in baselines:
        table.add_column(f"Δm % vs {name}", justify="right")
    table.add_column("parameters", justify="right")
    table.add_column("time", justify="right")
    for row, own in zip(results, values, strict=True):
        cells = [_cell(own.get(task.name, math.nan), best[task.name]) for task in tasks]
        if "distill" in row.metrics and not tasks:
            cells.append(f"{row.metrics['distill']['loss']:.4f}")
        cells += [f"{row.delta[name]:+.2f}" if name in row.delta else "–" for name in baselines]
        cells += [f"{row.parameters / 1e6:.2f} M", f"{sum(row.seconds.values()):.0f} s"]
        table.add_row(row.name, *cells)
    return table


def _row(run: RunStages) -> RunResult:
    metrics: dict[str, Mapping[str, float]] = {}
    seconds: dict[str, float] = {}
    parameters, dataset = 0, ""
    for stages in run.stages:
        for name, stage in stages.items():
            seconds[name] = seconds.get(name, 0.0) + _number(stage.record()["seconds"])
        scored = read_json(stages["eval"].path / "metrics.json")
        metrics |= {task: _floats(values) for task, values in scored.items()}
        trained = (stages.get("finetune") or stages.get("distill") or stages["eval"]).record()
        counts = _floats(trained["parameters"])
        parameters += _kept(counts)
        dataset = str(trained.get("dataset", ""))
    return RunResult(
        name=run.plan.name,
        description=run.plan.description,
        dataset=dataset,
        metrics=metrics,
        delta={},
        parameters=parameters,
        seconds=seconds,
    )


def _kept(counts: Mapping[str, float]) -> int:
    """Parameters that inference keeps: aligners serve distillation alone, and so do a plain student's norms."""
    norms = 0 if counts["paths"] else counts["norms"]
    return int(counts["total"] - counts["aligners"] - norms)


def _delta(row: RunResult, baseline: RunResult) -> float:
    tasks = shown_tasks([row, baseline])
    ours, theirs = ({task.name: one.metrics[task.name] for task in tasks} for one in (row, baseline))
    return delta_m(ours, theirs, row.dataset, metrics={task.name: task.metric for task in tasks})


def _comparable(row: RunResult, baseline: RunResult) -> bool:
    """Whether a relative change exists: the same tasks, all of them scored, and nothing to be divided by zero."""
    if not row.dataset or row.dataset != baseline.dataset:
        return False
    ours, theirs = (main_values(one, shown_tasks([row, baseline])) for one in (row, baseline))
    return {*ours} == {*theirs} and all(map(math.isfinite, (*ours.values(), *theirs.values()))) and all(theirs.values())


def _by_odsf(task: TaskSpec, having: Sequence[Mapping[str, float]]) -> TaskSpec:
    shared = [name for name in _BOUNDARY if task.name == "edge" and all(name in metrics for metrics in having)]
    return dataclasses.replace(task, metric=shared[0], higher_is_better=True) if shared else task


def _best(values: Sequence[float], task: TaskSpec) -> float:
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return math.nan
    return max(finite) if task.higher_is_better else min(finite)


def _cell(value: float, best: float) -> str:
    if math.isnan(value):
        return "–"
    return f"[bold]{value:.2f}[/bold]" if value == best else f"{value:.2f}"


def _number(value: object) -> float:
    if not isinstance(value, int | float):
        raise PipelineError(f"a stage record holds {value!r} where a number was expected; delete its folder and rerun")
    return float(value)


def _floats(value: object) -> dict[str, float]:
    if not isinstance(value, dict):
        raise PipelineError(f"a stage record holds {value!r} where a mapping was expected; delete its folder and rerun")
    # A metric without a single valid pixel is NaN, which JSON writes as null.
    return {str(name): math.nan if item is None else _number(item) for name, item in value.items()}
