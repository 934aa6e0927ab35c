"""Stage 1: the student learns every teacher's maps from stored (or live) targets; no labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from pipeline.config import DistillConfig, Study
from pipeline.distributed import ALONE, Ranks
from pipeline.feature_crop import seen_targets
from pipeline.identity import distill_dir
from pipeline.live_views import seen_views
from pipeline.loader import Batch, Loader
from pipeline.loop import length_line, steps_of, train
from pipeline.runtime import pick_device, seed_everything
from pipeline.split import Split
from pipeline.stagedir import StageDir
from pipeline.students import Normalise, make_student, student_spec
from pipeline.tracking import CONSOLE
from pipeline.trainer import TrainPlan
from pipeline.uses import record_uses
from pipeline.viewsets import cached_source, complete_views, view_size
from sak.losses.distill import distill_loss
from sak.schedules import warmup_cosine
from sak.student.model import parameter_counts
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
    steps = steps_of(config.steps, config.epochs, images=len(cached_source(data.source).keys()), batch=config.batch)
    stored = None if config.crops == "fresh" else complete_views(study, data, labels=False)
    view_set = seen_views(config, data, stored, steps=steps)
    targets = seen_targets(study, stored, view_set, device=device)
    spec = student_spec(study.student, image_size=view_size(view_set.spec), widths=targets.widths, tasks={})
    student = make_student(study.student, spec, seed=study.seed, load_stem=True).to(device)
    loader = Loader(view_set, batch=config.batch, seed=study.seed, targets=targets, device=device)
    plan = _plan(study, config, student.parameters(), steps=steps, split=split)
    normalise = Normalise(mean=study.student.mean, std=study.student.std).to(device)

    def losses(batch: Batch) -> Mapping[str, Tensor]:
        aligned = student(normalise(batch.pixels), share=batch.share).aligned
        wanted = targets.targets(batch.encoded, batch.pixels)
        return distill_loss(wanted, aligned, config.loss, cosine=config.cosine)

    CONSOLE.print(f"{label}: distill {length_line(view_set, steps=steps, split=split)}; {config.targets} targets")
    with stage.work(device=device, ranks=ranks) as record:
        if ranks.first:
            record |= record_uses(study, stage, view_set=stored, targets=targets)
        # As late as can be: building live teachers draws random numbers, and cached targets must see the same ones.
        seed_everything(study.seed, threads=study.threads)
        train(student, losses, loader, plan=plan, folder=stage.path, label=f"{label}: distill")
        if ranks.first:
            save_weights(stage.path / "student.safetensors", student.state_dict(), metadata={"stage": "distill"})
        images = steps * config.batch
        record |= {"spec": spec.to_dict(), "steps": steps, "images": images, "parameters": parameter_counts(student)}
    return stage


def _plan(study: Study, config: DistillConfig, parameters: object, *, steps: int, split: Split) -> TrainPlan:
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
        split=split,
        ema=config.ema,
        loading=study.loader,
    )
