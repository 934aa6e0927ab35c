"""Extraction against the bare teacher: made images in a store of their own, and rounds in which both take turns.

Legend: B rows in a batch, H W rows and columns of an image.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.bench.contender import BenchError
from pipeline.calibration import column_codec, in_batches
from pipeline.column_engine import Output, fill_columns
from pipeline.columns import Wanted, settled_column
from pipeline.features import load_pixels
from pipeline.images.sample import ImageSample
from pipeline.maps import LiveMaps
from pipeline.pixels import encode_sample
from sak.teachers.model import load_teacher
from store.codecs.base import Codec, LevelSpec
from store.codecs.registry import CodecChoice, choice_json
from store.column import Column
from store.costs import UNTIMED, Spent
from store.rows import ViewRow
from store.spec import ViewSetSpec
from store.store import Store
from store.viewset import ViewSet

__all__ = ["ExtractionLine", "ExtractionPlan", "Turn", "make_outputs", "make_views", "measure_extraction"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractionPlan:
    """Settings of ``sak bench extract``.

    ``wanted`` are the teachers and the codecs of their columns; ``size`` is rows and columns of the made views,
    ``shard`` rows of a shard. ``fits`` cuts batches that memory does not hold. ``threads`` are torch's, None: as it is.
    ``projected`` is for how many images hours are told.

    Raises:
        BenchError: A setting is out of range.
    """

    wanted: tuple[Wanted, ...]
    size: tuple[int, int] = (224, 224)
    images: int = 64
    shard: int = 256
    batch: int = 32
    rounds: int = 3
    fits: bool = False
    device: str = "auto"
    threads: int | None = None
    folder: Path | None = None
    seed: int = 0
    projected: int = 1_281_167

    def __post_init__(self) -> None:
        for name in ("images", "shard", "batch", "rounds", "projected"):
            if getattr(self, name) < 1:
                raise BenchError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if min(self.size) < 8:
            raise BenchError(f"size: expected at least 8 rows and columns, got {self.size}")
        if not self.wanted:
            raise BenchError(
                "teachers: expected at least one, got none; give a recipe with teachers, or --teacher NAME"
            )
        for item in self.wanted:
            choice_json(item.codec)


class Turn(NamedTuple):
    """One round: the bare teachers and extraction over the same rows, and what the latter's steps took.

    Units:
        Seconds, by the clock and (``_cpu``) of all of the process's threads.
    """

    bare: float
    bare_cpu: float
    made: float
    made_cpu: float
    spent: Spent


@dataclass(slots=True)
class ExtractionLine:
    """What was measured of one teacher, or of all that share pixels; ``stored`` is bytes of its committed files."""

    name: str
    codec: CodecChoice
    rows: int
    turns: list[Turn] = field(default_factory=list)
    stored: int = 0


def make_views(plan: ExtractionPlan, root: Path, /, *, done: Callable[[int], object]) -> ViewSet:
    """A view set of made images in a new store.

    Raises:
        StoreError: The disk is full or fails.
    """
    spec = ViewSetSpec(
        name="bench",
        source={"name": "made"},
        view={"kind": "full", "size": list(plan.size)},
        images=plan.images,
        views=1,
        rows_per_shard=plan.shard,
        order_seed=0,
        seed=plan.seed,
        dataset="",
        tasks=(),
    )
    view_set = Store.create(str(root)).create_view_set(spec)
    for part in range(spec.parts):
        rows = spec.part_rows(part)
        view_set.write_part(part, [_row(plan, row) for row in rows])
        done(len(rows))
    return view_set


def make_outputs(plan: ExtractionPlan, view_set: ViewSet, /, *, device: torch.device) -> list[Output]:
    """The teachers, loaded, and their columns, empty, each codec fitted where it needs that.

    Raises:
        TeacherError: A teacher's weights are absent or do not fit.
        StoreError: The disk is full or fails.
    """
    store = Store.open(view_set.root.url)
    return [_output(plan, store, view_set, item, device) for item in plan.wanted]


def measure_extraction(
    plan: ExtractionPlan, view_set: ViewSet, outputs: Sequence[Output], /, *, done: Callable[[str], object]
) -> list[ExtractionLine]:
    """A B A B …: in every round each bare teacher runs over batches in memory, and then its column is made.

    Several teachers are also measured together: the sum of the bare ones, and one extraction of all.

    Args:
        done: Told the name of a line after each of its turns.

    Raises:
        StoreError: As extraction.
    """
    device, rows = outputs[0].source.device, list(range(plan.images))
    batches = [load_pixels(view_set, some).to(device) for some in in_batches(rows, plan.batch)]
    groups = [[output] for output in outputs] + ([list(outputs)] if len(outputs) > 1 else [])
    lines = [
        ExtractionLine(_name(group), item.codec, plan.images)
        for group, item in zip(groups, [*plan.wanted, plan.wanted[0]], strict=False)
    ]
    for group in groups:  # first calls are slow, and nobody's measure
        _bare(group, batches[:1])
        _make(view_set, [output._replace(missing=frozenset([0])) for output in group], batch=plan.batch)
    for _ in range(plan.rounds):
        for group, line in zip(groups, lines, strict=True):
            bare, made = _bare(group, batches), _make(view_set, group, batch=plan.batch)
            line.turns.append(Turn(bare.seconds, bare.cpu, made.seconds, made.cpu, made.spent))
            line.stored = sum(output.column.summary().bytes for output in group)
            done(line.name)
    return lines


class _Bare(NamedTuple):
    seconds: float
    cpu: float


class _Made(NamedTuple):
    seconds: float
    cpu: float
    spent: Spent


def _name(group: Sequence[Output]) -> str:
    return group[0].column.spec.teacher if len(group) == 1 else "all of them"


def _bare(group: Sequence[Output], batches: Sequence[Tensor]) -> _Bare:
    device = group[0].source.device
    _wait(device)
    start, used = time.perf_counter(), time.process_time()
    for output in group:
        for index, batch in enumerate(batches):
            output.source.maps(range(index, index + len(batch)), batch)
    _wait(device)
    return _Bare(time.perf_counter() - start, time.process_time() - used)


def _make(view_set: ViewSet, group: Sequence[Output], *, batch: int) -> _Made:
    for output in group:
        for part in output.missing:
            output.column.discard(part)
    # A view set that has been read holds its index and has checked its files, which a run does for every part.
    fresh = Store.open(view_set.root.url).view_set(view_set.name)
    start, used = time.perf_counter(), time.process_time()
    fill_columns(fresh, group, batch=batch, advance=lambda *_: None, finished=lambda *_: None)
    seconds, cpu = time.perf_counter() - start, time.process_time() - used
    spent = UNTIMED
    for output in group:
        for part in output.missing:
            spent = spent.plus(output.column.commits.spent(part))
    return _Made(seconds, cpu, spent)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _output(plan: ExtractionPlan, store: Store, view_set: ViewSet, item: Wanted, device: torch.device) -> Output:
    source = LiveMaps(load_teacher(item.spec, device=device), fits=plan.fits)

    def fit() -> tuple[Sequence[LevelSpec], Codec]:
        levels = source.levels(view_set)
        return levels, column_codec(item.codec, source=source, view_set=view_set, levels=levels, batch=plan.batch)

    column: Column = settled_column(store, item, view_set=view_set.spec, fit=fit)
    return Output(source, column, frozenset(range(view_set.spec.parts)))


def _row(plan: ExtractionPlan, row: int) -> ViewRow:
    key = f"{row:09d}"
    image = made_image(plan.size, seed=(plan.seed, row))
    files = encode_sample(ImageSample(key=key, image=image, labels={}))
    return ViewRow(row=row, key=key, view=0, files=files, draw={}, label=None)


def made_image(size: tuple[int, int], /, *, seed: tuple[int, int]) -> NDArray[np.uint8]:
    """Smooth shapes under a little grain: a PNG of it takes about as long to decode as a photograph's.

    Shapes: ``(H, W, 3)``.
    """
    draws = np.random.default_rng(seed)
    coarse = draws.integers(0, 256, (max(2, size[0] // 32), max(2, size[1] // 32), 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BICUBIC), np.int16)
    grain = draws.normal(0, 3, smooth.shape).astype(np.int16)
    image: NDArray[np.uint8] = np.clip(smooth + grain, 0, 255).astype(np.uint8)
    return image
