"""A small store, the same at every call: one view of 20 images, two of them unreadable, shards of 8 rows."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from store.codecs.registry import make_codec
from store.column import Column
from store.costs import Spent
from store.order import image_permutation
from store.root import _host as root_host
from store.rows import ViewRow
from store.spec import ColumnSpec, LevelSpec, ViewSetSpec
from store.store import Store
from store.viewset import ReadOptions

LEVELS = (
    LevelSpec(components=6, height=3, width=4),
    LevelSpec(components=5, height=2, width=2),
)


def view_spec(**changes: object) -> ViewSetSpec:
    fields: dict[str, object] = {
        "name": "train",
        "source": {"kind": "scenes", "count": 10},
        "view": {"kind": "random_resized_crop", "size": [32, 32]},
        "images": 20,
        "views": 1,
        "rows_per_shard": 8,
        "order_seed": 7,
        "seed": 11,
        "dataset": "scenes",
        "tasks": ("semseg", "depth"),
    }
    return ViewSetSpec(**{**fields, **changes})  # type: ignore[arg-type]


def column_spec(codec: str = "int8", teacher: str = "dino") -> ColumnSpec:
    return ColumnSpec(
        view_set="train",
        teacher=teacher,
        identity={"weights": "ab" * 32, "size": (32, 32), "blocks": [2, 5]},
        levels=LEVELS,
        codec=make_codec(codec),
    )


def view_row(spec: ViewSetSpec, row: int) -> ViewRow:
    image = int(image_permutation(spec.images, order_seed=spec.order_seed)[row % spec.images])
    view = row // spec.images
    if row % 10 == 8:
        return ViewRow(row=row, key=f"img/{image:03d}", view=view, files={}, error="broken JPEG: img/003.jpg")
    files = {name: _content(row, name) for name in ("png", "semseg.png", "normals.npy")}
    draw = {"top": row, "scale": row / 7, "flip": row % 2 == 0, "mode": "bicubic"}
    return ViewRow(row=row, key=f"img/{image:03d}", view=view, files=files, draw=draw, label=image % 3)


def features(row: int, level: int) -> NDArray[np.float32]:
    """What the teacher gives for one row, ``(C, h, w)``."""
    if row % 10 == 4:
        return np.zeros(LEVELS[level].shape, np.float32)
    generator = np.random.default_rng((row, level))
    return generator.normal(0, 1 + level, LEVELS[level].shape).astype(np.float32)


def encoded(spec: ColumnSpec, rows: range) -> list[dict[str, NDArray[np.generic]]]:
    return [
        spec.codec.encode(np.stack([features(row, level) for row in rows]), level=level)
        for level in range(len(spec.levels))
    ]


def fill(root: Path, codec: str = "int8", options: ReadOptions | None = None) -> Column:
    """Make the whole store, or complete one that was interrupted."""
    made = Store.create(root, options=options)
    views = made.create_view_set(view_spec())
    for part in views.missing_parts():
        views.write_part(part, [view_row(views.spec, row) for row in views.spec.part_rows(part)], spent=Spent(0.5))
    column = made.create_column(column_spec(codec))
    for part in column.missing_parts():
        write_column_part(column, part)
    return column


def write_column_part(column: Column, part: int) -> None:
    rows = column.view_set.spec.part_rows(part)
    stats = {"level_0": {"cosine": 0.5 + part, "relative_error": 0.25}}
    column.write_part(
        part, encoded(column.spec, rows), keys=column.view_set.keys(part), stats=stats, spent=Spent(1.5 + part)
    )


def tree(root: Path) -> dict[str, str]:
    """Digest of every file but costs."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and "costs" not in path.parts
    }


def _content(row: int, name: str) -> bytes:
    return np.random.default_rng((row, len(name))).bytes(600 + row)


def host() -> str:
    return root_host()
