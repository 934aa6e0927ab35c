"""Every stage of every run of a recipe, in order; what is done already is skipped."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import yaml

from pipeline.config import Study
from pipeline.errors import EXPECTED, PipelineError
from pipeline.preflight import preflight
from pipeline.recipes import Recipe, RunPlan
from pipeline.results import RunResult, RunStages, gather, results_json
from pipeline.stagedir import StageDir, write_json
from pipeline.stages.distill import distill, distill_dir
from pipeline.stages.evaluate import evaluate, evaluate_dir
from pipeline.stages.extract import extract
from pipeline.stages.finetune import finetune, finetune_dir
from pipeline.viewsets import cached_source

__all__ = ["STAGES", "collect", "find_study", "prepare", "run_stage", "select", "stage_dirs", "substudies"]

STAGES = ("extract", "distill", "finetune", "eval")


def prepare(recipe: Recipe, plans: Sequence[RunPlan], /, *, stages: Sequence[str] = STAGES) -> None:
    """Before any work: keep the recipe beside its results, and look for faults that would show hours later.

    Raises:
        RecipeError: These stages of these runs cannot succeed; the message lists every fault.
        PipelineError: The recipe's folder cannot be written.
    """
    _write_recipe(recipe)
    studies: list[tuple[str, Study]] = []
    for plan in plans:
        try:
            studies += substudies(plan)
        except EXPECTED:  # its source does not open, which the check tells of with all else
            studies.append((plan.name, plan.study))
    preflight(studies, recipe.out, stages=stages)


def run_stage(stage: str, recipe: Recipe, plans: Sequence[RunPlan], /, *, hint: str) -> None:
    """Bring one stage of these runs to done.

    Args:
        stage: One of ``STAGES``.
        hint: The command that completes what a stage finds missing.

    Raises:
        PipelineError, StoreError, SakError: As the stage.
    """
    with _memory_told(stage):
        if stage == "extract":
            extract([study for plan in plans for _, study in substudies(plan)])
            return
        for plan in plans:
            for label, study in substudies(plan):
                _one(stage, study, recipe.out, label=label, hint=hint)


def collect(recipe: Recipe, /, *, hint: str) -> list[RunResult]:
    """The results of a recipe whose stages are done; also written to ``results.json``.

    Raises:
        PipelineError: A stage is not done; the message names it and the command.
    """
    results = gather(recipe, [stage_dirs(plan, recipe.out, hint=hint) for plan in recipe.runs])
    write_json(recipe.out / "results.json", results_json(results))
    return results


def stage_dirs(plan: RunPlan, out: Path, /, *, hint: str) -> RunStages:
    """The finished stages of a run.

    Raises:
        PipelineError: One is not done.
    """
    found = []
    for label, study in substudies(plan):
        stages: dict[str, StageDir] = {}
        if study.distill:
            stages["distill"] = distill_dir(study, out, hint=hint)
        if study.finetune:
            stages["finetune"] = finetune_dir(study, out, hint=hint)
        stages["eval"] = evaluate_dir(study, out, hint=hint)
        for name, stage in stages.items():
            if not stage.done():
                raise PipelineError(f"{label}: stage {name} is not done ({stage.path}); run: {hint}")
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


def _write_recipe(recipe: Recipe) -> None:
    path = recipe.out / "recipe.yaml"
    try:
        recipe.out.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(dict(recipe.resolved), sort_keys=False), encoding="utf-8")
    except OSError as error:
        raise PipelineError(
            f"out: cannot write {error.filename or path} ({error.strerror}); name another folder, as in out=runs/NAME"
        ) from error


@contextmanager
def _memory_told(stage: str) -> Iterator[None]:
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        where = "the GPU" if isinstance(error, torch.OutOfMemoryError) else "this machine"
        raise PipelineError(f"{stage}: {where} ran out of memory; lower {stage}.batch and rerun") from error


def _one(stage: str, study: Study, out: Path, *, label: str, hint: str) -> None:
    # Tidied also when it was found done: its process may have been killed just before it could do so.
    if stage == "distill":
        if study.distill:
            distill(study, out, label=label, hint=hint).tidy()
    elif stage == "finetune":
        if study.finetune:
            finetune(study, out, label=label, hint=hint).tidy()
    elif stage == "eval":
        evaluate(study, out, label=label, hint=hint)
    else:
        raise PipelineError(f"stage {stage!r}: expected one of {', '.join(STAGES)}")
