"""Stage ``extract``: view sets and teacher columns, each part committed on its own.

One decode of a part's pixels feeds every teacher that lacks it. What is already in the store is never redone; a
teacher is built only when some part of its column is missing.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from pipeline.bad_rows import BadRows
from pipeline.calibration import column_codec
from pipeline.columns import PartPixels, encode_part, part_pixels
from pipeline.config import ExtractConfig, Study
from pipeline.maps import MapSource, map_source
from pipeline.needs import Need, needs
from pipeline.pool import parts_done
from pipeline.runtime import pick_device
from pipeline.targets import find_column
from pipeline.tracking import CONSOLE, progress_bar
from pipeline.viewsets import make_part, view_set_spec
from sak.teachers.identity import teacher_identity
from sak.teachers.model import load_teacher
from sak.teachers.spec import TeacherSpec
from store.codecs.registry import CodecChoice
from store.column import Column
from store.spec import ColumnSpec, ViewSetSpec
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
    for study in studies:
        device, store = pick_device(study.device), Store.create(study.store)
        for need in needs(study):
            view_set = _view_set(store, view_set_spec(need.data, labels=need.labels))
            worked = _views(view_set, need, config=study.extract)
            wanted = [_Wanted(study.teachers[name].spec(name), codec) for name, codec in need.teachers.items()]
            worked |= _columns(store, view_set, wanted, batch=study.extract.batch, device=device)
            what = {view_set.name, *(f"{view_set.name}/{name}" for name in need.teachers)}
            if not worked and not what <= seen:
                names = ", ".join(("views", *need.teachers))
                CONSOLE.print(f"extract {view_set.name}: {names} are done ({study.store}), skipped")
            seen |= what


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


class _Wanted(NamedTuple):
    spec: TeacherSpec
    codec: CodecChoice


class _Writer(NamedTuple):
    source: MapSource
    column: Column
    missing: frozenset[int]


def _columns(store: Store, view_set: ViewSet, wanted: Sequence[_Wanted], *, batch: int, device: torch.device) -> bool:
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
                    _write_part(writer, view_set, part, pixels, batch=batch, done=done)
    return True


def _column(store: Store, view_set: ViewSet, source: MapSource, *, codec: CodecChoice, batch: int) -> Column:
    """The column that a teacher's parts go to: the one there is, or a new one, its codec fitted where it needs that.

    Of processes that race, the lock lets one make it. Where no lock holds, each may fit its own; all then take the
    column that ``find_column`` puts first.
    """
    find = functools.partial(find_column, store, source.spec, view_set=view_set.spec, codec=codec)
    with store.root.lock(f"columns/{view_set.name}"):
        found = find()
        # Of one that is there this clears away what writers that died left, and describes the views appended since.
        store.create_column(found.spec if found else _new_column(view_set, source, codec=codec, batch=batch))
        column = find()
        assert column is not None
        return column


def _new_column(view_set: ViewSet, source: MapSource, *, codec: CodecChoice, batch: int) -> ColumnSpec:
    levels = source.levels(view_set)
    return ColumnSpec(
        view_set=view_set.name,
        teacher=source.spec.name,
        identity=teacher_identity(source.spec),
        levels=levels,
        codec=column_codec(codec, source=source, view_set=view_set, levels=levels, batch=batch),
    )


def _write_part(
    writer: _Writer, view_set: ViewSet, part: int, shown: PartPixels, *, batch: int, done: Callable[[int], object]
) -> None:
    """Encode a teacher's maps of a part and commit them; ``done`` is told the rows of every batch."""
    made = encode_part(writer.source, writer.column.spec, shown, batch=batch, done=done)
    keys = view_set.keys(part)
    writer.column.write_part(part, made.levels, keys=keys, stats=made.stats, spent=made.spent)
