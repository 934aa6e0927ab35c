"""``sak bench step``: the cached step of stage 1 against the step alone, and against live teachers."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import torch

from pipeline.bench.contender import BenchError
from pipeline.bench.files import flush, machine, scratch
from pipeline.bench.step import WAYS, StepPlan, made_store, measure_steps
from pipeline.bench.step_tables import StepResult
from pipeline.config import Study
from pipeline.recipes import load_recipe, recipe_from_mapping
from pipeline.runtime import device_name, pick_device, seed_everything, torch_threads
from pipeline.targets import codec_label
from pipeline.tracking import progress_bar
from pipeline.viewsets import complete_views
from sak.teachers.published import PUBLISHED
from sak.teachers.registry import TEACHERS

__all__ = ["STUDENTS", "TEACHER", "bench_step", "step_plan"]

STUDENTS = ("vit_small_patch16_224", "vit_base_patch16_224")
TEACHER = "dinov2_vitb14"
_MADE = "bench"


def bench_step(plan: StepPlan, /) -> StepResult:
    """Make a store, or take the study's own, and measure steps of each student on it.

    What is written lies in a new folder, which is removed at the end, whatever the end.

    Raises:
        BenchError: There is no such folder.
        TeacherError: A teacher's weights are absent or do not fit, or it takes no views of this size.
        StoreError: The disk is full or fails, or the study's own store lacks something.
    """
    with torch_threads(plan.study.threads), scratch(plan.folder) as folder:
        seed_everything(plan.study.seed, threads=None)
        return _bench(plan, folder)


def _bench(plan: StepPlan, folder: Path) -> StepResult:
    device, study, name = pick_device(plan.study.device), plan.study, _MADE
    assert study.data.distill is not None
    if plan.own_store:
        name = complete_views(study, study.data.distill, labels=False).name
    else:
        with progress_bar("rows") as bar:
            shown = bar.add_task("make store", total=plan.rows * (1 + len(study.student_teachers)))
            study = made_store(plan, folder / "sak", device=device, done=lambda rows: bar.advance(shown, rows))
        flush(folder)
    load = os.getloadavg()[0]
    with progress_bar("turns") as bar:
        shown = bar.add_task("measure", total=len(plan.students) * len(WAYS) * plan.rounds)
        lines = measure_steps(plan, study, name=name, device=device, done=lambda way: bar.advance(shown, note=way))
    conditions = _conditions(plan, device) | {"load_before": load, "load_after": os.getloadavg()[0]}
    return StepResult(conditions=conditions, lines=lines)


def _conditions(plan: StepPlan, device: torch.device) -> dict[str, Any]:
    study, config = plan.study, plan.config
    assert study.data.distill is not None
    return {
        "date": date.today().isoformat(),
        "machine": machine(),
        "device": device_name(device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "teachers": {name: codec_label(study.codec(name)) for name in study.student_teachers},
        "size": list(study.data.distill.view.size),
        "batch": config.batch,
        "precision": config.precision,
        "compile": config.compile,
        "steps": plan.steps,
        "warmup": plan.warmup,
        "rounds": plan.rounds,
        "store": study.store if plan.own_store else "made",
        "files": "dropped from the page cache before every turn" if plan.cold else "as the page cache has them",
    }


def step_plan(
    recipe: Path | None, /, *, teachers: Sequence[str], students: Sequence[str], overrides: Sequence[str], size: int
) -> StepPlan:
    """What a command line asks for: a recipe's own step, or one against teachers with random weights.

    Args:
        size: Of made views, in place of a recipe.

    Raises:
        BenchError: It asks for both.
        RecipeError: The recipe or an override is wrong, or there is no such teacher.
    """
    if recipe is not None and teachers:
        raise BenchError("step: expected a recipe or --teacher NAME, got both; drop one")
    if recipe is not None:
        studies = [run.study for run in load_recipe(recipe, list(overrides)).runs]
        study = next((study for study in studies if study.distill), studies[0])
        return StepPlan(study=study, students=tuple(students) or (study.student.stem,), own_store=True)
    study = _made_study(teachers or [TEACHER], size=size, overrides=overrides)
    return StepPlan(study=study, students=tuple(students) or STUDENTS)


def _made_study(names: Sequence[str], *, size: int, overrides: Sequence[str]) -> Study:
    view = {"kind": "full", "size": size}
    recipe = {
        "name": "bench",
        "data": {"distill": {"source": {"name": "scenes", "images": 1, "size": size}, "view": view}},
        "teachers": {re.sub(r"[^A-Za-z0-9_-]", "-", name): _teacher(name) for name in names},
        "extract": {"codec": "int8"},
        "distill": {"steps": 1, "batch": 16},
    }
    study = recipe_from_mapping(recipe, overrides=overrides).runs[0].study
    return replace(study, student=replace(study.student, stem=STUDENTS[0]))


def _teacher(name: str) -> dict[str, object]:
    if name in TEACHERS:
        return {"builtin": name}
    return {"name" if name in PUBLISHED else "timm": name, "random": 0}
