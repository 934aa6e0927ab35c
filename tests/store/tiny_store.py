"""A store of a few kilobytes, the same at every call: for tests that go through every byte or every operation of it.

4 images of one view, shards of 2 rows, and int8 columns of two small levels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from store.codecs.registry import make_codec, make_fitter
from store.column import Column
from store.commits import PartCommit
from store.order import image_permutation
from store.rows import ViewRow
from store.spec import ColumnSpec, LevelSpec, ViewSetSpec
from store.store import Store
from store.uses import make_use, save_use
from store.viewset import ReadOptions, ViewSet

LEVELS = (LevelSpec(components=2, height=1, width=2), LevelSpec(components=3, height=1, width=1))
CODEC = "int8"
# One thread: operations then come in the same order every time.
OPTIONS = ReadOptions(threads=1)


def view_spec(*, images: int = 4, views: int = 1, rows_per_shard: int = 2) -> ViewSetSpec:
    return ViewSetSpec(
        name="t",
        source={},
        view={},
        images=images,
        views=views,
        rows_per_shard=rows_per_shard,
        order_seed=3,
        seed=0,
        dataset="",
        tasks=(),
    )


def column_spec(teacher: str = "a") -> ColumnSpec:
    return ColumnSpec(view_set="t", teacher=teacher, identity={}, levels=LEVELS, codec=make_codec(CODEC))


def fitted_spec(teacher: str, rows: range) -> ColumnSpec:
    """A column of one level and a codec with assets, fitted to all its rows."""
    fitter = make_fitter({"name": "klt", "rows": len(rows)}, LEVELS[:1])
    feats = [np.stack([features(teacher, row, 0) for row in rows])]
    for _ in range(fitter.passes):
        fitter.add(feats)
        fitter.end_pass()
    return ColumnSpec(view_set="t", teacher=teacher, identity={}, levels=LEVELS[:1], codec=fitter.codec())


def view_row(spec: ViewSetSpec, row: int) -> ViewRow:
    image = int(image_permutation(spec.images, order_seed=spec.order_seed)[row % spec.images])
    view = row // spec.images
    return ViewRow(row=row, key=f"k{image}", view=view, files={"png": b"pixels %d of %d" % (view, image)})


def features(teacher: str, row: int, level: int) -> NDArray[np.float32]:
    """What a teacher gives for one row, ``(C, h, w)``; no two rows, levels or teachers have the same."""
    generator = np.random.default_rng((row, level, *teacher.encode()))
    return generator.normal(0, 1 + level, LEVELS[level].shape).astype(np.float32)


def expected(spec: ColumnSpec, row: int, level: int) -> dict[str, NDArray[np.generic]]:
    """Stored arrays of one row."""
    return {
        name: part[0] for name, part in spec.codec.encode(features(spec.teacher, row, level)[None], level=level).items()
    }


def write_views(store: Store, spec: ViewSetSpec) -> ViewSet:
    """Make the missing parts of a view set."""
    views = store.create_view_set(spec)
    write_view_parts(views)
    return views


def write_view_parts(views: ViewSet) -> None:
    for part in views.missing_parts():
        views.write_part(part, [view_row(views.spec, row) for row in views.spec.part_rows(part)])


def write_column(store: Store, teacher: str = "a", *, backend: str = "zarr") -> Column:
    """Make the missing parts of a column."""
    return complete(store.create_column(column_spec(teacher), backend=backend))


def complete(column: Column) -> Column:
    """Make the missing parts of a column."""
    for part in column.missing_parts():
        write_part(column, part)
    return column


def write_part(column: Column, part: int, *, stats: Mapping[str, str] | None = None) -> PartCommit:
    rows = column.view_set.spec.part_rows(part)
    feats = [
        np.stack([features(column.spec.teacher, row, level) for row in rows])
        for level in range(len(column.spec.levels))
    ]
    levels = column.spec.encode_levels(feats)
    return column.write_part(part, levels, keys=column.view_set.keys(part), stats=stats)


def fill(root: Path | str, *, backend: str = "zarr", images: int = 4) -> Store:
    """Make the whole store, or complete one that was interrupted."""
    store = Store.create(root, options=OPTIONS)
    write_views(store, view_spec(images=images))
    write_column(store, backend=backend)
    return store


def every_kind(root: Path | str) -> Store:
    """A store with a file of every kind: both backends, a fitted codec, a short last part, and a use of it all."""
    store = fill(root, images=3)
    views = store.view_set("t")
    write_column(store, "b", backend="webdataset")
    complete(store.create_column(fitted_spec("k", range(views.spec.rows))))
    save_use(store, make_use(store, experiment="e", folder="/e", items=[views, *store.columns("t")]))
    return store


def tree(root: Path) -> dict[str, str]:
    """Digest of every file but costs, which tell seconds."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and "costs" not in path.parts
    }
