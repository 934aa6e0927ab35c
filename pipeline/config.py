"""The validated form of a recipe: frozen dataclasses that refuse unknown keys.

A ``Study`` is everything one training run depends on. ``pipeline.recipes`` reads YAML, applies overrides and makes one
``Study`` for each run of the recipe. Nothing here does work; stages take these objects and unpack them into flat
arguments for the classes of ``sak`` and ``store``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import field
from pathlib import Path
from typing import Literal

from pydantic.dataclasses import dataclass

from pipeline.config_checks import (
    average_decay,
    fraction,
    fresh_views,
    live_crops,
    not_negative,
    one_length,
    positive,
    rates,
    whole_epochs,
)
from pipeline.config_eval import EvalConfig
from pipeline.config_loader import LoaderConfig
from pipeline.config_losses import CompileMode, FeatureLossConfig
from pipeline.config_student import LoraConfig, StudentConfig
from pipeline.config_tasks import TaskTrainingConfig
from pipeline.config_teachers import STRICT, CodecValue, ExtractConfig, Precision, Size, TeacherConfig
from pipeline.config_track import TrackConfig
from pipeline.views import ViewSpec

__all__ = [
    "DataConfig",
    "DataSection",
    "DistillConfig",
    "EvalConfig",
    "ExtractConfig",
    "FinetuneConfig",
    "LoaderConfig",
    "LoraConfig",
    "RunConfig",
    "SourceConfig",
    "StudentConfig",
    "Study",
    "TeacherConfig",
    "TrackConfig",
]

_START_LR = 1.25e-7  # the paper's, of stage 1
_WARMUP = 2 / 30  # likewise
_STANDARDIZE_ROWS = 256
Targets = Literal["cached", "online"]


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class SourceConfig:
    """Where images come from: a name in ``pipeline.images.registry`` and its options.

    Attributes:
        root: A folder, a file, or for sources of shards a pattern or a URL; see the source's layout.
        images: How many: on disk a random choice by ``seed``, None for all.
        size: Height and width, for rendered sources alone.
        key: For ``parquet``, the column that names its images.
    """

    name: str
    root: str | None = None
    split: str = "train"
    images: int | None = None
    size: Size | None = None
    seed: int = 0
    key: str | None = None

    def __post_init__(self) -> None:
        positive("source", {"images": self.images})

    @property
    def size_hw(self) -> tuple[int, int] | None:
        """Render size as (height, width)."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def overlaps(self, other: SourceConfig) -> bool:
        """Whether both name the same collection: a scene of another size is the same scene, a part is no other set."""
        if self.name != other.name or Path(self.root or "") != Path(other.root or ""):
            return False
        # On disk, seeds choose a part where there are fewer images than all, and a folder read whole has every split.
        seeds = self.seed == other.seed or (self.root is not None and None in (self.images, other.images))
        splits = self.split == other.split or (self.root is not None and "all" in (self.split, other.split))
        return seeds and splits


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class DataConfig:
    """A view set: a source, the kind of view drawn of each image, and how many views.

    ``views`` may be raised at any time: extraction appends what the store lacks. With fewer than it has, a study reads
    the first ones and learns the same as if there were no others.

    ``seed`` decides the views and the order of the stored rows; a study's own seed does not, so that studies which
    train from several seeds read one store. With ``on_error: skip`` a row whose image cannot be used is recorded with
    its reason and left out for all teachers; a larger share of such rows than ``max_bad`` stops the run.
    """

    source: SourceConfig
    view: ViewSpec
    views: int = 1
    seed: int = 0
    rows_per_shard: int = 256
    on_error: Literal["stop", "skip"] = "stop"
    max_bad: float = 0.01

    def __post_init__(self) -> None:
        positive("data", {"views": self.views, "rows_per_shard": self.rows_per_shard})
        if not 0 <= self.max_bad <= 1:
            raise ValueError(f"data.max_bad is a fraction of all rows from 0 to 1, got {self.max_bad}")


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class DataSection:
    """The view sets of a study. ``distill`` needs no labels; the other two do."""

    distill: DataConfig | None = None
    finetune: DataConfig | None = None
    eval: DataConfig | None = None


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class DistillConfig(FeatureLossConfig):
    """Stage 1. The defaults are the paper's, but for the length, which depends on the data.

    Attributes:
        drop_last: An epoch has whole batches alone, as published: 30 of 1,281,167 images at 128 are 300,270 steps.
        batch: Rows of a step, of all ranks together; each goes through its own in ``accumulate`` micro-batches.
        ema: Decay of an average of the weights, which the next stage, scoring and export then take.
        warmup: Fraction of all steps (the paper: 2 of 30 epochs); ``warmup_epochs`` says it in epochs instead.
        reference_schedule: The published loop's rates, one step behind: its first two steps are at ``start_lr``.
        clip: Largest L2 norm of the gradient; 0 for no clipping.
        standardize: Targets as they are (``none``, as published), each channel to mean 0 and variance 1 (``channel``),
            or all by one rotation and one scale (``phi-s``); statistics are of the view set's first
            ``standardize_rows`` usable rows. Stage 2 goes on with the same ones.
        teachers_per_step: How many teachers, drawn by seed and step, a step learns from; the others' columns are not
            read, and the loss is scaled to be that of all on average.
        crops: Shows the student other pixels than those that are stored, new ones in every epoch: ``fresh`` draws
            ``data.distill.view`` from the images themselves and stores none, which takes live teachers, as published; a
            ``random_resized_crop`` is cut from the stored views, and cached targets from their maps by the same box.
        compile: torch.compile, for speed; rounding differs.
        fused: AdamW in one kernel, for speed; rounding differs.
    """

    steps: int | None = None
    epochs: float | None = None
    batch: int = 16
    lr: float = 1e-3
    start_lr: float = _START_LR
    end_lr: float = 1e-5
    drop_last: bool = False
    warmup: float = _WARMUP
    warmup_epochs: float | None = None
    reference_schedule: bool = False
    weight_decay: float = 0.01
    clip: float = 0.0
    standardize: Literal["none", "channel", "phi-s"] = "none"
    standardize_rows: int = _STANDARDIZE_ROWS
    teachers_per_step: Literal["all"] | int = "all"
    targets: Targets = "cached"
    crops: Literal["fresh"] | ViewSpec | None = None
    precision: Precision = "fp32"
    compile: CompileMode = False
    fused: bool = False
    accumulate: int = 1
    ema: float | None = None

    def __post_init__(self) -> None:
        live_crops(self.crops, targets=self.targets)
        self.check_loss("distill")
        self.settle_compile("distill", self.compile, accumulate=self.accumulate)
        one_length("distill", self.steps, self.epochs)
        whole_epochs("distill", self.epochs, drop_last=self.drop_last)
        if self.warmup_epochs is not None:
            not_negative("distill", {"warmup_epochs": self.warmup_epochs})
            if self.warmup != _WARMUP:
                raise ValueError("distill: give warmup or warmup_epochs, not both")
        positive("distill", {"standardize_rows": self.standardize_rows})
        if self.standardize == "none" and self.standardize_rows != _STANDARDIZE_ROWS:
            raise ValueError("distill.standardize_rows: nothing is standardized; drop it or set standardize")
        positive("distill", {"batch": self.batch, "lr": self.lr, "accumulate": self.accumulate})
        average_decay("distill", self.ema)
        not_negative("distill", {"weight_decay": self.weight_decay, "clip": self.clip})
        fraction("distill.warmup", self.warmup)
        rates("distill", lr=self.lr, start=self.start_lr, end=self.end_lr)


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class FinetuneConfig(TaskTrainingConfig):
    """Stage 2. The defaults are the paper's; ``tasks`` empty means every task of the data set.

    ``warmup``, ``start_lr`` and ``end_lr`` belong to the cosine schedule; poly falls from ``lr`` to 0 by ``power``.

    ``alpha`` weighs the cached (or online) teacher loss; at 0 no teacher features are read. ``stem_lr_scale``
    multiplies the rate of everything that stage 1 trained, where ``lr_scales`` says nothing of it. ``batch``, ``ema``,
    ``compile`` and ``fused`` are as in stage 1; there are no micro-batches, because the heads' batch normalisation
    needs the whole batch.
    """

    steps: int | None = None
    epochs: float | None = None
    batch: int = 4
    lr: float = 2e-5
    stem_lr_scale: float = 1.0
    schedule: Literal["poly", "cosine"] = "poly"
    power: float = 0.9
    start_lr: float = _START_LR
    end_lr: float = 0.0
    warmup: float = 0.0
    weight_decay: float = 1e-6
    clip: float = 10.0
    tasks: tuple[str, ...] = ()
    alpha: float = 1.0
    targets: Targets = "cached"
    precision: Precision = "fp32"
    compile: CompileMode = False
    fused: bool = False
    ema: float | None = None

    def __post_init__(self) -> None:
        self.check_loss("finetune")
        self.settle_compile("finetune", self.compile)
        self.check_tasks(compile_=self.compile, precision=self.precision)
        one_length("finetune", self.steps, self.epochs)
        average_decay("finetune", self.ema)
        positive("finetune", {"batch": self.batch, "lr": self.lr, "stem_lr_scale": self.stem_lr_scale})
        not_negative("finetune", {"alpha": self.alpha, "weight_decay": self.weight_decay, "clip": self.clip})
        fraction("finetune.warmup", self.warmup)
        if self.schedule == "cosine":
            rates("finetune", lr=self.lr, start=self.start_lr, end=self.end_lr)
            return
        changed = {"warmup": self.warmup != 0, "start_lr": self.start_lr != _START_LR, "end_lr": self.end_lr != 0}
        for name in (name for name, given in changed.items() if given):
            raise ValueError(f"finetune.{name}: the poly schedule has none; drop it or set schedule to cosine")


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class RunConfig:
    """One row of the results table: what it changes against the recipe (dotted keys), and why it is there.

    ``split_tasks`` trains one network for each task and reports them as one row (the single-task baseline).
    """

    description: str = ""
    set: dict[str, object] = field(default_factory=dict)
    split_tasks: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Study:
    """Everything that one run depends on.

    ``seed`` decides initial weights, batches and noise; what is in the store follows the seeds under ``data``.
    """

    seed: int = 0
    store: str = "runs/store"
    device: str = "auto"
    threads: int | None = None
    data: DataSection
    teachers: dict[str, TeacherConfig] = field(default_factory=dict)
    extract: ExtractConfig = field(default_factory=ExtractConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    distill: DistillConfig | None = None
    finetune: FinetuneConfig | None = None
    eval: EvalConfig = field(default_factory=EvalConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    track: TrackConfig = field(default_factory=TrackConfig)

    def __post_init__(self) -> None:
        # A teacher says all of its own identity, wherever it is asked.
        settled = {name: teacher.under(self.extract) for name, teacher in self.teachers.items()}
        object.__setattr__(self, "teachers", settled)
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be 1 or more, or null for torch's choice, got {self.threads}")
        unknown = [name for name in self.student.teachers or () if name not in self.teachers]
        if unknown:
            raise ValueError(f"student.teachers names {unknown}, but the recipe's teachers are {sorted(self.teachers)}")
        if self.distill and not self.data.distill:
            raise ValueError("distill needs data.distill: which images, which views")
        if self.distill and not self.student_teachers:
            raise ValueError("distill needs at least one teacher under teachers:")
        if self.distill and self.data.distill and self.distill.crops == "fresh":
            fresh_views("distill", views=self.data.distill.views, on_error=self.data.distill.on_error)
        if self.student.paths == "frozen":
            self._check_frozen()
        self.student.check_start(distilled=self.distill is not None)
        if self.finetune and not self.data.finetune:
            raise ValueError("finetune needs data.finetune: a labelled source and its views")
        if self.finetune and self.data.finetune:
            data, cached = self.data.finetune, self.final_targets == "cached"
            self.finetune.check_stage(self.student, cached=cached, views=data.views, on_error=data.on_error)
        if self.eval.held_out_loss == "never" and self.data.eval and self.distill and not self.finetune:
            raise ValueError("eval.held_out_loss: never leaves nothing to score where there is no stage 2; drop it")
        if self.eval.resolution == "image" and self.data.eval and self.data.eval.view.kind != "full":
            raise ValueError(
                f"eval.resolution: image is for data.eval.view of kind full, got {self.data.eval.view.kind}; padded"
                " views are at the image's own size already, and others show only a part of it"
            )
        self._check_teacher_keys()
        for stage, used in (("distill", self.data.distill), ("finetune", self.data.finetune)):
            if getattr(self, stage) and used and self.data.eval and used.source.overlaps(self.data.eval.source):
                raise ValueError(
                    f"data.eval.source and data.{stage}.source are the same images ({used.source.name}, split"
                    f" {used.source.split}), but scores need held-out ones; give eval another split, root or seed"
                )

    def _check_frozen(self) -> None:
        if self.distill is not None:
            raise ValueError("student.paths: frozen teachers learn nothing in stage 1; set distill to null")
        if not self.student_teachers:
            raise ValueError("student.paths: frozen needs at least one teacher under teachers:")
        if self.finetune and self.finetune.alpha != 0:
            raise ValueError(
                "student.paths: frozen teachers have nothing to align to teachers; set finetune.alpha to 0, or paths"
                " to adapters or none"
            )
        if self.finetune and (self.finetune.lora or self.finetune.weighting == "gradnorm"):
            raise ValueError(
                "student.paths: frozen teachers share no trained weights between tasks; drop finetune.lora, and set"
                " finetune.weighting to fixed or uncertainty"
            )

    def _check_teacher_keys(self) -> None:
        known = self.student_teachers
        for stage, config in (("distill", self.distill), ("finetune", self.finetune)):
            strange = [name for name in config.teacher_weights if name not in self.teachers] if config else []
            if strange:
                raise ValueError(f"{stage}.teacher_weights names {strange}, but the recipe's teachers are {[*known]}")
            if config and known and all(config.teacher_weights.get(name, 1.0) == 0 for name in known):
                raise ValueError(f"{stage}.teacher_weights: all are 0, so nothing would be learnt; raise one")
        count = self.distill.teachers_per_step if self.distill else "all"
        if count != "all" and not 1 <= count <= len(known):
            raise ValueError(f"distill.teachers_per_step: expected all, or 1 to {len(known)} teachers, got {count}")
        if self.distill and count == len(known):  # one folder for one work
            object.__setattr__(self, "distill", dataclasses.replace(self.distill, teachers_per_step="all"))
        if self.student.lora is not None and not self.distill:
            raise ValueError("student.lora: it is of stage 1, and there is no distill; drop one or give the other")

    @property
    def scores_file(self) -> bool:
        """Whether nothing is trained and ``student.trained`` is scored as it is."""
        return self.student.trained is not None and self.finetune is None

    @property
    def trained_sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of the images that each stage trains on, in order."""
        crops = self.distill.crops if self.distill else None
        first = crops if isinstance(crops, ViewSpec) else self.data.distill and self.data.distill.view
        second = self.data.finetune and self.data.finetune.view
        views = (self.distill and first, self.finetune and second)
        return tuple(view.size for view in views if view)

    @property
    def student_teachers(self) -> tuple[str, ...]:
        """Names of the teachers that this student has paths or aligners for, in recipe order."""
        chosen = self.student.teachers
        return tuple(name for name in self.teachers if chosen is None or name in chosen)

    def codec(self, teacher: str, /) -> CodecValue:
        """How the columns of one of the recipe's teachers are encoded."""
        own = self.teachers[teacher].codec
        return self.extract.codec if own is None else own

    @property
    def scored(self) -> Study:
        """This study as scoring sees it: its columns encoded as ``eval.codec`` says."""
        if self.eval.codec is None:
            return self
        teachers = {name: dataclasses.replace(config, codec=None) for name, config in self.teachers.items()}
        extract = dataclasses.replace(self.extract, codec=self.eval.codec)
        return dataclasses.replace(self, teachers=teachers, extract=extract)

    @property
    def final_targets(self) -> Targets | None:
        """Where the last stage takes the teachers' maps, for its loss or to read them; ``None`` when it has none."""
        if self.finetune is None:
            return self.distill.targets if self.distill else None
        asked = self.finetune.alpha > 0 or self.student.paths == "frozen"
        return self.finetune.targets if asked and self.student_teachers else None

    @property
    def scored_targets(self) -> Targets | None:
        """Where scoring takes targets, likewise; live teachers only where asked for, or with nothing else to score."""
        wanted, kind = self.eval.held_out_loss, self.final_targets
        if self.student.paths == "frozen":  # which reads maps to predict from
            return kind
        spared = kind == "online" and wanted == "auto" and self.finetune is not None
        return None if spared or wanted == "never" else kind
