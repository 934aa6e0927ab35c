"""``sak bench extract``: extraction against the bare forward of its teachers, on this machine."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

from pipeline.bench.contender import BenchError
from pipeline.bench.extraction import ExtractionPlan, make_outputs, make_views, measure_extraction
from pipeline.bench.extraction_tables import ExtractionResult
from pipeline.bench.files import flush, machine, scratch
from pipeline.columns import Wanted
from pipeline.config import Study
from pipeline.needs import needs
from pipeline.recipes import load_recipe, recipe_from_mapping
from pipeline.runtime import device_name, pick_device, seed_everything, torch_threads
from pipeline.tracking import progress_bar
from sak.teachers.published import PUBLISHED
from sak.teachers.registry import TEACHERS

__all__ = ["asked_plan", "bench_extract", "named_plan", "study_plan"]


def bench_extract(plan: ExtractionPlan, /) -> ExtractionResult:
    """Make images, and measure each teacher on them with and without extraction around it.

    What is written lies in a new folder, which is removed at the end, whatever the end.

    Raises:
        BenchError: There is no such folder.
        TeacherError: A teacher's weights are absent or do not fit, or it takes no views of this size.
        StoreError: The disk is full or fails, or a codec cannot represent a teacher's maps.
    """
    with torch_threads(plan.threads), scratch(plan.folder) as folder:
        seed_everything(plan.seed, threads=None)
        return _bench(plan, folder)


def _bench(plan: ExtractionPlan, folder: Path) -> ExtractionResult:
    device = pick_device(plan.device)
    with progress_bar("rows") as bar:
        shown = bar.add_task("make images", total=plan.images)
        view_set = make_views(plan, folder / "sak", done=lambda count: bar.advance(shown, count))
    outputs = make_outputs(plan, view_set, device=device)
    flush(folder)
    before = os.getloadavg()[0]
    with progress_bar("turns") as bar:
        shown = bar.add_task("measure", total=None)
        lines = measure_extraction(plan, view_set, outputs, done=lambda name: bar.advance(shown, note=name))
    conditions = _conditions(plan, device) | {"load_before": before, "load_after": os.getloadavg()[0]}
    return ExtractionResult(conditions=conditions, projected=plan.projected, lines=lines)


def _conditions(plan: ExtractionPlan, device: torch.device) -> dict[str, Any]:
    return {
        "date": date.today().isoformat(),
        "machine": machine(),
        "device": device_name(device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "images": plan.images,
        "size": list(plan.size),
        "shard": plan.shard,
        "batch": plan.batch,
        "rounds": plan.rounds,
        "seed": plan.seed,
        "projected_images": plan.projected,
        "teachers": {
            item.spec.name: {
                "network": item.spec.timm,
                "precision": item.spec.precision,
                "channels_last": item.spec.channels_last,
                "compiled": item.spec.compiled,
            }
            for item in plan.wanted
        },
    }


def asked_plan(recipe: Path | None, names: Sequence[str], /, *, overrides: Sequence[str]) -> ExtractionPlan:
    """What a command line asks for: a recipe's teachers, or some by name.

    Raises:
        BenchError: It asks for both or neither.
        RecipeError: The recipe or an override is wrong, or there is no such teacher.
    """
    if (recipe is None) == (not names):
        raise BenchError(
            "extract: expected a recipe or some --teacher NAME, and not both; see sak bench extract --help"
        )
    if recipe is None:
        return named_plan(names, overrides=overrides)
    return study_plan(load_recipe(recipe, list(overrides)).runs[0].study)


def study_plan(study: Study, /) -> ExtractionPlan:
    """What a recipe's run would extract, and how: its teachers, codecs, batch, device and size of views.

    Raises:
        BenchError: It has no data, or no teachers.
        TeacherError: A teacher contradicts itself.
    """
    found = needs(study)
    if not found:
        raise BenchError("recipe: expected data, got none; give it data.distill, or name teachers by --teacher")
    return ExtractionPlan(
        wanted=tuple(Wanted(study.teachers[name].spec(name), study.codec(name)) for name in study.teachers),
        size=found[0].data.view.size,
        batch=study.extract.batch_rows,
        fits=study.extract.batch == "auto",
        device=study.device,
        threads=study.threads,
    )


def named_plan(names: Sequence[str], /, *, overrides: Sequence[str]) -> ExtractionPlan:
    """Teachers by name: published ones and timm models with random weights, built-in ones with their own.

    Args:
        overrides: Changes to the recipe that this stands for.

    Raises:
        RecipeError: There is no such teacher, or an override is wrong.
    """
    data = {"source": {"name": "scenes", "images": 1, "size": 224}, "view": {"kind": "full", "size": 224}}
    recipe = {
        "name": "bench",
        "data": {"distill": data},
        "teachers": {re.sub(r"[^A-Za-z0-9_-]", "-", name): _teacher(name) for name in names},
        "distill": {"steps": 1},
    }
    return study_plan(recipe_from_mapping(recipe, overrides=overrides).runs[0].study)


def _teacher(name: str) -> dict[str, object]:
    if name in TEACHERS:
        return {"builtin": name}
    return {"name" if name in PUBLISHED else "timm": name, "random": 0}
