"""Short trials on this machine: how fast teachers run and codecs encode, and what fitted codecs take.

What is tried is a few rows drawn in memory; nothing is stored. A teacher without weights here runs with random ones,
which takes as long, but says nothing of how its maps compress.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.calibration import fit_codecs
from pipeline.clock import Clock
from pipeline.columns import MEASURED_SHARE
from pipeline.errors import PipelineError
from pipeline.features import run_teacher
from pipeline.maps import exact_maps
from pipeline.planning import Column, ColumnKey, Plan, Speed
from pipeline.rates import LossKind, measure
from pipeline.runtime import torch_threads
from pipeline.samples import Sample
from pipeline.sizes import RowSize
from pipeline.survey import Survey, open_store
from pipeline.tracking import progress_bar
from sak.errors import SakError
from sak.teachers.model import Teacher, load_teacher
from sak.teachers.spec import TeacherSpec
from store.codecs.base import LevelSpec
from store.codecs.registry import choose_codec, is_fitted, make_fitter
from store.errors import StoreError
from store.spec import ColumnSpec

__all__ = ["Terms", "calibrated"]

_BATCHES = 3
_KEEP_BYTES = 512 << 20
_MOST_ROWS = 1 << 20
_FLOAT = 4


class Terms(NamedTuple):
    """What a trial may take.

    Attributes:
        room: Bytes of memory where the teachers run; None for any number.
        seconds: About how long each teacher runs for each size of view, after its warm-up.
    """

    device: torch.device
    room: int | None
    seconds: float

    def batch(self, item: Column, /) -> int:
        """Rows of a teacher that fit in what its weights leave of half the room; 0 where none does."""
        if self.room is None:
            return _MOST_ROWS
        left = self.room // 2 - _FLOAT * item.cost.parameters
        return max(0, left // (item.cost.activations + 2 * _FLOAT * item.cost.values))


def calibrated(found: Survey, /, *, terms: Terms) -> Plan:
    """The plan with the speeds of this machine, for all columns of teachers of which something is missing.

    Teachers that do not fit in memory are left without.

    Raises:
        PipelineError: A source has no usable image.
        StoreError: A codec cannot represent a teacher's maps, or an exact column is damaged.
    """
    plan, groups = found.plan, dict[tuple[object, ...], list[ColumnKey]]()
    for key, item in plan.columns.items():
        groups.setdefault((key.made, item.cost.input, item.cost.maps), []).append(key)
    wanted = [keys for keys in groups.values() if any(plan.columns[key].missing for key in keys)]
    columns = dict(plan.columns)
    with torch_threads(plan.engine.threads or None), progress_bar("teachers") as bar:
        shown = bar.add_task("calibrate", total=len(wanted))
        for keys in wanted:
            absent = {key.made for key, item in columns.items() if item.weights == "missing"}
            # What could not be fetched once is not asked for again.
            own = {
                key: columns[key]._replace(weights="missing") if key.made in absent else columns[key] for key in keys
            }
            columns |= _group(found, own, terms)
            bar.advance(shown)
    return dataclasses.replace(plan, columns=columns)


class _Maps(NamedTuple):
    """A teacher's maps of a few rows: of each level ``(N, C, h, w)``.

    Attributes:
        seconds: A row took.
        real: They are the teacher's, not those of random weights in its place.
    """

    feats: list[Tensor]
    seconds: float
    real: bool


def _group(found: Survey, columns: Mapping[ColumnKey, Column], terms: Terms) -> Mapping[ColumnKey, Column]:
    """Columns of one teacher, and of one size of its input and maps."""
    missing = [key for key, item in columns.items() if item.missing]
    live = next((key for key in missing if not columns[key].exact), None)
    first = live or missing[0]
    if live is None:
        maps = _stored(found, first, device=terms.device)
    elif not terms.batch(columns[first]):
        return columns
    else:
        batch = min(found.plan.engine.batch, terms.batch(columns[first]))
        sample = Sample(found.data[first.views], found.specs[first.views], batch)
        least = min(sample.spec.images, 2 if any(is_fitted(item.codec) for item in columns.values()) else 1)
        maps = _live(columns[first], sample, terms, least=least)
    result = {}
    for key, item in columns.items():
        # Maps of an exact column that is still to be made are not read yet: that time is not known, and small.
        forward = 0.0 if item.exact and live is not None else maps.seconds
        tried = _tried(item, maps, device=terms.device)
        weights = item.weights if maps.real else "missing"
        result[key] = item._replace(speed=Speed(forward, tried.encode), size=tried.size, weights=weights)
    return result


def _live(item: Column, sample: Sample, terms: Terms, *, least: int) -> _Maps:
    """Maps of at least so many rows."""
    clock, images, loaded = Clock(terms.device), sample.spec.images, _load(item, terms.device)

    def run(step: str, first: int, count: int) -> list[Tensor]:
        pixels = sample.pixels([row % images for row in range(first, first + count)])
        return clock.run(step, partial(run_teacher, loaded.teacher, pixels))

    run("warm-up", 0, 1)
    size = _trial_rows(clock, lambda count: run(_rows(count), 0, count), most=min(sample.batch, images), terms=terms)
    most = max(2, _KEEP_BYTES // (_FLOAT * item.cost.values))
    rows, kept = 0, list[list[Tensor]]()
    while rows < least or (clock.seconds("batch") < terms.seconds and rows < _BATCHES * size):
        feats = run("batch", rows, size)
        left = most - sum(len(held[0]) for held in kept)
        kept += [[feat[:left].cpu() for feat in feats]] if left > 0 else []
        rows += len(feats[0])
    maps = [torch.cat(levels) for levels in zip(*kept, strict=True)]
    return _Maps(maps, clock.seconds("batch") / rows, loaded.real)


def _trial_rows(clock: Clock, run: Callable[[int], object], *, most: int, terms: Terms) -> int:
    """Rows of a batch, doubled up to ``most`` as long as a few of the next size will fit in the time of a trial.

    Args:
        run: Runs the teacher on so many rows, as the step ``_rows`` of the clock.
    """
    size, spent = 1, 0.0
    while spent < terms.seconds:
        run(size)
        took = clock.seconds(_rows(size))
        if took < terms.seconds:  # the first batch of a size is slow, and any may be
            run(size)
            took = min(took, clock.seconds(_rows(size)) - took)
        spent += clock.seconds(_rows(size))
        if size == most or 2 * took * _BATCHES > terms.seconds:
            break
        size = min(2 * size, most)
    return size


def _rows(count: int) -> str:
    return f"{count} rows"


def _stored(found: Survey, key: ColumnKey, *, device: torch.device) -> _Maps:
    """Maps read from the exact column that others are made from."""
    store, item = open_store(key.views.store), found.plan.columns[key]
    assert store is not None
    view_set = store.view_set(key.views.name, views=found.specs[key.views].views)
    source = exact_maps(store, item.spec, codec=item.codec, view_set=view_set, device=device)
    assert source is not None
    rows, clock = view_set.usable_rows()[: found.plan.engine.batch].tolist(), Clock(device)
    if not rows:
        raise PipelineError(f"store {key.views.store}: view set {view_set.name} has no usable row; mend its source")
    source.sample(view_set, rows[:1])
    feats = clock.run("read", partial(source.sample, view_set, rows))
    return _Maps([feat.cpu() for feat in feats], clock.seconds("read") / len(rows), True)


class _Loaded(NamedTuple):
    teacher: Teacher
    real: bool


def _load(item: Column, device: torch.device) -> _Loaded:
    """The teacher, or where its weights cannot be had the same network with random ones.

    Raises:
        TeacherError: Its weights are here, and do not fit.
    """
    if item.weights == "here":
        return _Loaded(load_teacher(item.spec, device=device), True)
    if item.weights == "hub":
        with contextlib.suppress(SakError):  # which may be out of reach from here
            return _Loaded(load_teacher(item.spec, device=device), True)
    return _Loaded(load_teacher(_random(item.spec), device=device), False)


def _random(spec: TeacherSpec) -> TeacherSpec:
    return dataclasses.replace(spec, checkpoint=None, pretrained=False, builtin=None, random=0)


class _Tried(NamedTuple):
    encode: float | None
    size: RowSize


def _tried(item: Column, maps: _Maps, *, device: torch.device) -> _Tried:
    """A codec on these maps; one that is fitted sees three quarters of them and is measured on the others."""
    count = len(maps.feats[0])
    split = max(1, 3 * count // 4)
    fit = [feat[:split].to(device) for feat in maps.feats]
    held_out = [feat[split:] if split < count else feat for feat in maps.feats]
    levels = tuple(LevelSpec(components=f.shape[1], height=f.shape[2], width=f.shape[3]) for f in maps.feats)
    try:
        if is_fitted(item.codec):
            (codec,) = fit_codecs([make_fitter(item.codec, levels)], [fit], done=lambda rows: None)
        else:
            codec = choose_codec(item.codec)
        spec = ColumnSpec(view_set="trial", teacher=item.spec.name, identity={}, levels=levels, codec=codec)
        rate = measure(spec, [held_out], device=device, loss=LossKind())
    except StoreError:
        if maps.real:
            raise
        return _Tried(None, item.size)
    encode = item.cost.values / 1e6 * (1 / rate.encode + 1 / rate.decode / MEASURED_SHARE)
    if not (maps.real and is_fitted(item.codec)) or item.size.basis == "stored":
        return _Tried(encode, item.size)
    held = sum(
        part.row_bytes for index, level in enumerate(levels) for part in codec.parts(level, index=index).values()
    )
    return _Tried(encode, RowSize(rate.row_bytes, held, "measured"))
