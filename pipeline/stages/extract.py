"""Stage ``extract``: view sets and teacher columns, each part committed on its own.

One decode of a part's pixels feeds every teacher that lacks it. What is already in the store is never redone; a
teacher is built only when some part of its column is missing. The work is done here, or on a Dask cluster
(``pipeline.cluster``), to the same bytes.
"""

from __future__ import annotations

import functools
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
from pipeline.columns import Wanted, part_pixels, settled_column, write_part
from pipeline.config import ExtractConfig, Study
from pipeline.maps import MapSource, map_source
from pipeline.needs import Need, needs
from pipeline.pool import parts_done
from pipeline.runtime import pick_device
from pipeline.targets import find_column
from pipeline.tracking import CONSOLE, progress_bar
from pipeline.viewsets import make_part, view_set_spec
from sak.teachers.model import load_teacher
from store.codecs.base import Codec, LevelSpec
from store.codecs.registry import CodecChoice
from store.column import Column
from store.spec import ViewSetSpec
from store.store import Store
from store.viewset import ViewSet

__all__ = ["extract"]


def extract(studies: Sequence[Study], /) -> None:
    """Bring the store up to what these studies need.

    Raises:
        BadImageError: A source image cannot be decoded (see ``on_error``).
        TeacherError: A teacher's weights are absent or do not fit.
        StoreError: The store is damaged or cannot be written.
    """
    seen: set[str] = set()
    with ExitStack() as stack:
        clusters = _Clusters(stack)
        for study in studies:
            store = Store.create(study.store)
            for need in needs(study):
                view_set = _view_set(store, view_set_spec(need.data, labels=need.labels))
                worked = _need(store, view_set, need, study=study, clusters=clusters)
                what = {view_set.name, *(f"{view_set.name}/{name}" for name in need.teachers)}
                if not worked and not what <= seen:
                    names = ", ".join(("views", *need.teachers))
                    CONSOLE.print(f"extract {view_set.name}: {names} are done ({study.store}), skipped")
                seen |= what


class _Clusters:
    """Dask clusters of the studies, each started once, when there is work, and ended with the stage."""

    def __init__(self, stack: ExitStack, /) -> None:
        self._stack = stack
        self._made: dict[tuple[object, ...], DaskCluster] = {}

    def of(self, study: Study) -> DaskCluster:
        """The one that a study asks for."""
        config = study.extract
        key = (config.workers, config.scheduler, config.gpu_workers, study.threads)
        if key not in self._made:
            cluster = DaskCluster(
                config.workers, scheduler=config.scheduler, gpu=config.gpu_workers, threads=study.threads
            )
            self._made[key] = self._stack.enter_context(cluster)
        return self._made[key]


def _need(store: Store, view_set: ViewSet, need: Need, *, study: Study, clusters: _Clusters) -> bool:
    """Bring a view set and its columns to done; whether anything was missing."""
    config, cluster = study.extract, clusters.of(study)
    wanted = [Wanted(study.teachers[name].spec(name), codec) for name, codec in need.teachers.items()]
    if config.engine == "dask":
        place = Place(study.store, view_set.name, view_set.spec.views, study.device, config.batch)
        return extract_over(cluster, store, view_set, data=need.data, wanted=wanted, place=place)
    if study.threads is not None:
        torch.set_num_threads(study.threads)
    worked = _views(view_set, need, config=config)
    return _columns(store, view_set, wanted, batch=config.batch, device=pick_device(study.device)) or worked


def _view_set(store: Store, spec: ViewSetSpec) -> ViewSet:
    """The view set with the views asked for: the one there is, which gets those that it lacks, or a new one."""
    before = store.view_set(spec.name).spec.views if spec.name in store.view_set_names() else spec.views
    if before < spec.views:
        new = spec.views - before
        CONSOLE.print(f"extract {spec.name}: views: {before} -> {spec.views}, {new} new ones to make")
    return store.create_view_set(spec)


def _views(view_set: ViewSet, need: Need, *, config: ExtractConfig) -> bool:
    """Make the missing parts of a view set; whether there were any.

    Raises:
        DataError: More images than are allowed cannot be used.
    """
    missing, bad_rows = view_set.missing_parts(), BadRows(view_set, need.data)
    bad_rows.check()
    if not missing:
        return False
    label = f"views {view_set.name}"
    CONSOLE.print(f"{label}: {len(missing)} of {view_set.spec.parts} shards to make")
    workers = min(config.workers, len(missing), os.cpu_count() or 1)
    with progress_bar("rows") as bar:
        rows = sum(len(view_set.spec.part_rows(part)) for part in missing)
        shown = bar.add_task(label, total=rows, note="")
        for count in parts_done(make_part, view_set, missing, data=need.data, workers=workers):
            bar.advance(shown, count)
            bad_rows.glance()
    bad = bad_rows.check()
    if bad:
        CONSOLE.print(f"{label}: {bad} rows left out; their reasons are in the index (sak store info)")
    return True


class _Writer(NamedTuple):
    source: MapSource
    column: Column
    missing: frozenset[int]


def _columns(store: Store, view_set: ViewSet, wanted: Sequence[Wanted], *, batch: int, device: torch.device) -> bool:
    """Make the missing parts of the teachers' columns; whether there were any."""
    writers = []
    for item in wanted:
        column = find_column(store, item.spec, view_set=view_set.spec, codec=item.codec)
        if column is None or column.missing_parts():
            load = functools.partial(load_teacher, device=str(device))
            source = map_source(store, item.spec, view_set=view_set, codec=item.codec, device=device, load=load)
            column = _column(store, view_set, source, codec=item.codec, batch=batch)
            writers.append(_Writer(source, column, frozenset(column.missing_parts())))
    if not writers:
        return False
    parts = sorted(frozenset[int]().union(*(writer.missing for writer in writers)))
    with progress_bar("rows") as bar:
        names = ", ".join(writer.column.spec.teacher for writer in writers)
        for stored in (writer for writer in writers if not writer.source.reads_pixels):
            CONSOLE.print(
                f"extract {stored.source.spec.name}: encoded from its exact column; the teacher is not loaded"
            )
        CONSOLE.print(f"extract {names} over {view_set.name}: {len(parts)} shards to make")
        total = sum(len(view_set.spec.part_rows(part)) * (part in w.missing) for part in parts for w in writers)
        shown = bar.add_task(f"extract {names}", total=total, note="")
        for part in parts:
            read = any(part in writer.missing and writer.source.reads_pixels for writer in writers)
            pixels = part_pixels(view_set, part, batch=batch, load=read)
            for writer in writers:
                if part in writer.missing:
                    done = functools.partial(bar.advance, shown)
                    write_part(writer.source, writer.column, part, pixels, batch=batch, done=done)
    return True


def _column(store: Store, view_set: ViewSet, source: MapSource, *, codec: CodecChoice, batch: int) -> Column:
    """The column that a teacher's parts go to, its codec fitted where it is new and needs that."""

    def fit() -> tuple[Sequence[LevelSpec], Codec]:
        levels = source.levels(view_set)
        return levels, column_codec(codec, source=source, view_set=view_set, levels=levels, batch=batch)

    return settled_column(store, Wanted(source.spec, codec), view_set=view_set.spec, fit=fit)
