"""What can be known to be wrong before any work is done: the faults of all runs at once.

A mistake in the last stage of the last run would otherwise show when everything before it has been computed. Nothing
here allocates a network or loads weights, and images are looked at only to tell what theirs will take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from pipeline.budgets import require_budgets
from pipeline.config import DataConfig, LoraConfig, Study
from pipeline.errors import EXPECTED, RecipeError
from pipeline.identity import distill_dir, finetune_dir
from pipeline.images.sample import ImageSource
from pipeline.needs import needs
from pipeline.runtime import autocast, pick_device
from pipeline.stagedir import StageDir
from pipeline.students import student_spec
from pipeline.trained import check_trained
from pipeline.viewsets import cached_source
from sak.student.lora import add_lora
from sak.student.model import build_student
from sak.teachers.identity import teacher_identity

__all__ = ["preflight"]


def preflight(studies: Sequence[tuple[str, Study]], out: Path, /, *, stages: Sequence[str]) -> None:
    """Check labelled studies for what these stages would stumble over.

    Args:
        out: The recipe's folder of results: a stage that is done there needs no device of its own.

    Raises:
        RecipeError: Something is wrong; the message lists every fault, with the runs that have it unless all do.
        BudgetError: Nothing is wrong, but what is to be extracted takes more disk or memory than it may.
    """
    found: dict[str, list[str]] = {}
    for label, study in studies:
        for check in (_device, _sources, _targets, _batches, _tasks, _students, _evaluation):
            for fault in check(study, out, stages):
                labels = found.setdefault(fault, [])
                labels += [label] * (label not in labels)
    lines = [
        fault if len(labels) == len(studies) else f"{', '.join(labels)}: {fault}" for fault, labels in found.items()
    ]
    if len(lines) == 1:
        raise RecipeError(lines[0])
    if lines:
        raise RecipeError(f"{len(lines)} faults, found before any work:\n" + "\n".join(f"  {line}" for line in lines))
    if "extract" in stages:
        require_budgets(studies)


def _trial(call: Callable[[], object], *, key: str = "") -> Iterator[str]:
    """The one fault that a call raises, on one line."""
    try:
        call()
    except EXPECTED as error:
        yield " ".join(f"{key} {error}".split())


def _device(study: Study, out: Path, stages: Sequence[str]) -> Iterator[str]:
    if study.extract.scheduler is not None and {*stages} == {"extract"}:
        return  # the device is one of the cluster's workers
    faults = [*_trial(partial(pick_device, study.device))]
    yield from faults
    if faults:
        return
    device = pick_device(study.device)
    for stage, config, folder in (
        ("distill", study.distill, distill_dir),
        ("finetune", study.finetune, finetune_dir),
    ):
        if config and stage in stages:
            wrong = [*_trial(partial(autocast, device, precision=config.precision), key=f"{stage}:")]
            if wrong and not _is_done(partial(folder, study, out)):
                yield from wrong


def _is_done(folder: Callable[[], StageDir]) -> bool:
    try:
        return folder().done()
    except EXPECTED:
        return False


def _open(data: DataConfig | None) -> ImageSource | None:
    """The source, if it opens; why it does not is told once, by ``_sources``."""
    try:
        return cached_source(data.source) if data else None
    except EXPECTED:
        return None


def _sources(study: Study, out: Path, stages: Sequence[str]) -> Iterator[str]:
    used = {need.purpose: need.data for need in needs(study)}
    # Also where views are drawn afresh, so that none are stored.
    used |= {"distill": study.data.distill} if study.distill and study.data.distill else {}
    used |= {"finetune": study.data.finetune} if study.finetune and study.data.finetune else {}
    for purpose, data in used.items():
        yield from _trial(partial(cached_source, data.source), key=f"data.{purpose}.source:")


def _targets(study: Study, out: Path, stages: Sequence[str]) -> Iterator[str]:
    names = {name for need in needs(study) for name in need.teachers}
    online = (study.distill.targets if study.distill else None, study.final_targets)
    for name in study.student_teachers:
        if name in names or "online" in online:
            yield from _trial(partial(teacher_identity, study.teachers[name].spec(name)))


def _batches(study: Study, out: Path, stages: Sequence[str]) -> Iterator[str]:
    for stage, config, data in (
        ("distill", study.distill, study.data.distill),
        ("finetune", study.finetune, study.data.finetune),
    ):
        source = _open(data) if config else None
        if config and data and source and len(source.keys()) < config.batch:
            images = f"{len(source.keys())} images"
            yield f"{stage}.batch: data.{stage} has {images}, fewer than one batch of {config.batch}; lower the batch"


def _tasks(study: Study, out: Path, stages: Sequence[str]) -> Iterator[str]:
    source = _open(study.data.finetune) if study.finetune else None
    if study.finetune is None or source is None:
        return
    if not source.tasks:
        yield "data.finetune.source: has no labels, and stage 2 learns from them; give a labelled source"
        return
    for key, named in (("tasks", study.finetune.tasks), ("task_weights", tuple(study.finetune.task_weights))):
        unknown = [task for task in named if task not in source.tasks]
        if unknown:
            yield f"finetune.{key}: {source.dataset} has {', '.join(source.tasks)}, not {', '.join(unknown)}"
    held_out = _open(study.data.eval)
    if held_out and "eval" in stages and held_out.dataset != source.dataset:
        other = held_out.dataset or "unlabelled images"
        yield f"data.eval: expected {source.dataset}, on which stage 2 is trained, got {other}"


def _students(study: Study, out: Path, stages: Sequence[str]) -> Iterator[str]:
    path = study.student.checkpoint
    if path and not Path(path).is_file():
        yield f"student.checkpoint: expected a file, found none at {path}; check the path"
    if study.student.paths == "frozen":
        return  # its heads are made for whatever maps there are
    if study.student.trained is not None:
        yield from _trial(partial(check_trained, study))
    sizes = sorted({*study.trained_sizes})
    faults = [fault for size in sizes for fault in _trial(partial(_build, study, size), key="student:")]
    yield from faults
    updates = {"student.lora:": study.student.lora, "finetune.lora:": study.finetune and study.finetune.lora}
    for key, lora in updates.items():
        if lora and not faults:
            yield from _trial(partial(_build, study, sizes[-1], lora=lora), key=key)


def _build(study: Study, size: tuple[int, int], lora: LoraConfig | None = None) -> None:
    """Assemble the student without its weights; heads and routers fit whatever stem there is, so it has none."""
    widths: dict[str, tuple[int, ...]] = dict.fromkeys(study.student_teachers, ())
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        student = build_student(student_spec(study.student, image_size=size, widths=widths, tasks={}))
        if lora:
            add_lora(student.stem, rank=lora.rank, alpha=lora.alpha, layers=lora.layers)


def _evaluation(study: Study, out: Path, stages: Sequence[str]) -> Iterator[str]:
    if "eval" not in stages:
        return
    if not study.trained_sizes and not study.scores_file:
        yield "eval needs a trained student: give the recipe distill, finetune or both"
    if study.data.eval is None:
        yield "eval needs data.eval: images (with labels, to score tasks) and their views"
    elif study.trained_sizes and study.trained_sizes[-1] != study.data.eval.view.size:
        yield (
            f"data.eval.view.size: expected {study.trained_sizes[-1]}, the size that the student is trained on, got"
            f" {study.data.eval.view.size}"
        )
