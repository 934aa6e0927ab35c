"""Rows a second of the store's read engines, in turn, from a store of random features made in a temporary folder."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

import store
from store.codecs.registry import make_codec
from store.rows import ViewRow
from store.spec import ColumnSpec, LevelSpec, ViewSetSpec
from store.viewset import ReadOptions

__all__: list[str] = []

ROWS, PER_SHARD, BATCH, BATCHES, ROUNDS = 512, 128, 32, 8, 7
ENGINES = ("direct", "zarrs", "zarr")
LEVEL = LevelSpec(components=384, height=14, width=14)


def fill(root: Path) -> str:
    """Four int8 levels of 384 x 14 x 14 random features, as of a small ViT; returns the column's name."""
    views = ViewSetSpec(
        name="made", source={}, view={}, images=ROWS, views=1, rows_per_shard=PER_SHARD,
        order_seed=0, seed=0, dataset="", tasks=(),
    )  # fmt: skip
    made = store.create(root)
    view_set = made.create_view_set(views)
    spec = ColumnSpec(view_set="made", teacher="vit", identity={}, levels=(LEVEL,) * 4, codec=make_codec("int8"))
    column = made.create_column(spec)
    draws = np.random.default_rng(0)
    for part in range(views.parts):
        rows = [ViewRow(row=row, key=f"k{row}", view=0, files={"png": b"-"}) for row in views.part_rows(part)]
        view_set.write_part(part, rows)
        features = draws.normal(size=(len(rows), *LEVEL.shape)).astype(np.float32)
        column.write_part(
            part, [spec.encode(features, level=level) for level in range(4)], keys=[row.key for row in rows]
        )
    return column.name


def measure(root: Path, name: str) -> None:
    """Print rows a second of each round, engine after engine, then medians and their ratios."""
    columns = {engine: store.open(root, options=ReadOptions(engine=engine)).column("made", name) for engine in ENGINES}
    for column in columns.values():
        column.read(range(ROWS))  # opens and verifies every shard, and fills the page cache
    draws = np.random.default_rng(1)
    rates: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    for _ in range(ROUNDS):
        batches = [draws.choice(ROWS, BATCH, replace=False) for _ in range(BATCHES)]
        for engine, column in columns.items():
            start = time.perf_counter()
            for rows in batches:
                column.read(rows)
            rates[engine].append(BATCH * BATCHES / (time.perf_counter() - start))
        print("  ".join(f"{engine} {rates[engine][-1]:7.0f}" for engine in ENGINES))
    medians = {engine: statistics.median(values) for engine, values in rates.items()}
    for engine, median in medians.items():
        print(f"{engine}: median {median:.0f} rows/s; direct is {medians['direct'] / median:.1f} times that")


def main() -> None:
    """Fill, then measure."""
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), fill(Path(folder)))


if __name__ == "__main__":
    main()
