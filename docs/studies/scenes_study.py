"""The tables and the picture of scenes_study.md: ``scenes_study.py [--picture FILE.svg] OUT [OUT …]``.

Each OUT is the output folder of one seed, whose recipe.yaml says what its runs are, named RUN-LAYOUT. A run counts for
the seeds in which it is done; Δm is taken seed by seed against the single-task networks of the same seed.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Study
from pipeline.errors import NotDoneError
from pipeline.needs import needs
from pipeline.recipes import Recipe, load_recipe
from pipeline.results import RunResult, RunStages, gather, main_values, shown_tasks
from pipeline.runs import stage_dirs
from pipeline.stagedir import read_json
from pipeline.targets import find_column
from pipeline.viewsets import view_set_spec
from sak.tasks import TaskSpec, metric_spec
from store.errors import MissingColumnError
from store.store import Store

__all__: list[str] = []

LAYOUTS = {"pascal": "PASCAL-Context's labels", "nyud": "NYUD-v2's labels"}
BASE = "single-task"
FITTING = {
    "semseg": "semantics",
    "human_parts": "semantics",
    "normals": "geometry",
    "depth": "geometry",
    "edge": "boundary",
    "sal": "boundary",
}
TEACHERS = tuple(dict.fromkeys(FITTING.values()))
ROUTED = {"sak": "distilled", "untaught": "same network, no teacher"}


class Done(NamedTuple):
    """One run of one seed: its scores, what it is made of, and task to router weights (level, expert), if any."""

    result: RunResult
    study: Study
    gates: Mapping[str, NDArray[np.float64]]
    experts: Sequence[str]


Seeds = Sequence[Mapping[str, Done]]


def main() -> None:
    """Print all tables and write the picture."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--picture", type=Path)
    parser.add_argument("outs", type=Path, nargs="+")
    options = parser.parse_args()
    seeds = [done_runs(load_recipe(out / "recipe.yaml")) for out in options.outs]
    for layout, title in LAYOUTS.items():
        print(f"\n### {title}\n")
        print("\n".join(results_table(of_layout(seeds, layout))))
    for name, title in ROUTED.items():
        print(f"\n### Router weights: {name} ({title})\n")
        print("\n".join(router_table(seeds, name)))
    if options.picture:
        options.picture.write_text(picture(seeds), encoding="utf-8")


def done_runs(recipe: Recipe) -> dict[str, Done]:
    """The finished runs of one seed; without baselines, which need every run to be done."""
    found = {}
    for plan in recipe.runs:
        try:
            stages = stage_dirs(plan, recipe.out)
        except (NotDoneError, MissingColumnError):
            continue
        (result,) = gather(dataclasses.replace(recipe, baselines=()), [stages])
        found[plan.name] = Done(result, plan.study, *routers(stages))
    return found


def routers(run: RunStages) -> tuple[dict[str, NDArray[np.float64]], Sequence[str]]:
    """Task to weights, and the names of the experts."""
    stage = run.stages[0]["eval"]
    held: Any = read_json(stage.path / "routers.json")
    record: Any = stage.record()
    return {task: np.array(weights) for task, weights in held.items()}, record["experts"]


def of_layout(seeds: Seeds, layout: str) -> list[dict[str, Done]]:
    """The runs of a layout, without its name in theirs, and the oracle made of the frozen ones."""
    found = []
    for seed in seeds:
        runs = {name.removesuffix(f"-{layout}"): done for name, done in seed.items() if name.endswith(f"-{layout}")}
        single = [runs[f"frozen-{teacher}"] for teacher in TEACHERS if f"frozen-{teacher}" in runs]
        found.append(with_oracle(runs, single) if len(single) == len(TEACHERS) else runs)
    return found


def with_oracle(runs: dict[str, Done], single: Sequence[Done]) -> dict[str, Done]:
    """The runs and, beside the frozen teachers, the best of them for each task, by its scores as in the paper."""
    metrics = {}
    for task in shown_tasks([done.result for done in single]):
        best = max if task.higher_is_better else min
        chosen = best(single, key=lambda done: done.result.metrics[task.name][task.metric])
        metrics[task.name] = chosen.result.metrics[task.name]
    result = dataclasses.replace(single[0].result, name="oracle", metrics=metrics, parameters=0)
    merged: dict[str, Done] = {}
    for name, done in runs.items():
        if name == "frozen-all":
            merged["oracle"] = single[0]._replace(result=result)
        merged[name] = done
    return merged


def results_table(seeds: Seeds) -> Iterator[str]:
    """Every run's scores over seeds, Δm against the single-task networks, and what of teachers it has stored."""
    names = list(dict.fromkeys(name for seed in seeds for name in seed))
    tasks = shown_tasks([done.result for seed in seeds for done in seed.values()])
    heads = ["run", "seeds", "features stored, MB", *(task.label for task in tasks), "Δm %", "parameters, M"]
    yield "| " + " | ".join(heads) + " |"
    yield "|---" + "|---:" * (len(heads) - 1) + "|"
    for name in names:
        yield "| " + " | ".join(cells(name, seeds, tasks)) + " |"


def cells(name: str, seeds: Seeds, tasks: Sequence[TaskSpec]) -> Iterable[str]:
    """A row of the table."""
    mine = [seed for seed in seeds if name in seed]
    pairs = [(seed[name].result, seed[BASE].result) for seed in mine if BASE in seed]
    yield name
    yield str(len(mine))
    yield "" if name == "oracle" else f"{megabytes(mine[0][name].study):.1f}"
    for task in tasks:
        yield spread([main_values(seed[name].result, tasks)[task.name] for seed in mine], ".2f")
    yield "" if name == BASE else spread([delta(*pair, tasks) for pair in pairs], "+.2f")
    yield "" if name == "oracle" else f"{mine[0][name].result.parameters / 1e6:.2f}"


def delta(result: RunResult, base: RunResult, tasks: Sequence[TaskSpec]) -> float:
    """Δm in per cent by the metrics of the table."""
    ours, theirs = main_values(result, tasks), main_values(base, tasks)
    signs = {task.name: 1 if metric_spec(task.metric).higher_is_better else -1 for task in tasks}
    return 100 * statistics.mean(signs[task] * (ours[task] / theirs[task] - 1) for task in ours)


def megabytes(study: Study) -> float:
    """The columns that training reads from the store, in both stages; nothing for what is live."""
    total = 0
    for need in (need for need in needs(study) if need.purpose != "eval"):
        store, spec = Store.open(study.store), view_set_spec(need.data, labels=need.labels)
        for name, codec in need.teachers.items():
            column = find_column(store, study.teachers[name].spec(name), view_set=spec, codec=codec)
            total += column.summary().bytes if column else 0
    return total / 1e6


def spread(values: Sequence[float], form: str) -> str:
    """Mean ± standard deviation over seeds."""
    if not values:
        return "–"
    deviation = f" ± {statistics.stdev(values):{form.removeprefix('+')}}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{form}}{deviation}"


class Weights(NamedTuple):
    """Router weights of a run's tasks over seeds: mean over images and levels.

    Shapes:
        of: task to ``(seeds, experts)``.
    """

    experts: Sequence[str]
    of: Mapping[str, NDArray[np.float64]]


def weights_of(seeds: Seeds, run: str) -> Weights:
    """Of one run, named RUN-LAYOUT."""
    mine = [seed[run] for seed in seeds if run in seed]
    tasks = [task for task in FITTING if mine and task in mine[0].gates]
    return Weights(
        mine[0].experts if mine else [], {task: np.stack([d.gates[task].mean(0) for d in mine]) for task in tasks}
    )


def router_table(seeds: Seeds, name: str) -> Iterator[str]:
    """Weights by task and expert, the fitting teacher's in bold, and how often it is the first of the teachers."""
    experts = next((found.experts for layout in LAYOUTS if (found := weights_of(seeds, f"{name}-{layout}")).of), [])
    yield "| labels | task | " + " | ".join(experts) + " | fitting over the mean of the others | first in |"
    yield "|---|---" + "|---:" * (len(experts) + 2) + "|"
    for layout in LAYOUTS:
        for task, weights_SE in weights_of(seeds, f"{name}-{layout}").of.items():
            fit = experts.index(FITTING[task])
            others = [index for index in range(1, len(experts)) if index != fit]
            row = [spread(weights_SE[:, index].tolist(), ".3f") for index in range(len(experts))]
            row[fit] = f"**{row[fit]}**"
            ratio = spread((weights_SE[:, fit] / weights_SE[:, others].mean(1)).tolist(), ".2f")
            first = int((weights_SE[:, fit] > weights_SE[:, others].max(1)).sum())
            yield f"| {layout} | {task} | " + " | ".join(row) + f" | {ratio} | {first} of {len(weights_SE)} |"


def picture(seeds: Seeds) -> str:
    """A heat map for each layout and routed run: a row a task, a column an expert; the fitting teacher is framed."""
    side, left, top, gap, line = 62, 92, 66, 34, 26
    parts: list[str] = []
    x, tallest = 12, 0
    for name, title in ROUTED.items():
        y = 0
        for layout in LAYOUTS:
            found = weights_of(seeds, f"{name}-{layout}")
            parts += panel(found, x + left, y + top, side=side, line=line, title=f"{name}, {layout} ({title})")
            y += top + line * len(found.of) + gap
        x, tallest = x + left + 4 * side + gap, max(tallest, y)
    style = "text{font:11px sans-serif;fill:#222}.h{font-weight:bold}.n{text-anchor:middle}.r{text-anchor:end}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {x} {tallest}" width="{x}" height="{tallest}">'
    return "\n".join(
        [head, f"<style>{style}</style>", '<rect width="100%" height="100%" fill="#fff"/>', *parts, "</svg>\n"]
    )


def panel(found: Weights, x: int, y: int, *, side: int, line: int, title: str) -> Iterator[str]:
    """One heat map; white is 0 and full colour 0.7 and more."""
    yield f'<text class="h" x="{x}" y="{y - 26}">{escape(title)}</text>'
    for column, expert in enumerate(found.experts if found.of else []):
        yield f'<text class="n" x="{x + side * column + side / 2}" y="{y - 8}">{escape(expert)}</text>'
    for row, (task, weights_SE) in enumerate(found.of.items()):
        at = y + line * row
        yield f'<text class="r" x="{x - 8}" y="{at + line / 2 + 4}">{escape(task)}</text>'
        for column, weight in enumerate(weights_SE.mean(0).tolist()):
            frame = found.experts[column] == FITTING[task]
            share = min(weight / 0.7, 1.0)
            red, green, blue = (round(255 - share * (255 - end)) for end in (33, 113, 181))
            stroke = 'stroke="#d95f02" stroke-width="2"' if frame else 'stroke="#fff"'
            cell = f'x="{x + side * column + 1}" y="{at + 1}" width="{side - 2}" height="{line - 2}"'
            yield f'<rect {cell} fill="rgb({red},{green},{blue})" {stroke}/>'
            shade = ' style="fill:#fff"' if share > 0.6 else ""
            yield (
                f'<text class="n" x="{x + side * column + side / 2}" y="{at + line / 2 + 4}"{shade}>{weight:.2f}</text>'
            )


if __name__ == "__main__":
    main()
