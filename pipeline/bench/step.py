"""Steps of stage 1 against each other: targets from a store, in memory, and from live teachers, round by round.

Every step is ``Trainer.step`` with the losses of stage 1, and batches come from its loader.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pipeline.bench.contender import BenchError
from pipeline.bench.extraction import ExtractionPlan, make_outputs, make_views
from pipeline.bench.files import drop_pages
from pipeline.column_engine import fill_columns
from pipeline.columns import Wanted
from pipeline.config import DistillConfig, Study
from pipeline.feature_losses import FeatureLosses
from pipeline.loader import Batch, Loader
from pipeline.meter import Meter
from pipeline.split import Split
from pipeline.standards import Standards
from pipeline.students import Normalise, make_student, student_spec
from pipeline.targets import (
    CachedTargets,
    Encoded,
    OnlineTargets,
    Targets,
    TargetSource,
    study_columns,
    teacher_specs,
)
from pipeline.trainer import Trainer, TrainPlan
from pipeline.training import compiled, loss_weights
from pipeline.viewsets import view_size
from sak.teachers.footprint import footprint
from store.column import Column
from store.store import Store
from store.viewset import ViewSet

__all__ = ["WAYS", "StepLine", "StepPlan", "StepTurn", "made_store", "measure_steps"]

WAYS = {
    "cached": "targets read from the store, decoded on the device",
    "encoded": "one batch in memory as stored, decoded in each step",
    "decoded": "one batch in memory with its targets decoded: nothing but the student's step",
    "online": "targets from live teachers, pixels from the store",
}
"""Where a step's targets come from; in every round they take turns in this order."""

_RATE = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """Settings of ``sak bench step``.

    ``study`` says teachers, codecs, views, batch, precision, loader and all else of the step. ``students`` are stems
    to measure. With ``own_store`` its store is read, else one is made of random-weight teachers over made images.
    ``steps`` are timed in a turn, after ``warmup`` that are not. ``shard`` is rows of a made shard. ``cold`` drops
    cached file pages before every turn.

    Raises:
        BenchError: A setting is out of range.
    """

    study: Study
    students: tuple[str, ...]
    own_store: bool = False
    steps: int = 10
    warmup: int = 2
    rounds: int = 3
    shard: int = 64
    cold: bool = False
    folder: Path | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "warmup", "rounds", "shard"):
            if getattr(self, name) < 1:
                raise BenchError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not self.students:
            raise BenchError("student: expected at least one, got none; name one by --student")
        if self.study.distill is None or self.study.data.distill is None:
            raise BenchError("recipe: expected distill and data.distill, which a step is of; give it both")
        if self.own_store and self.cold and not Path(self.study.store).is_dir():
            raise BenchError(f"cold: {self.study.store} is no local folder, so no pages of it can be dropped; leave it")

    @property
    def config(self) -> DistillConfig:
        """Stage 1's: one micro-batch, no averages, the views as they are stored."""
        assert self.study.distill is not None
        batch = self.study.distill.batch // self.study.distill.accumulate
        plain: dict[str, object] = {"accumulate": 1, "ema": None, "crops": None, "teachers_per_step": "all"}
        return replace(self.study.distill, batch=batch, **plain)  # type: ignore[arg-type]

    @property
    def rows(self) -> int:
        """Of a turn: a made store has as many, so that no turn reads a row twice."""
        return (self.warmup + self.steps) * self.config.batch


class StepTurn(NamedTuple):
    """One turn: seconds a step, and what the meter read: share waited for data, bytes a second from the store."""

    seconds: float
    waited: float
    read_rate: float


@dataclass(slots=True)
class StepLine:
    """What was measured with one student; multiply-adds of a forward pass on one image, of it and of all teachers."""

    student: str
    macs: int
    teacher_macs: int
    parameters: int
    turns: dict[str, list[StepTurn]] = field(default_factory=lambda: {way: [] for way in WAYS})

    @property
    def limit(self) -> float:
        """How much a step can gain when teachers leave it, if arithmetic is all: backward passes cost two forward."""
        return (self.teacher_macs + 3 * self.macs) / (3 * self.macs)


def made_store(plan: StepPlan, root: Path, /, *, device: torch.device, done: Callable[[int], object]) -> Study:
    """The study over a new store of made images and its teachers' maps of them.

    Args:
        done: Told the rows of every step of the work; as many for the images as for each teacher.

    Raises:
        TeacherError: A teacher's weights are absent or do not fit, or it takes no views of this size.
        StoreError: The disk is full or fails, or a codec cannot represent a teacher's maps.
    """
    study = plan.study
    assert study.data.distill is not None
    making = ExtractionPlan(
        wanted=tuple(Wanted(spec, study.codec(name)) for name, spec in teacher_specs(study).items()),
        size=study.data.distill.view.size,
        images=plan.rows,
        shard=plan.shard,
        batch=study.extract.batch_rows,
        seed=study.seed,
    )
    view_set = make_views(making, root, done=done)
    outputs = make_outputs(making, view_set, device=device)
    batch = min(making.batch, plan.rows)
    fill_columns(view_set, outputs, batch=batch, advance=lambda _, rows: done(rows), finished=lambda *_: None)
    return replace(study, store=str(root))


def measure_steps(
    plan: StepPlan, study: Study, /, *, name: str, device: torch.device, done: Callable[[str], object]
) -> list[StepLine]:
    """A B C D A B C D ... for each student in turn.

    Args:
        study: The plan's, over the store to read.
        name: Of the view set.
        done: Told what has had its turn.

    Raises:
        MissingColumnError: The store lacks a column.
    """
    live = OnlineTargets(teacher_specs(study), device=device)
    lines = []
    for stem in plan.students:
        bench = _Bench(plan, study, name=name, stem=stem, device=device, live=live)
        for turn in range(plan.rounds):
            for way in WAYS:
                bench.line.turns[way].append(bench.turn(way, number=turn))
                done(f"{stem}, {way}")
        lines.append(bench.line)
    return lines


class _Held:
    """Targets that are there already, decoded."""

    columns: tuple[Column, ...] = ()

    def __init__(self, maps: Targets, /) -> None:
        self._maps = maps

    @property
    def widths(self) -> Mapping[str, tuple[int, ...]]:
        return {name: tuple(feat.shape[1] for feat in levels) for name, levels in self._maps.items()}

    def read(self, rows: NDArray[np.int64], /, *, step: int | None = None) -> Encoded:
        return {}

    def prefetch(self, parts: Mapping[int, Sequence[int]], /) -> None: ...

    def targets(self, encoded: Encoded, pixels_BCHW: Tensor, /) -> Targets:
        return self._maps


class _Stored(NamedTuple):
    """A store's views, opened anew, and targets over them."""

    view_set: ViewSet
    targets: TargetSource


class _Bench:
    """One student in training, whose next steps may take their targets from anywhere."""

    def __init__(
        self, plan: StepPlan, study: Study, *, name: str, stem: str, device: torch.device, live: TargetSource
    ) -> None:
        self._plan, self._study, self._name, self._device, self._live = plan, study, name, device, live
        stored = self._stored()
        config = replace(study.student, stem=stem, checkpoint=None, pretrained=False)
        if stem != study.student.stem:
            config = replace(config, overrides={}, levels=())
        spec = student_spec(config, image_size=view_size(stored.view_set.spec), widths=stored.targets.widths, tasks={})
        self._student = make_student(config, spec, seed=study.seed, load_stem=False).to(device).train()
        self.line = self._line(stem, spec.image_size)
        self._forward = compiled(self._student, plan.config.compile, device=device)
        self._normalise = Normalise(mean=config.mean, std=config.std).to(device)
        self._losses = self._losses_of(stored.targets)
        with closing(self._loader(stored).batches(0, 1)) as batches:
            self._batch = next(batches)
        self._maps = stored.targets.targets(self._batch.encoded, self._batch.pixels)
        self._trainer = Trainer(
            model=self._student, losses=lambda batch: self._losses(batch), plan=self._train_plan(), folder=Path()
        )

    def turn(self, way: str, /, *, number: int) -> StepTurn:
        """Some steps, of which the first are not timed; a store is opened anew."""
        if self._plan.cold:
            drop_pages(Path(self._study.store))
        first = number * (self._plan.warmup + self._plan.steps)
        if way in ("cached", "online"):
            stored = self._stored()
            targets = stored.targets if way == "cached" else self._live
            loader = self._loader(stored._replace(targets=targets))
            steps = loader.batches(first, first + self._plan.warmup + self._plan.steps, loading=self._study.loader)
            return self._timed(steps, targets, read_bytes=lambda: loader.read_bytes)
        if way == "encoded":
            return self._timed(self._same(self._batch), self._stored().targets, read_bytes=lambda: 0)
        return self._timed(self._same(self._batch._replace(encoded={})), _Held(self._maps), read_bytes=lambda: 0)

    def _timed(
        self, batches: Generator[Batch, None, None], targets: TargetSource, *, read_bytes: Callable[[], int]
    ) -> StepTurn:
        self._losses = self._losses_of(targets)
        meter = Meter(self._device, read_bytes=read_bytes)
        with closing(batches):
            timed = meter.timed(batches)
            self._steps(timed, self._plan.warmup)
            meter.read()
            start = time.perf_counter()
            self._steps(timed, self._plan.steps)
            seconds = time.perf_counter() - start
            speeds = meter.read()
        rate, wait = speeds["speed/read_bytes_per_s"], speeds["speed/data_wait"]
        return StepTurn(seconds / self._plan.steps, wait, rate)

    def _steps(self, batches: Iterator[Batch], count: int) -> None:
        for step in range(count):
            self._trainer.step(step, [next(batches)])
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _same(self, batch: Batch) -> Generator[Batch, None, None]:
        while True:
            yield batch

    def _stored(self) -> _Stored:
        view_set = Store.open(self._study.store).view_set(self._name)
        return _Stored(view_set, CachedTargets(study_columns(self._study, view_set=view_set.spec)))

    def _loader(self, stored: _Stored) -> Loader:
        return Loader(
            stored.view_set,
            batch=self._plan.config.batch,
            seed=self._study.seed,
            targets=stored.targets,
            device=self._device,
        )

    def _losses_of(self, targets: TargetSource) -> FeatureLosses:
        return FeatureLosses(
            student=self._student,
            forward=self._forward,
            normalise=self._normalise,
            config=self._plan.config,
            targets=targets,
            weights=loss_weights(self._plan.config),
            standards=Standards({}),
        )

    def _train_plan(self) -> TrainPlan:
        config = self._plan.config
        return TrainPlan(
            steps=self._plan.steps,
            rate=lambda step: _RATE,
            groups=[(list(self._student.parameters()), 1.0)],
            weight_decay=config.weight_decay,
            clip=config.clip,
            precision=config.precision,
            track=self._study.track,
            fused=config.fused,
            split=Split(batch=config.batch),
        )

    def _line(self, stem: str, size: tuple[int, int]) -> StepLine:
        own = copy.deepcopy(self._student).to("meta")
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            own(torch.empty((1, 3, *size)))
        macs = sum(footprint(spec, view=size).macs for spec in teacher_specs(self._study).values())
        parameters = sum(parameter.numel() for parameter in own.parameters())
        return StepLine(stem, counter.get_total_flops() // 2, macs, parameters)
