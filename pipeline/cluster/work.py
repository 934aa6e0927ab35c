"""Tasks of Dask workers that need a teacher's maps: their shapes, a share of a codec's fit, a part of columns.

Every task opens the store anew, so that nothing grows with the number of parts that a worker has seen. Loaded teachers
and the sample of the fit in progress stay in the process.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from pipeline.calibration import Replay, share_sums, shares
from pipeline.cluster.attempt import anywhere
from pipeline.column_engine import Lane, Output, fill_columns
from pipeline.maps import LiveMaps, MapSource, StoredMaps
from pipeline.memory import share_memory
from pipeline.part_report import PartReport, PartReports
from pipeline.runtime import pick_device
from sak.teachers.model import load_teacher
from sak.teachers.spec import TeacherSpec
from store.codecs.base import Fitter, LevelSpec
from store.store import Store
from store.viewset import ViewSet

__all__ = ["FitShare", "Place", "Target", "fit_share", "make_columns", "map_levels", "target_of"]

_TEACHERS = 8


class Place(NamedTuple):
    """Where a task reads and writes, and computes.

    Attributes:
        views: How many of the view set's are asked for.
        fits: Whether batches that memory does not hold are cut.
        sharers: Workers that are known to share the memory of a machine.
    """

    store: str
    view_set: str
    views: int
    device: str
    batch: int
    fits: bool = False
    sharers: int = 1


class Target(NamedTuple):
    """One teacher's maps: run it, or read them from the column ``exact``. ``column`` is where they go; may be ''."""

    spec: TeacherSpec
    exact: str = ""
    column: str = ""


class FitShare(NamedTuple):
    """One worker's turn in fitting a codec.

    Attributes:
        token: Names the fit: maps are kept from pass to pass of one fit.
        batches: Rows of the whole sample.
        share: Number of the share.
        last: Whether no pass follows.
    """

    place: Place
    target: Target
    token: str
    batches: Sequence[Sequence[int]]
    share: int
    last: bool


def target_of(spec: TeacherSpec, /, *, exact: str = "", column: str = "") -> Target:
    """A target whose weights file is found from any folder."""
    checkpoint = None if spec.checkpoint is None else Path(anywhere(str(spec.checkpoint)))
    return Target(dataclasses.replace(spec, checkpoint=checkpoint), exact, column)


def map_levels(place: Place, target: Target, /) -> tuple[LevelSpec, ...]:
    """Shapes of a teacher's maps.

    Raises:
        TeacherError: The teacher's weights are absent or do not fit, or it takes no views of this size.
    """
    store = Store.open(place.store)
    view_set = store.view_set(place.view_set, views=place.views)
    return _source(store, view_set, target, place).levels(view_set)


def make_columns(place: Place, targets: Sequence[Target], part: int, /) -> list[PartReport]:
    """Make a part of several columns from one decode of its pixels; those that have it already are left alone.

    The worker begins another task while this one's teachers run or its parts are written (``Lane``), so that one part
    is read, the next made and the ones before written side by side, each by its own task.

    Raises:
        TeacherError: As ``map_levels``.
        StoreError: The store is damaged or cannot be written.
    """
    store = Store.open(place.store)
    view_set = store.view_set(place.view_set, views=place.views)
    columns = [store.column(place.view_set, target.column, views=place.views) for target in targets]
    names = [target.spec.name for target in targets]
    reports, todo = PartReports(dict(zip(names, columns, strict=True))), []
    for target, column in zip(targets, columns, strict=True):
        standing = column.commits.find(part)
        if standing is None:
            source = _source(store, view_set, target, place, most=len(targets))
            todo.append(Output(source, column, frozenset([part])))
        else:
            reports.finished(target.spec.name, part, standing)
    lane = _lanes.of_this_worker()
    fill_columns(view_set, todo, batch=place.batch, advance=reports.advance, finished=reports.finished, lane=lane)
    return reports.made


def fit_share(work: FitShare, fitter: Fitter, /) -> Mapping[str, NDArray[np.float64]]:
    """What a share of the sample adds to the pass that a fitter is in.

    Raises:
        StoreError: The sample is not finite, or the store is damaged.
    """
    sample = _samples.of(work)
    share = shares(len(work.batches))[work.share]
    sums = share_sums(fitter, sample, share)
    if work.last:
        sample.forget(share)
    return sums


class _Samples:
    """The sample of the fit in progress in this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[str, Replay] = {}

    def of(self, work: FitShare) -> Replay:
        """A fit's sample; that of another fit is forgotten."""
        with self._lock:
            if work.token not in self._held:
                self._held = {work.token: _sample(work)}
            return self._held[work.token]


class _Teachers:
    """Teachers that this process has loaded; those not used for longest are forgotten."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: OrderedDict[str, LiveMaps] = OrderedDict()

    def load(self, spec: TeacherSpec, device: str, fits: bool, most: int) -> LiveMaps:
        """A teacher, built on first use; it keeps what it learns of the memory there is."""
        key = f"{device} {fits} {spec!r}"
        with self._lock:
            if key not in self._held:
                self._held[key] = LiveMaps(load_teacher(spec, device=device), fits=fits)
            self._held.move_to_end(key)
            while len(self._held) > max(most, _TEACHERS):
                self._held.popitem(last=False)
            return self._held[key]


class _Lanes:
    """A lane for each worker; there is one in a process, but in tests."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: WeakKeyDictionary[Any, Lane] = WeakKeyDictionary()

    def of_this_worker(self) -> Lane:
        """That of the worker whose thread this is; who leaves it secedes, for which its task is none the less due."""
        from distributed import get_worker, secede  # which is here where there is a worker

        worker = get_worker()
        with self._lock:
            if worker not in self._made:
                gpus = int(worker.state.total_resources.get("GPU", 0))
                makers = min(worker.state.nthreads, gpus or worker.state.nthreads)
                self._made[worker] = Lane(makers=makers, leave=secede)
            return self._made[worker]


_samples, _teachers, _lanes = _Samples(), _Teachers(), _Lanes()


def _sample(work: FitShare) -> Replay:
    store = Store.open(work.place.store)
    view_set = store.view_set(work.place.view_set, views=work.place.views)
    source = _source(store, view_set, work.target, work.place)
    return Replay(len(work.batches), make=lambda index: source.sample(view_set, work.batches[index]))


def _source(store: Store, view_set: ViewSet, target: Target, place: Place, *, most: int = 1) -> MapSource:
    share_memory(place.sharers)
    device = pick_device(place.device)
    if target.exact:
        return StoredMaps(store.column(view_set.name, target.exact, views=place.views), target.spec, device=device)
    return _teachers.load(target.spec, str(device), place.fits, most)
