"""A recipe's runs: by name, as the studies they are made of, with the stages and results they have left."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from pipeline.config import Study
from pipeline.errors import NotDoneError, PipelineError
from pipeline.identity import distill_dir, evaluate_dir, finetune_dir
from pipeline.recipes import Recipe, RunPlan
from pipeline.results import RunResult, RunStages, gather, results_json
from pipeline.stagedir import StageDir, write_json
from pipeline.viewsets import cached_source

__all__ = ["collect", "find_study", "scored", "select", "stage_dirs", "substudies"]


def collect(recipe: Recipe, /) -> list[RunResult]:
    """The results of a recipe whose stages are done; also written to ``results.json``.

    Raises:
        NotDoneError: A stage is not done; the message names it.
    """
    results = gather(recipe, [stage_dirs(plan, recipe.out) for plan in recipe.runs])
    write_json(recipe.out / "results.json", results_json(results))
    return results


def scored(recipe: Recipe, names: Sequence[str], /) -> list[RunResult]:
    """Runs by name (none named means all) with their scores, against no baseline.

    Raises:
        PipelineError: A name is no run of the recipe.
        NotDoneError: A stage of one is not done; the message names it.
    """
    plans = select(recipe, names)
    return gather(dataclasses.replace(recipe, baselines=()), [stage_dirs(plan, recipe.out) for plan in plans])


def stage_dirs(plan: RunPlan, out: Path, /) -> RunStages:
    """The finished stages of a run.

    Raises:
        NotDoneError: One is not done.
    """
    found = []
    for label, study in substudies(plan):
        stages: dict[str, StageDir] = {}
        if study.distill:
            stages["distill"] = distill_dir(study, out)
        if study.finetune:
            stages["finetune"] = finetune_dir(study, out)
        stages["eval"] = evaluate_dir(study, out)
        for name, stage in stages.items():
            if not stage.done():
                raise NotDoneError(f"{label}: stage {name} is not done ({stage.path})")
        found.append(stages)
    return RunStages(plan=plan, stages=found)


def select(recipe: Recipe, names: Sequence[str], /) -> tuple[RunPlan, ...]:
    """Runs by name; none named means all.

    Raises:
        PipelineError: A name is no run of the recipe.
    """
    known = {plan.name: plan for plan in recipe.runs}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise PipelineError(f"run {', '.join(unknown)}: not in this recipe; its runs are {', '.join(known)}")
    return tuple(known[name] for name in names) or recipe.runs


def find_study(recipe: Recipe, label: str, /) -> Study:
    """The study of a run, or of one task of a ``split_tasks`` run, named ``RUN/TASK``.

    Raises:
        PipelineError: There is none of that name, or the run has one for each task; the message lists the names.
    """
    (plan,) = select(recipe, [label.partition("/")[0]])
    studies = dict(substudies(plan))
    if label not in studies:
        raise PipelineError(f"run {label}: expected one of {', '.join(studies)}")
    return studies[label]


def substudies(plan: RunPlan, /) -> list[tuple[str, Study]]:
    """Labelled studies of a run: itself, or one for each task."""
    study = plan.study
    if not plan.split_tasks or study.finetune is None or study.data.finetune is None:
        return [(plan.name, study)]
    tasks = study.finetune.tasks or cached_source(study.data.finetune.source).tasks
    return [
        (
            f"{plan.name}/{task}",
            dataclasses.replace(study, finetune=dataclasses.replace(study.finetune, tasks=(task,))),
        )
        for task in tasks
    ]
