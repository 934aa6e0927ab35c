"""Stage 1: the student learns every teacher's maps from stored (or live) targets; no labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipeline.config import DistillConfig, Study
from pipeline.distributed import ALONE, Ranks
from pipeline.feature_crop import seen_targets
from pipeline.feature_losses import FeatureLosses
from pipeline.identity import distill_dir
from pipeline.live_views import seen_views
from pipeline.loader import Loader
from pipeline.loop import length_line, steps_of, train
from pipeline.runtime import pick_device, seed_everything
from pipeline.sampling import TeacherDraw
from pipeline.split import Split
from pipeline.stagedir import StageDir
from pipeline.standards import Standards, keep_standards, read_standards
from pipeline.students import Normalise, limit_training, make_student, student_spec
from pipeline.tracking import CONSOLE
from pipeline.trainer import TrainPlan
from pipeline.training import compiled, distill_rate, loss_weights
from pipeline.uses import record_uses
from pipeline.viewsets import cached_source, complete_views, view_size
from sak.student.lora import merge_lora
from sak.student.model import Student, parameter_counts
from sak.weights import save_weights

__all__ = ["distill"]


def distill(study: Study, out: Path, /, *, label: str, ranks: Ranks = ALONE) -> StageDir:
    """Train stage 1 of a study, or find it done.

    Args:
        label: What progress and messages call this run.
        ranks: The processes that train together.

    Raises:
        MissingColumnError: The store lacks a column; the message names it.
        NotDoneError: The views are incomplete.
        Interrupted: Asked to stop; a checkpoint was written.
    """
    config, data = study.distill, study.data.distill
    assert config is not None
    assert data is not None
    stage = distill_dir(study, out)
    if ranks.agreed(stage.done()):
        CONSOLE.print(f"{label}: distill is done ({stage.path}), skipped")
        return stage
    device = pick_device(study.device, ranks=ranks)
    split = Split(batch=config.batch, ranks=ranks, accumulate=config.accumulate, key="distill")
    images = len(cached_source(data.source).keys())
    steps = steps_of(config.steps, config.epochs, images=images, batch=config.batch, drop_last=config.drop_last)
    stored = None if config.crops == "fresh" else complete_views(study, data, labels=False)
    view_set = seen_views(config, data, stored, steps=steps)
    draw = _draw(study, config)
    targets = seen_targets(study, stored, view_set, device=device, draw=draw)
    spec = student_spec(study.student, image_size=view_size(view_set.spec), widths=targets.widths, tasks={})
    student = make_student(study.student, spec, seed=study.seed, load_stem=True)
    limit_training(student, study.student, stage=1, seed=study.seed)
    student = student.to(device)
    loader = Loader(view_set, batch=config.batch, seed=study.seed, targets=targets, device=device)
    plan = _plan(study, config, student, split=split, steps=steps, images=images)
    plan = replace(plan, inputs=stage.inputs)
    losses = FeatureLosses(
        student=student,
        forward=compiled(student, config.compile, device=device),
        normalise=Normalise(mean=study.student.mean, std=study.student.std).to(device),
        config=config,
        targets=targets,
        weights=loss_weights(config, teachers=study.student_teachers, scale=draw.scale if draw else 1.0),
        standards=Standards({}),
        draw=draw,
    )
    CONSOLE.print(f"{label}: distill {length_line(view_set, steps=steps, split=split)}; {config.targets} targets")
    with stage.work(device=device, ranks=ranks) as record:
        if ranks.first:
            record |= record_uses(study, stage, view_set=stored, targets=targets)
            keep_standards(config, stage.path, source=targets, view_set=view_set, device=device)
        ranks.wait()
        losses = replace(losses, standards=read_standards(config, stage.path, device=device))
        # As late as can be: building live teachers draws random numbers, and cached targets must see the same ones.
        seed_everything(study.seed, threads=study.threads)
        train(student, losses, loader, plan=plan, folder=stage.path, label=f"{label}: distill")
        merge_lora(student.stem)
        if ranks.first:
            save_weights(stage.path / "student.safetensors", student.state_dict(), metadata={"stage": "distill"})
        record |= {"spec": spec.to_dict(), "steps": steps, "images": steps * config.batch}
        record |= {"parameters": parameter_counts(student)}
    return stage


def _draw(study: Study, config: DistillConfig) -> TeacherDraw | None:
    if config.teachers_per_step == "all":
        return None
    return TeacherDraw(teachers=study.student_teachers, count=config.teachers_per_step, seed=study.seed)


def _plan(study: Study, config: DistillConfig, student: Student, *, split: Split, steps: int, images: int) -> TrainPlan:
    return TrainPlan(
        steps=steps,
        rate=distill_rate(config, steps=steps, images=images),
        groups=[([parameter for parameter in student.parameters() if parameter.requires_grad], 1.0)],
        weight_decay=config.weight_decay,
        clip=config.clip,
        precision=config.precision,
        track=study.track,
        fused=config.fused,
        split=split,
        ema=config.ema,
        loading=study.loader,
    )
