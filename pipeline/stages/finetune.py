"""Stage 2: routers and heads learn the tasks, with the teachers' loss beside the tasks' at weight alpha."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from pipeline.config import FinetuneConfig, Study
from pipeline.distributed import ALONE, Ranks
from pipeline.errors import PipelineError
from pipeline.feature_losses import adapter_scales, gate_weights
from pipeline.identity import distill_dir, finetune_dir
from pipeline.loader import Batch, Loader
from pipeline.loop import length_line, steps_of, train
from pipeline.runtime import pick_device, seed_everything
from pipeline.split import Split
from pipeline.stagedir import StageDir, write_json
from pipeline.standards import Standards, read_standards
from pipeline.starting import load_start
from pipeline.students import STAGE1_PARTS, Normalise, limit_training, make_student, student_spec
from pipeline.targets import TargetSource, target_source
from pipeline.tracking import CONSOLE
from pipeline.trainer import TrainPlan
from pipeline.training import compiled, finetune_rate, loss_weights
from pipeline.uses import record_uses
from pipeline.viewsets import complete_views, view_size
from sak.losses.distill import distill_loss, distill_measures
from sak.losses.tasks import task_losses
from sak.spec import StudentSpec
from sak.student.model import Student, StudentOutput, parameter_counts
from sak.tasks import dataset_spec
from sak.weights import save_weights
from store.viewset import ViewSet

__all__ = ["finetune", "tasks_of"]


def finetune(study: Study, out: Path, /, *, label: str, ranks: Ranks = ALONE) -> StageDir:
    """Train stage 2 of a study, or find it done. Stage 1 must be done if the study has one.

    Raises:
        NotDoneError: Stage 1 is not done, or the views are incomplete.
        PipelineError: A task is not in the data set.
        MissingColumnError: alpha > 0 and the store lacks a column.
        Interrupted: Asked to stop; a checkpoint was written.
    """
    config, data = study.finetune, study.data.finetune
    assert config is not None
    assert data is not None
    stage = finetune_dir(study, out)
    if ranks.agreed(stage.done()):
        CONSOLE.print(f"{label}: finetune is done ({stage.path}), skipped")
        return stage
    device = pick_device(study.device, ranks=ranks)
    split = Split(batch=config.batch, ranks=ranks, key="finetune")
    view_set = complete_views(study, data, labels=True)
    tasks = tasks_of(study, view_set)
    targets = target_source(study, view_set, kind=config.targets, device=device) if study.final_targets else None
    student, spec = _student(study, view_set, tasks, targets)
    start = load_start(student, study, out, aligned=targets is not None)
    limit_training(student, study.student, stage=2, seed=study.seed)
    student = student.to(device)
    loader = Loader(view_set, batch=config.batch, seed=study.seed + 1, tasks=tasks, targets=targets, device=device)
    steps = steps_of(config.steps, config.epochs, images=view_set.spec.images, batch=config.batch)
    before = distill_dir(study, out) if study.distill else None
    losses = _Losses(
        student,
        compiled(student, config.compile, device=device),
        Normalise(mean=study.student.mean, std=study.student.std).to(device),
        config,
        view_set.spec.dataset,
        targets,
        read_standards(study.distill, before.path, device=device) if before and targets else Standards({}),
        ranks,
    )
    length = length_line(view_set, steps=steps, split=split)
    CONSOLE.print(f"{label}: finetune {length}; tasks {', '.join(tasks)}; alpha {config.alpha:g}")
    if start:
        CONSOLE.print(f"{label}: finetune {start.story()}")
    with stage.work(device=device, ranks=ranks) as record:
        if start and ranks.first:
            write_json(stage.path / "start.json", start.to_json())
        if ranks.first:
            record |= record_uses(study, stage, view_set=view_set, targets=targets, after=before)
        plan = replace(_plan(study, config, student, split=split, steps=steps), inputs=stage.inputs)
        # As late as can be: building live teachers draws random numbers, and cached targets must see the same ones.
        seed_everything(study.seed + 1, threads=study.threads)
        train(student, losses, loader, plan=plan, folder=stage.path, label=f"{label}: finetune")
        if ranks.first:
            save_weights(stage.path / "student.safetensors", student.state_dict(), metadata={"stage": "finetune"})
        images = steps * config.batch
        record |= {"spec": spec.to_dict(), "steps": steps, "images": images, "parameters": parameter_counts(student)}
        record |= {"tasks": list(tasks), "dataset": view_set.spec.dataset}
    return stage


def tasks_of(study: Study, view_set: ViewSet, /) -> tuple[str, ...]:
    """Tasks of a study, in the data set's order.

    Raises:
        PipelineError: A task is asked for that the data set has no labels of, or it has no labels at all.
    """
    if not view_set.spec.tasks:
        raise PipelineError(f"finetune: view set {view_set.name} has no labels; give data.finetune a labelled source")
    asked = study.finetune.tasks if study.finetune else ()
    unknown = [task for task in asked if task not in view_set.spec.tasks]
    if unknown:
        raise PipelineError(f"finetune.tasks: {view_set.spec.dataset} has {list(view_set.spec.tasks)}, not {unknown}")
    return tuple(task for task in view_set.spec.tasks if not asked or task in asked)


def _student(
    study: Study, view_set: ViewSet, tasks: tuple[str, ...], targets: TargetSource | None
) -> tuple[Student, StudentSpec]:
    """The stage-2 network, as its seed makes it.

    Without a teacher loss in stage 2 nothing aligns to teachers any more: adapter paths stay, aligners go, and a plain
    student keeps its stem alone.
    """
    widths: Mapping[str, tuple[int, ...]] = targets.widths if targets else {}
    if targets is None:
        widths = {} if study.student.paths == "none" else dict.fromkeys(study.student_teachers, ())
    channels = {task: dataset_spec(view_set.spec.dataset).tasks[task].channels for task in tasks}
    size = view_size(view_set.spec)
    spec = student_spec(study.student, image_size=size, widths=widths, tasks=channels)
    student = make_student(study.student, spec, seed=study.seed, load_stem=study.distill is None)
    return student, spec


class _Losses(NamedTuple):
    """Task losses, plus alpha times the teachers' loss where the study asks for it."""

    student: Student
    forward: Callable[..., StudentOutput]
    normalise: Normalise
    config: FinetuneConfig
    dataset: str
    targets: TargetSource | None
    standards: Standards
    ranks: Ranks

    def __call__(self, batch: Batch, /) -> Mapping[str, Tensor]:
        output = self.forward(self.normalise(batch.pixels), with_aligned=self.targets is not None, share=batch.share)
        shares = task_losses(self.dataset, output.tasks, batch.labels, total=self.ranks.total)
        # Shares add up to the batch's loss; training takes means over ranks.
        named = {name: value * self.ranks.world for name, value in shares.items()}
        if batch.watched:
            gates = gate_weights(output.gates, teachers=tuple(self.student.paths))
            named |= {**gates, **adapter_scales(self.student)}
        if self.targets is None:
            return named
        wanted = self.standards(self.targets.targets(batch.encoded, batch.pixels))
        config, weights = self.config, loss_weights(self.config)
        found = distill_loss(wanted, output.aligned, config.loss, cosine=config.cosine, weights=weights)
        feature = found.pop("total")
        if batch.watched:
            measures = distill_measures(wanted, output.aligned, config.loss, cosine=config.cosine, beta=config.beta)
            named |= {**{f"distill/{name}": value for name, value in found.items()}, **measures}
        return {**named, "distill": feature, "total": named["total"] + config.alpha * feature}


def _plan(study: Study, config: FinetuneConfig, student: Student, *, split: Split, steps: int) -> TrainPlan:
    named = [(name, parameter) for name, parameter in student.named_parameters() if parameter.requires_grad]
    old = [parameter for name, parameter in named if name.startswith(STAGE1_PARTS)]
    new = [parameter for name, parameter in named if not name.startswith(STAGE1_PARTS)]
    return TrainPlan(
        steps=steps,
        rate=finetune_rate(config, steps=steps),
        groups=[group for group in ((old, config.stem_lr_scale), (new, 1.0)) if group[0]],
        weight_decay=config.weight_decay,
        clip=config.clip,
        precision=config.precision,
        track=study.track,
        fused=config.fused,
        split=split,
        ema=config.ema,
        loading=study.loader,
    )
