"""The tables of views.md, from what the runs left: ``views.py [--base RUN] OUT [OUT …]``.

Each OUT is the output folder of one seed, whose recipe.yaml says what its runs are. A run counts for the seeds in which
it is done. Differences to the base (``fresh``, a stored view for every epoch) are taken seed by seed.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.config import Study
from pipeline.errors import NotDoneError
from pipeline.needs import needs
from pipeline.recipes import Recipe, load_recipe
from pipeline.results import RunResult, gather, main_values, shown_tasks
from pipeline.runs import stage_dirs
from pipeline.targets import find_column
from pipeline.tracking import read_metrics
from pipeline.viewsets import view_set_spec
from sak.metrics import delta_m
from store.errors import MissingColumnError
from store.store import Store

__all__: list[str] = []

STAGE1 = "-stage1"


class Done(NamedTuple):
    """One run of one seed: its scores, the loss of its last epoch of stage 1, and what it reads from the store."""

    result: RunResult
    trained: float
    study: Study


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--base", default="fresh")
    parser.add_argument("outs", type=Path, nargs="+")
    options = parser.parse_args()
    seeds = [done_runs(load_recipe(out / "recipe.yaml")) for out in options.outs]
    names = list(dict.fromkeys(name for seed in seeds for name in seed if not name.endswith(STAGE1)))
    tasks = list(dict.fromkeys(task for seed in seeds for done in seed.values() for task in headline(done.result)))
    heads = ["run", "seeds", "MB stored", "loss in training", "held-out loss of stage 1", "against base %"]
    print("| " + " | ".join([*heads, *(["Δm %", *tasks] if tasks else [])]) + " |")
    print("|---" + "|---:" * (len(heads) - 1 + (1 + len(tasks) if tasks else 0)) + "|")
    for name in names:
        print("| " + " | ".join(cells(name, seeds, base=options.base, tasks=tasks)) + " |")


def done_runs(recipe: Recipe) -> dict[str, Done]:
    """The finished runs of one seed."""
    found = {}
    for plan in recipe.runs:
        try:
            stages = stage_dirs(plan, recipe.out)
        except (NotDoneError, MissingColumnError):
            continue
        (result,) = gather(recipe_of(recipe), [stages])
        log = read_metrics(stages.stages[0]["distill"].path / "metrics.jsonl")
        found[plan.name] = Done(result, statistics.mean(line["total"] for line in log[-3:]), plan.study)
    return found


def headline(result: RunResult) -> dict[str, float]:
    """Each task's headline metric."""
    return main_values(result, shown_tasks([result]))


def recipe_of(recipe: Recipe) -> Recipe:
    """The recipe without baselines, which need every run to be done."""
    return Recipe(
        name=recipe.name,
        out=recipe.out,
        study=recipe.study,
        runs=recipe.runs,
        baselines=(),
        summary=recipe.summary,
        resolved=recipe.resolved,
    )


def cells(name: str, seeds: Sequence[dict[str, Done]], *, base: str, tasks: Sequence[str]) -> Iterable[str]:
    """A row of the table."""
    mine = [seed for seed in seeds if name in seed]
    pairs = [(seed[name].result, seed[base].result) for seed in mine if base in seed]
    losses = [held_out(seed, name) for seed in mine]
    against = [100 * (held_out(seed, name) / held_out(seed, base) - 1) for seed in mine if base in seed]
    yield name
    yield str(len(mine))
    yield f"{megabytes(mine[0][name].study):.1f}"
    yield spread([seed[name].trained for seed in mine], ".3f")
    yield f"{', '.join(f'{loss:.4f}' for loss in losses)}"
    yield "" if name == base else spread(against, "+.2f")
    if not tasks:
        return
    yield "" if name == base else spread([delta(*pair) for pair in pairs], "+.2f")
    for task in tasks:
        yield spread([headline(seed[name].result)[task] for seed in mine], ".2f")


def held_out(seed: dict[str, Done], name: str) -> float:
    """Held-out distillation loss after stage 1, of the run itself where it has no stage 2."""
    done = seed.get(name + STAGE1, seed[name])
    return done.result.metrics["distill"]["loss"]


def delta(result: RunResult, base: RunResult) -> float:
    """Δm of the tasks, in per cent; the teachers' loss is none."""
    ours, theirs = ({name: item.metrics[name] for name in headline(item)} for item in (result, base))
    return delta_m(ours, theirs, result.dataset)


def megabytes(study: Study) -> float:
    """What stage 1 reads from the store: images and columns of the views that the run asks for."""
    total = 0
    for need in (need for need in needs(study) if need.purpose == "distill"):
        store, spec = Store.open(study.store), view_set_spec(need.data, labels=need.labels)
        total += store.view_set(spec.name, views=spec.views).summary().bytes
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


if __name__ == "__main__":
    main()
