"""Every stage of every run of a recipe, in order; what is done already is skipped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import yaml

from pipeline.config import Study
from pipeline.distributed import ALONE, Ranks
from pipeline.errors import EXPECTED, PipelineError
from pipeline.extraction_events import events_path
from pipeline.extraction_log import ExtractionLog
from pipeline.preflight import preflight
from pipeline.recipes import Recipe, RunPlan
from pipeline.runs import substudies
from pipeline.stages.distill import distill
from pipeline.stages.evaluate import evaluate
from pipeline.stages.extract import extract
from pipeline.stages.finetune import finetune
from store.fingerprint import digest_json

__all__ = ["STAGES", "prepare", "run_stage"]

STAGES = ("extract", "distill", "finetune", "eval")
_ON_RANKS = ("distill", "finetune", "eval")


def prepare(
    recipe: Recipe, plans: Sequence[RunPlan], /, *, stages: Sequence[str] = STAGES, ranks: Ranks = ALONE
) -> None:
    """Before any work: keep the recipe beside its results, and look for faults that would show hours later.

    Raises:
        RecipeError: These stages of these runs cannot succeed; the message lists every fault.
        PipelineError: The recipe's folder cannot be written, or several ranks are to do what one does.
    """
    single = [stage for stage in stages if stage not in _ON_RANKS]
    if ranks.world > 1 and single:
        raise PipelineError(
            f"{', '.join(single)}: torchrun started {ranks.world} processes, but only sak distill, sak finetune and sak"
            " eval work on several; run this command without torchrun"
        )
    if ranks.first:
        _write_recipe(recipe)
    studies: list[tuple[str, Study]] = []
    for plan in plans:
        try:
            studies += substudies(plan)
        except EXPECTED:  # its source does not open, which the check tells of with all else
            studies.append((plan.name, plan.study))
    preflight(studies, recipe.out, stages=stages)


def run_stage(stage: str, recipe: Recipe, plans: Sequence[RunPlan], /, *, ranks: Ranks = ALONE) -> None:
    """Bring one stage of these runs to done.

    Args:
        stage: One of ``STAGES``.
        ranks: The processes that do it together.

    Raises:
        PipelineError, StoreError, SakError: As the stage.
    """
    with _memory_told(stage):
        if stage == "extract":
            log = ExtractionLog(events_path(recipe.out), recipe_digest=digest_json(dict(recipe.resolved)))
            extract([study for plan in plans for _, study in substudies(plan)], log=log)
            return
        for plan in plans:
            for label, study in substudies(plan):
                _one(stage, study, recipe.out, label=label, ranks=ranks)


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
        cut = "lower extract.batch, or set it to auto," if stage == "extract" else f"lower {stage}.batch"
        raise PipelineError(f"{stage}: {where} ran out of memory; {cut} and rerun") from error


def _one(stage: str, study: Study, out: Path, *, label: str, ranks: Ranks) -> None:
    # Tidied also when it was found done: its process may have been killed just before it could do so.
    if stage == "distill":
        if study.distill:
            distill(study, out, label=label, ranks=ranks).tidy(ranks)
    elif stage == "finetune":
        if study.finetune:
            finetune(study, out, label=label, ranks=ranks).tidy(ranks)
    elif stage == "eval":
        evaluate(study, out, label=label, ranks=ranks)
    else:
        raise PipelineError(f"stage {stage!r}: expected one of {', '.join(STAGES)}")
