"""Stage 1: the student learns every teacher's maps from stored (or live) targets; no labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pipeline.config import DataConfig, DistillConfig, Study
from pipeline.errors import PipelineError
from pipeline.loader import Batch, Loader
from pipeline.loop import TRAINING, TrainPlan, train
from pipeline.recipes import plain
from pipeline.runtime import pick_device, seed_everything
from pipeline.stagedir import StageDir
from pipeline.students import Normalise, make_student, student_identity, student_spec
from pipeline.targets import CachedTargets, OnlineTargets, TargetSource, codec_label, find_columns
from pipeline.tracking import CONSOLE
from pipeline.viewsets import view_set_spec, view_size
from sak.losses.distill import distill_loss
from sak.schedules import warmup_cosine
from sak.student.model import parameter_counts
from sak.teachers.identity import teacher_identity
from sak.teachers.spec import TeacherSpec
from sak.weights import save_weights
from store.column import Column
from store.errors import MissingColumnError
from store.store import Store
from store.viewset import ReadOptions, ViewSet

__all__ = ["complete_views", "distill", "distill_dir", "length_line", "steps_of", "target_identity", "target_source"]

# Routers come with the tasks: runs that differ only in them share stage 1.
_STAGE2_ONLY = ("router", "noisy_gating", "noise")


def distill(study: Study, out: Path, /, *, label: str, hint: str) -> StageDir:
    """Train stage 1 of a study, or find it done.

    Args:
        label: What progress and messages call this run.
        hint: The command that would complete a store that lacks something.

    Raises:
        MissingColumnError: The store lacks a column; the message names it and the command.
        Interrupted: Asked to stop; a checkpoint was written.
    """
    config, data = study.distill, study.data.distill
    assert config is not None
    assert data is not None
    stage = distill_dir(study, out, hint=hint)
    if stage.done():
        CONSOLE.print(f"{label}: distill is done ({stage.path}), skipped")
        return stage
    device = pick_device(study.device)
    view_set = complete_views(study, data, labels=False, hint=hint)
    targets = target_source(study, view_set, kind=config.targets, device=device, hint=hint)
    spec = student_spec(study.student, image_size=view_size(view_set.spec), widths=targets.widths, tasks={})
    student = make_student(study.student, spec, seed=study.seed, load_stem=True).to(device)
    loader = Loader(view_set, batch=config.batch, seed=study.seed, targets=targets, device=device)
    steps = steps_of(config.steps, config.epochs, images=view_set.spec.images, batch=config.batch)
    plan = _plan(study, config, student.parameters(), steps=steps)
    normalise = Normalise(mean=study.student.mean, std=study.student.std).to(device)

    def losses(batch: Batch) -> Mapping[str, Tensor]:
        aligned = student(normalise(batch.pixels)).aligned
        wanted = targets.targets(batch.encoded, batch.pixels)
        return distill_loss(wanted, aligned, config.loss, cosine=config.cosine)

    images = steps * config.batch
    CONSOLE.print(
        f"{label}: distill {length_line(view_set, steps=steps, batch=config.batch)}; {config.targets} targets"
    )
    with stage.work(device=device) as record:
        # As late as can be: building live teachers draws random numbers, and cached targets must see the same ones.
        seed_everything(study.seed, threads=study.threads)
        train(student, losses, loader, plan=plan, folder=stage.path, label=f"{label}: distill")
        state = {name: tensor.detach().cpu() for name, tensor in student.state_dict().items()}
        save_weights(stage.path / "student.safetensors", state, metadata={"stage": "distill"})
        record |= {"spec": spec.to_dict(), "steps": steps, "images": images, "parameters": parameter_counts(student)}
    return stage


def distill_dir(study: Study, out: Path, /, *, hint: str) -> StageDir:
    """Where stage 1 of a study lives: a function of everything its result depends on."""
    config, data = study.distill, study.data.distill
    assert config is not None
    assert data is not None
    view_set = view_set_spec(data, labels=False).name
    about = plain(study.student) | student_identity(study.student)
    inputs = {
        "training": TRAINING,
        "seed": study.seed,
        "views": view_set,
        "targets": target_identity(study, view_set, kind=config.targets, hint=hint),
        "student": {key: value for key, value in about.items() if key not in _STAGE2_ONLY},
        "distill": plain(config),
    }
    return StageDir.of(out, "distill", inputs=inputs)


def complete_views(study: Study, data: DataConfig, /, *, labels: bool, hint: str) -> ViewSet:
    """The stored view set of a data configuration.

    Raises:
        MissingColumnError: It is absent.
        PipelineError: It is incomplete; both name the command that completes it.
    """
    view_set = Store.open(study.store, options=ReadOptions(hint=hint)).view_set(view_set_spec(data, labels=labels).name)
    if view_set.missing_parts():
        lacks = f"{len(view_set.missing_parts())} of {view_set.spec.parts} shards"
        raise PipelineError(f"store {study.store}: view set {view_set.name} lacks {lacks}; complete it with: {hint}")
    return view_set


def target_source(study: Study, view_set: ViewSet, /, *, kind: str, device: torch.device, hint: str) -> TargetSource:
    """Targets of the student's teachers over a view set: stored, or from live teachers."""
    specs = {name: study.teachers[name].spec(name) for name in study.student_teachers}
    if kind == "online":
        return OnlineTargets(specs, device=device)
    return CachedTargets(_columns(study, list(specs.values()), view_set=view_set.name, hint=hint))


def target_identity(study: Study, view_set: str, /, *, kind: str, hint: str) -> object:
    """What the targets are, for a stage's fingerprint; builds no teacher."""
    specs = {name: study.teachers[name].spec(name) for name in study.student_teachers}
    if kind == "online":
        return {name: teacher_identity(spec) for name, spec in specs.items()}
    columns = _columns(study, list(specs.values()), view_set=view_set, hint=hint)
    return {name: column.name for name, column in columns.items()}


def _columns(study: Study, specs: Sequence[TeacherSpec], *, view_set: str, hint: str) -> dict[str, Column]:
    codec = study.extract.codec
    if not Path(study.store).exists():
        names = ", ".join(spec.name for spec in specs)
        what = f"the {codec_label(codec)} columns of teachers {names} over view set {view_set} are absent"
        raise MissingColumnError(f"store {study.store}: there is none yet, so {what}; make them with: {hint}")
    store = Store.open(study.store, options=ReadOptions(hint=hint))
    return find_columns(store, specs, view_set=view_set, codec=codec, hint=hint)


def steps_of(steps: int | None, epochs: float | None, /, *, images: int, batch: int) -> int:
    """Optimiser steps; an epoch is one pass over as many rows as there are images, whatever their number of views."""
    if steps is not None:
        return steps
    assert epochs is not None
    return max(1, round(epochs * images / batch))


def length_line(view_set: ViewSet, /, *, steps: int, batch: int) -> str:
    """The batch arithmetic of a stage, for a person to check."""
    spec, rows = view_set.spec, steps * batch
    epochs = f"{rows / spec.images:.1f} epochs of {spec.images} images x {spec.views} views"
    return f"{steps} steps x {batch} = {rows} images = {epochs}"


def _plan(study: Study, config: DistillConfig, parameters: object, *, steps: int) -> TrainPlan:
    def rate(step: int) -> float:
        return warmup_cosine(
            step,
            total=steps,
            warmup=round(config.warmup * steps),
            peak=config.lr,
            start=config.start_lr,
            end=config.end_lr,
        )

    return TrainPlan(
        steps=steps,
        rate=rate,
        groups=[(list(parameters), 1.0)],  # type: ignore[call-overload]
        weight_decay=config.weight_decay,
        clip=config.clip,
        precision=config.precision,
        track=study.track,
    )
