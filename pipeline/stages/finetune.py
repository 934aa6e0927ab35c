"""Stage 2: routers and heads learn the tasks, with the teachers' loss beside the tasks' at weight alpha."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.config import FinetuneConfig, Study
from pipeline.config_tasks import PARTS, Part
from pipeline.distributed import ALONE, Ranks
from pipeline.errors import PipelineError
from pipeline.feature_losses import adapter_scales, gate_weights
from pipeline.identity import distill_dir, finetune_dir
from pipeline.live_views import LiveViews, labelled_views
from pipeline.loader import Batch, Loader
from pipeline.loop import length_line, steps_of, train
from pipeline.runtime import pick_device, seed_everything
from pipeline.split import Split
from pipeline.stagedir import StageDir
from pipeline.standards import Standards, read_standards
from pipeline.starting import Start, load_start, write_start
from pipeline.students import Normalise, limit_training, make_frozen, make_student, student_spec
from pipeline.targets import OnlineTargets, TargetSource, target_source, teacher_specs
from pipeline.tracking import CONSOLE
from pipeline.trainer import TrainPlan
from pipeline.training import compiled, finetune_rate, loss_weights
from pipeline.uses import record_uses
from pipeline.viewsets import view_set_spec, view_size
from sak.losses.distill import distill_loss, distill_measures
from sak.losses.tasks import task_losses
from sak.losses.weighting import TaskBalance, make_balance
from sak.spec import StudentSpec
from sak.student.frozen import FrozenTeachers
from sak.student.lora import merge_lora
from sak.student.model import Student, StudentOutput, last_shared, parameter_counts
from sak.tasks import dataset_spec
from sak.weights import save_weights
from store.viewset import ViewSet

__all__ = ["finetune", "tasks_of"]

_PART_OF: Mapping[str, Part] = {
    "stem": "stem",
    "paths": "paths",
    "norms": "paths",
    "aligners": "paths",
    "routers": "routers",
    "heads": "heads",
    "readers": "heads",  # of frozen teachers
}


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
    images = view_set_spec(data, labels=True).images
    steps = steps_of(config.steps, config.epochs, images=images, batch=config.batch)
    view_set = labelled_views(study, steps=steps)
    tasks = tasks_of(study, view_set)
    targets = _targets(study, view_set, device=device)
    student, spec, start = _student(study, out, view_set, tasks, targets)
    student = student.to(device)
    loader = Loader(view_set, batch=config.batch, seed=study.seed + 1, tasks=tasks, targets=targets, device=device)
    before = distill_dir(study, out) if study.distill else None
    balance = _balance(config, tasks, device=device)
    losses = _Losses(
        student,
        compiled(student, config.compile, device=device),
        Normalise(mean=study.student.mean, std=study.student.std).to(device),
        config,
        view_set.spec.dataset,
        targets,
        read_standards(study.distill, before.path, device=device) if before and targets else Standards({}),
        ranks,
        balance,
        last_shared(student) if config.weighting == "gradnorm" and isinstance(student, Student) else [],
    )
    length = length_line(view_set, steps=steps, split=split)
    CONSOLE.print(f"{label}: finetune {length}; tasks {', '.join(tasks)}; {_options(study, config)}")
    with stage.work(device=device, ranks=ranks) as record:
        if ranks.first:
            stored = view_set if isinstance(view_set, ViewSet) else None
            record |= record_uses(study, stage, view_set=stored, targets=targets, after=before)
            write_start(stage.path, start)
        plan = _plan(study, config, student, split=split, steps=steps)
        plan = replace(plan, inputs=stage.inputs, balance=balance.state if balance else {})
        # As late as can be: building live teachers draws random numbers, and cached targets must see the same ones.
        seed_everything(study.seed + 1, threads=study.threads)
        train(student, losses, loader, plan=plan, folder=stage.path, label=f"{label}: finetune")
        merge_lora(student)
        if ranks.first:
            save_weights(stage.path / "student.safetensors", student.state_dict(), metadata={"stage": "finetune"})
        record |= {"spec": spec.to_dict(), "steps": steps, "images": steps * config.batch}
        record |= {"parameters": parameter_counts(student), "tasks": list(tasks), "dataset": view_set.spec.dataset}
    return stage


def _balance(config: FinetuneConfig, tasks: tuple[str, ...], /, *, device: torch.device) -> TaskBalance | None:
    rate, alpha = config.weighting_lr, config.gradnorm_alpha
    return make_balance(config.weighting, tasks, rate=rate, alpha=alpha, device=device)


def _targets(study: Study, view_set: ViewSet | LiveViews, /, *, device: torch.device) -> TargetSource | None:
    """Targets of stage 2; of views that are stored nowhere, live teachers' alone."""
    if study.final_targets is None:
        return None
    if isinstance(view_set, ViewSet):
        return target_source(study, view_set, kind=study.final_targets, device=device)
    return OnlineTargets(teacher_specs(study), device=device)


def _options(study: Study, config: FinetuneConfig, /) -> str:
    """What a person should see of how tasks are learnt: alpha, and what is not as published."""
    told = [f"alpha {config.alpha:g}"]
    told += ["fresh views"] * (config.crops == "fresh")
    told += [f"{study.student.head} heads"] * (study.student.head != "published")
    told += [f"{config.weighting} weights"] * (config.weighting != "fixed")
    told += [f"weight of {task} {weight:g}" for task, weight in config.task_weights.items()]
    scaled = [f"{part} x {factor:g}" for part, factor in _factors(config).items() if factor != 1]
    told += [f"rates of {', '.join(scaled)}"] if scaled else []
    told += [f"LoRA of rank {config.lora.rank}"] if config.lora else []
    if study.student.freeze != "none":
        told.append(f"frozen: {study.student.freeze}")
    if study.student.freeze == "distilled" and study.final_targets:
        told.append("the teachers' loss reaches nothing that is trained, so set alpha to 0 to spare it")
    return "; ".join(told)


def tasks_of(study: Study, view_set: ViewSet | LiveViews, /) -> tuple[str, ...]:
    """Tasks of a study, in the data set's order.

    Raises:
        PipelineError: A task is asked for that the data set has no labels of, or it has no labels at all.
    """
    if not view_set.spec.tasks:
        raise PipelineError(f"finetune: view set {view_set.name} has no labels; give data.finetune a labelled source")
    asked = study.finetune.tasks if study.finetune else ()
    weighed = tuple(study.finetune.task_weights) if study.finetune else ()
    for key, names in (("tasks", asked), ("task_weights", weighed)):
        unknown = [task for task in names if task not in view_set.spec.tasks]
        if unknown:
            known = f"{view_set.spec.dataset} has {list(view_set.spec.tasks)}"
            raise PipelineError(f"finetune.{key}: {known}, not {unknown}")
    return tuple(task for task in view_set.spec.tasks if not asked or task in asked)


class _Made(NamedTuple):
    student: Student | FrozenTeachers
    spec: StudentSpec
    start: Start | None


def _student(
    study: Study, out: Path, view_set: ViewSet | LiveViews, tasks: tuple[str, ...], targets: TargetSource | None
) -> _Made:
    """The stage-2 network, started from stage 1 or a student's file where the study has one; frozen as it says.

    Without a teacher loss in stage 2 nothing aligns to teachers any more: adapter paths stay, aligners go, and a plain
    student keeps its stem alone.
    """
    widths: Mapping[str, tuple[int, ...]] = targets.widths if targets else {}
    if targets is None:
        widths = {} if study.student.paths == "none" else dict.fromkeys(study.student_teachers, ())
    channels = {task: dataset_spec(view_set.spec.dataset).tasks[task].channels for task in tasks}
    size = view_size(view_set.spec)
    spec = student_spec(study.student, image_size=size, widths=widths, tasks=channels)
    if spec.paths == "frozen":
        return _Made(make_frozen(spec, seed=study.seed), spec, None)
    student = make_student(study.student, spec, seed=study.seed, load_stem=study.distill is None)
    start = load_start(student, study, out, aligned=targets is not None)
    lora = study.finetune.lora if study.finetune else None
    limit_training(student, study.student, stage=2, seed=study.seed, lora=lora)
    return _Made(student, spec, start)


class _Losses(NamedTuple):
    """Task losses, plus alpha times the teachers' loss where the study asks for it.

    Attributes:
        balance: Weights of the tasks that are learnt; None where they are fixed.
        shared: What ``balance`` looks at.
    """

    student: Student | FrozenTeachers
    forward: Callable[..., StudentOutput]
    normalise: Normalise
    config: FinetuneConfig
    dataset: str
    targets: TargetSource | None
    standards: Standards
    ranks: Ranks
    balance: TaskBalance | None
    shared: Sequence[nn.Parameter]

    def __call__(self, batch: Batch, /) -> Mapping[str, Tensor]:
        config = self.config
        if isinstance(self.student, FrozenTeachers):
            assert self.targets is not None
            output = self.forward(self.targets.targets(batch.encoded, batch.pixels))
        else:
            aligned = self.targets is not None
            output = self.forward(self.normalise(batch.pixels), with_aligned=aligned, share=batch.share)
        shares = task_losses(
            self.dataset, output.tasks, batch.labels, total=self.ranks.total, weights=config.task_weights
        )
        # Shares add up to the batch's loss; training takes means over ranks.
        named = {name: value * self.ranks.world for name, value in shares.items()}
        if self.balance is not None:
            tasks = {task: named[task] for task in output.tasks}
            before = dict(zip(tasks, self.balance.weights(), strict=True))
            named["total"] = self.balance(tasks, shared=self.shared, mean=self.ranks.mean)
            named |= {f"weight/{task}": weight for task, weight in before.items() if batch.watched}
        if batch.watched:
            gates = gate_weights(output.gates, teachers=tuple(self.student.paths))
            named |= {**gates, **adapter_scales(self.student)}
        if self.targets is None or not output.aligned:
            return named
        wanted = self.standards(self.targets.targets(batch.encoded, batch.pixels))
        weights = loss_weights(config)
        found = distill_loss(wanted, output.aligned, config.loss, cosine=config.cosine, weights=weights)
        feature = found.pop("total")
        if batch.watched:
            measures = distill_measures(wanted, output.aligned, config.loss, cosine=config.cosine, beta=config.beta)
            named |= {**{f"distill/{name}": value for name, value in found.items()}, **measures}
        return {**named, "distill": feature, "total": named["total"] + config.alpha * feature}


def _plan(study: Study, config: FinetuneConfig, student: nn.Module, *, split: Split, steps: int) -> TrainPlan:
    parts: dict[Part, list[nn.Parameter]] = {part: [] for part in PARTS}
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            parts[_PART_OF[name.partition(".")[0]]].append(parameter)
    factors = _factors(config)
    return TrainPlan(
        steps=steps,
        rate=finetune_rate(config, steps=steps),
        groups=[(parameters, factors[part]) for part, parameters in parts.items() if parameters],
        weight_decay=config.weight_decay,
        clip=config.clip,
        precision=config.precision,
        track=study.track,
        fused=config.fused,
        split=split,
        ema=config.ema,
        loading=study.loader,
    )


def _factors(config: FinetuneConfig) -> dict[Part, float]:
    """Part to the factor on its learning rate."""
    usual: dict[Part, float] = {
        "stem": config.stem_lr_scale,
        "paths": config.stem_lr_scale,
        "routers": 1.0,
        "heads": 1.0,
    }
    return usual | config.lr_scales
