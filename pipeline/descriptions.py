"""The files that describe a view set or column, written again from what else tells the same.

Of a column's description nothing need be believed: its folder is named for a digest of all that matters in it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from pipeline.calibration import column_codec
from pipeline.errors import PipelineError
from pipeline.makers import Makers, TeacherMaker
from pipeline.maps import MapSource
from pipeline.runtime import torch_threads
from store.backends.base import Backend
from store.backends.registry import BACKENDS, backend_of
from store.commits import CommitLog
from store.document import render_document
from store.errors import StoreError
from store.fingerprint import digest_bytes
from store.layout import column_files, level_arrays, load_column, load_record
from store.root import Root
from store.spec import ColumnSpec, ViewSetSpec
from store.store import Store
from store.viewset import ViewSet

__all__ = ["Load", "is_describable", "write_column_description", "write_view_set_description"]

Load = Callable[[TeacherMaker], MapSource]


def write_view_set_description(store: Store, spec: ViewSetSpec, /) -> None:
    """Write ``view_set.json`` anew, for at least as many views as its parts have.

    Raises:
        StoreError: The disk is full or fails.
    """
    folder = f"views/{spec.name}"
    last = max(_numbers(store.root, folder), default=0)
    spec = spec.with_views(max(spec.views, last // spec.parts_per_view + 1))
    with store.root.lock(folder):
        store.root.write_atomic(f"{folder}/view_set.json", render_document("view_set", spec.to_json()), replace=True)


def is_describable(store: Store, view_set: str, column: str, /, *, makers: Makers) -> bool:
    """Whether there is anything to write a column's description from."""
    return bool(makers.named(column)) or next(_told(store, view_set, column), None) is not None


def write_column_description(store: Store, view_set: str, column: str, /, *, makers: Makers, load: Load) -> None:
    """Write those files anew that describe a column and are not what they should be, ``column.json`` last.

    A fitted codec's arrays are fitted again, and taken if they come out as they were: the column's name tells.

    Args:
        load: Builds a teacher; called only where neither the column itself nor one of the same name tells enough.

    Raises:
        PipelineError: They do not come out as they were.
        StoreError: The disk is full or fails.
    """
    views = store.view_set(view_set)
    folder = f"columns/{view_set}/{column}"
    spec = next(_told(store, view_set, column), None) or _made(views, column, makers, load)
    files = column_files(spec, views.spec, backend=_backend(store.root, folder, spec))
    with store.root.lock(folder):
        for relative, data in files.items():
            path = f"{folder}/{relative}"
            if store.root.stamp(path) is None or store.root.digest(path) != digest_bytes(data):
                store.root.write_atomic(path, data, replace=True)


def _told(store: Store, view_set: str, column: str) -> Iterator[ColumnSpec]:
    """What the column says of itself, or a column of the same name over another view set of it."""
    others = [name for name in store.view_set_names() if name != view_set and column in store.column_names(name)]
    for name in [view_set, *others]:
        try:
            spec = load_column(store.root, f"columns/{name}/{column}").spec
        except StoreError:
            continue
        yield dataclasses.replace(spec, view_set=view_set)


def _made(views: ViewSet, column: str, makers: Makers, load: Load) -> ColumnSpec:
    """What a teacher of the recipe gives: the shapes of its maps, and the codec fitted to them."""
    for maker in makers.named(column):
        with torch_threads(maker.threads):
            source = load(maker)
            levels = source.levels(views)
            codec = column_codec(maker.codec, source=source, view_set=views, levels=levels, batch=maker.batch)
        spec = ColumnSpec(
            view_set=views.name, teacher=maker.spec.name, identity=maker.identity, levels=levels, codec=codec
        )
        if spec.name == column:
            return spec
    raise PipelineError(
        f"columns/{views.name}/{column}: its description cannot be made alone: no teacher and codec of the recipe give"
        " a column of this name, and a codec that is fitted again here may come out as another; restore the damaged"
        " file from a copy, or remove the folder: sak extract then makes the column anew, under a new name"
    )


def _backend(root: Root, folder: str, spec: ColumnSpec) -> Backend:
    """How the column is stored: as its record says, or as what its parts list shows."""
    try:
        return load_record(root, folder).backend
    except StoreError:
        pass
    files = root.files(folder)
    for backend in BACKENDS.values():
        for part in _numbers(root, folder):
            if any(f"{folder}/{backend.path(array, part)}" in files for array in level_arrays(spec)):
                return backend
    return backend_of("zarr", where=folder)


def _numbers(root: Root, folder: str) -> list[int]:
    """Numbers of the parts that have records."""
    return [part for name in root.names(f"{folder}/commits") if (part := CommitLog.number(name)) is not None]
