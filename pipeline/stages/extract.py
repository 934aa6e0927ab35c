"""Stage ``extract``: view sets and teacher columns, each part committed on its own.

One decode of a part's pixels feeds every teacher that lacks it. What is already in the store is never redone; a
teacher is built only when some part of its column is missing. The work is done here, or on a Dask cluster
(``pipeline.cluster``), to the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

import torch

from pipeline.bad_rows import BadRows
from pipeline.calibration import column_codec
from pipeline.cluster.dask_cluster import DaskCluster
from pipeline.cluster.extraction import extract_over
from pipeline.cluster.work import Place
from pipeline.column_engine import Output, fill_columns
from pipeline.columns import Wanted, settled_column
from pipeline.config import Study
from pipeline.extraction_log import ExtractionLog
from pipeline.extraction_progress import ExtractionProgress
from pipeline.maps import LiveMaps, MapSource, map_source
from pipeline.needs import Need, needs
from pipeline.pool import parts_done
from pipeline.preemption import ended_by_sigterm
from pipeline.runtime import pick_device, visible_gpus
from pipeline.targets import find_column
from pipeline.tracking import CONSOLE
from pipeline.viewsets import make_part, view_set_spec
from sak.teachers.model import load_teacher
from sak.teachers.spec import TeacherSpec
from store.codecs.base import Codec, LevelSpec
from store.codecs.registry import CodecChoice
from store.column import Column
from store.spec import ViewSetSpec
from store.store import Store
from store.viewset import ViewSet

__all__ = ["extract"]


def extract(studies: Sequence[Study], /, *, log: ExtractionLog | None = None) -> None:
    """Bring the store up to what these studies need.

    Args:
        log: Where to record what happens.

    Raises:
        BadImageError: A source image cannot be decoded (see ``on_error``).
        TeacherError: A teacher's weights are absent or do not fit.
        StoreError: The store is damaged or cannot be written.
        Preempted: SIGTERM came; finished shards are kept.
    """
    seen: set[str] = set()
    with ended_by_sigterm("extract"), ExitStack() as stack:
        log = stack.enter_context(log or ExtractionLog(None))
        clusters = _Clusters(stack, log)
        for study in studies:
            store = Store.create(study.store)
            for need in needs(study):
                view_set = _view_set(store, view_set_spec(need.data, labels=need.labels))
                with ExtractionProgress(view_set.name, log) as progress:
                    work = _Work(store, view_set, need, study, progress)
                    worked = _need(work, clusters)
                what = {view_set.name, *(f"{view_set.name}/{name}" for name in need.teachers)}
                if not worked and not what <= seen:
                    names = ", ".join(("views", *need.teachers))
                    CONSOLE.print(f"extract {view_set.name}: {names} are done ({study.store}), skipped")
                seen |= what


class _Clusters:
    """Dask clusters of the studies, each started once, when there is work, and ended with the stage."""

    def __init__(self, stack: ExitStack, log: ExtractionLog, /) -> None:
        self._stack, self._log = stack, log
        self._made: dict[tuple[object, ...], DaskCluster] = {}

    def of(self, study: Study) -> DaskCluster:
        """The one that a study asks for."""
        config = study.extract
        key = (config.workers, config.scheduler, config.gpu_workers, study.threads, study.device)
        if key not in self._made:
            cluster = DaskCluster(
                config.workers,
                scheduler=config.scheduler,
                gpu=config.gpu_workers,
                gpus=[] if config.scheduler else visible_gpus(pick_device(study.device)),
                threads=study.threads,
                log=self._log,
            )
            self._made[key] = self._stack.enter_context(cluster)
        return self._made[key]


class _Work(NamedTuple):
    store: Store
    view_set: ViewSet
    need: Need
    study: Study
    progress: ExtractionProgress


def _need(work: _Work, clusters: _Clusters) -> bool:
    """Bring a view set and its columns to done; whether anything was missing."""
    study, need, view_set, config = work.study, work.need, work.view_set, work.study.extract
    wanted = [Wanted(study.teachers[name].spec(name), codec) for name, codec in need.teachers.items()]
    if config.engine == "dask":
        fits, sharers = config.batch == "auto", 1 if config.scheduler else config.workers
        place = Place(study.store, view_set.name, view_set.spec.views, study.device, config.batch_rows, fits, sharers)
        cluster, progress = clusters.of(study), work.progress
        return extract_over(cluster, view_set, data=need.data, wanted=wanted, place=place, progress=progress)
    if study.threads is not None:
        torch.set_num_threads(study.threads)
    worked = _views(work)
    return _columns(work, wanted, device=pick_device(study.device)) or worked


def _view_set(store: Store, spec: ViewSetSpec) -> ViewSet:
    """The view set with the views asked for: the one there is, which gets those that it lacks, or a new one."""
    before = store.view_set(spec.name).spec.views if spec.name in store.view_set_names() else spec.views
    if before < spec.views:
        new = spec.views - before
        CONSOLE.print(f"extract {spec.name}: views: {before} -> {spec.views}, {new} new ones to make")
    return store.create_view_set(spec)


def _views(work: _Work) -> bool:
    """Make the missing parts of a view set; whether there were any.

    Raises:
        TooManyBadError: More images than are allowed cannot be used.
    """
    view_set, data, progress = work.view_set, work.need.data, work.progress
    missing, bad_rows = view_set.missing_parts(), BadRows(view_set, data)
    bad_rows.check()
    if not missing:
        return False
    label = f"views {view_set.name}"
    CONSOLE.print(f"{label}: {len(missing)} of {view_set.spec.parts} shards to make")
    workers = min(work.study.extract.workers, len(missing), os.cpu_count() or 1)
    progress.begin_views(view_set, missing=missing, engine="process")
    for report in parts_done(make_part, view_set, missing, data=data, workers=workers):
        progress.landed(report)
        bad_rows.glance()
    bad = bad_rows.check()
    if bad:
        CONSOLE.print(f"{label}: {bad} rows left out; their reasons are in the index (sak store info)")
    return True


def _columns(work: _Work, wanted: Sequence[Wanted], *, device: torch.device) -> bool:
    """Make the missing parts of the teachers' columns; whether there were any."""
    store, view_set, progress, config = work.store, work.view_set, work.progress, work.study.extract

    def live(spec: TeacherSpec) -> MapSource:
        return LiveMaps(load_teacher(spec, device=str(device)), fits=config.batch == "auto")

    writers, batch = [], config.batch_rows
    for item in wanted:
        column = find_column(store, item.spec, view_set=view_set.spec, codec=item.codec)
        if column is None or column.missing_parts():
            source = map_source(store, item.spec, view_set=view_set, codec=item.codec, device=device, live=live)
            column = _column(work, source, codec=item.codec, batch=batch)
            writers.append(Output(source, column, frozenset(column.missing_parts())))
    if not writers:
        return False
    parts = frozenset[int]().union(*(writer.missing for writer in writers))
    names = ", ".join(writer.column.spec.teacher for writer in writers)
    for stored in (writer for writer in writers if not writer.source.reads_pixels):
        CONSOLE.print(f"extract {stored.source.spec.name}: encoded from its exact column; the teacher is not loaded")
    CONSOLE.print(f"extract {names} over {view_set.name}: {len(parts)} shards to make")
    for writer in writers:
        progress.begin_column(writer.column, missing=writer.missing)
    fill_columns(view_set, writers, batch=batch, advance=progress.advance, finished=progress.finished)
    return True


def _column(work: _Work, source: MapSource, *, codec: CodecChoice, batch: int) -> Column:
    """The column that a teacher's parts go to, its codec fitted where it is new and needs that."""
    view_set, progress = work.view_set, work.progress

    def fit() -> tuple[Sequence[LevelSpec], Codec]:
        levels = source.levels(view_set)
        with progress.fitting(source.spec.name, codec):
            return levels, column_codec(
                codec, source=source, view_set=view_set, levels=levels, batch=batch, show=progress.step
            )

    return settled_column(work.store, Wanted(source.spec, codec), view_set=view_set.spec, fit=fit)
