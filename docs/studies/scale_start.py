"""What a store of ten million indexed rows costs before the first batch: ``scale_start.py make|time FOLDER``.

``make`` writes a store of that many rows: every commit record and Parquet index is there, as the program itself writes
them and with true digests. Of pixels and features only those are there that the first window of an epoch reads, which
``sak extract`` makes; the others' digests are of files that nobody has. ``time`` then measures, each in a process of
its own, what commands and a trainer do with it.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from pipeline.columns import Wanted, settled_column
from pipeline.config import Study
from pipeline.loader import Loader
from pipeline.recipes import load_recipe
from pipeline.stages.extract import extract
from pipeline.targets import find_column, study_columns
from pipeline.viewsets import cached_source, complete_views, draw_rows, view_set_spec
from store.codecs.base import LevelSpec
from store.codecs.registry import choose_codec
from store.column import Column
from store.commits import PartCommit, part_name
from store.costs import Spent, render_cost
from store.digests import ObjectDigest
from store.fingerprint import digest_bytes, digest_keys
from store.order import epoch_rows, row_samples
from store.store import Store
from store.uses import make_use, save_use
from store.viewset import ViewSet

__all__: list[str] = []

NETWORK = {"patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 2}
STEM = "vit_tiny_patch16_224"
LEVEL = LevelSpec(components=24, height=4, width=4)
WINDOW = 8  # of the loader's order
STATS = {"token_cosine": 0.999871, "image_cosine": 0.999902, "relative_error": 0.014273, "loss": 0.012345}


def recipe_of(folder: Path, *, rows: int, per_shard: int) -> Path:
    """Write the recipe: rendered scenes of 32 x 32 pixels, one small random teacher."""
    teacher = {"timm": STEM, "random": 1, "levels": [0, 1, 2, 3], "overrides": {"img_size": 32, **NETWORK}}
    source = {"name": "scenes", "split": "unlabeled", "images": rows, "size": 32}
    recipe = {
        "name": "scale",
        "out": str(folder / "out"),
        "store": str(folder / "store"),
        "device": "cpu",
        "threads": 1,
        "data": {
            "distill": {
                "source": source,
                "view": {"kind": "random_resized_crop", "size": 32, "area": [0.5, 1.0]},
                "rows_per_shard": per_shard,
            }
        },
        "teachers": {"tiny": teacher},
        "extract": {"codec": "int8", "batch": 64, "workers": 1},
        "student": {"stem": STEM, "overrides": dict(NETWORK)},
        "distill": {"steps": 1, "batch": 64},
        "track": {"tensorboard": False},
    }
    path = folder / "recipe.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def make(folder: Path, *, rows: int, per_shard: int) -> None:
    """Write the store; a second time completes it."""
    study = load_recipe(recipe_of(folder, rows=rows, per_shard=per_shard), []).runs[0].study
    assert study.data.distill is not None
    spec = view_set_spec(study.data.distill, labels=False)
    store = Store.create(study.store)
    view_set = store.create_view_set(spec)
    teacher = study.teachers["tiny"].spec("tiny")
    codec = study.codec("tiny")
    wanted = Wanted(teacher, codec)
    column = settled_column(store, wanted, view_set=spec, fit=lambda: ((LEVEL,) * 4, choose_codec(codec)))
    order = epoch_rows(spec, seed=study.seed, epoch=0, window=WINDOW)[: WINDOW * per_shard]
    first = {*np.unique(spec.parts_of(order)).tolist()}
    template = draw_rows(study.data.distill, spec, numbers=range(64))
    maker = _Maker(view_set, column, Path(study.store), template)
    start = time.perf_counter()
    for part in sorted(set(view_set.missing_parts()) - first):
        maker.part(part)
        if part % 1000 == 0:
            print(f"part {part} of {spec.parts}, {time.perf_counter() - start:.0f} s", flush=True)
    extract([study])


class _Maker:
    """Writes the index and the records of parts; digests of tars and features are of nothing."""

    def __init__(self, view_set: ViewSet, column: Column, root: Path, template: list[Any]) -> None:
        self._view_set, self._column, self._root = view_set, column, root
        self._keys = cached_source_keys(view_set)
        self._draws = [dict(row.draw) for row in template]
        self._sizes = [len(row.files["png"]) for row in template]

    def part(self, part: int) -> None:
        rows = self._view_set.spec.part_rows(part)
        where = row_samples(self._view_set.spec, rows=list(rows))
        keys = [self._keys(image) for image in where.image.tolist()]
        index = self._index(rows, keys, where.view)
        folder, name = self._view_set.folder, part_name(part)
        objects = {
            f"images/{name}.tar": ObjectDigest(sha256=digest_bytes(f"tar {part}".encode()), size=2560 * len(rows)),
            f"index/{name}.parquet": ObjectDigest(sha256=digest_bytes(index), size=len(index)),
        }
        commit = PartCommit(
            owner=folder, part=part, start=rows.start, stop=rows.stop, keys_sha256=digest_keys(keys), objects=objects
        )
        self._put(f"{folder}/index/{name}.parquet", index)
        self._records(folder, commit, Spent(0.981234))
        paths = {array.name: self._column.backend.path(array, part) for array in self._column.arrays}
        made = dataclasses.replace(
            commit,
            owner=self._column.folder,
            objects={
                path: ObjectDigest(sha256=digest_bytes(path.encode()), size=380 * len(rows)) for path in paths.values()
            },
            view_commit=commit.digest(),
            content={array: digest_bytes(f"{array} {part}".encode()) for array in paths},
            stats={f"level_{level}": STATS for level in range(4)},
        )
        self._records(self._column.folder, made, Spent(0.281234, 0.051234, 0.031234))

    def _records(self, folder: str, commit: PartCommit, spent: Spent) -> None:
        self._put(f"{folder}/costs/{part_name(commit.part)}.json", render_cost(spent))
        self._put(f"{folder}/commits/{part_name(commit.part)}.json", commit.render())

    def _put(self, relative: str, data: bytes) -> None:
        path = self._root / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def _index(self, rows: range, keys: list[str], views: np.ndarray[Any, np.dtype[np.int64]]) -> bytes:
        """As ``store.rows.render_index`` writes it, which the first read of each part would tell otherwise."""
        count = len(rows)
        digits = np.random.default_rng(rows.start).bytes(32 * count).hex()
        digests = pa.array([digits[64 * i : 64 * i + 64] for i in range(count)])
        sizes = np.resize(np.array(self._sizes, np.int64), count)
        offsets = 512 + np.concatenate([[0], np.cumsum(1536 + -(-sizes // 512) * 512)[:-1]])
        files = pa.StructArray.from_arrays(
            [pa.array(["png"] * count), pa.array(offsets), pa.array(sizes), digests],
            names=["suffix", "offset", "size", "sha256"],
        )
        draws = (self._draws * (-(-count // len(self._draws))))[:count]
        names = sorted(draws[0])
        columns = {
            "row": pa.array(np.arange(rows.start, rows.stop)),
            "key": pa.array(keys),
            "view": pa.array(views),
            "sha256": digests,
            "label": pa.nulls(count, pa.int64()),
            "error": pa.nulls(count, pa.string()),
            "files": pa.ListArray.from_arrays(pa.array(np.arange(count + 1), pa.int32()), files),
            "draw": pa.array([{name: draw[name] for name in names} for draw in draws]),
        }
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(columns), sink, compression="zstd")
        return bytes(sink.getvalue())


def cached_source_keys(view_set: ViewSet) -> Callable[[int], str]:
    """Keys of scenes, without a list of ten million of them."""
    digits = max(6, len(str(view_set.spec.images - 1)))
    return lambda image: f"unlabeled/{image:0{digits}d}"


class _Steps:
    """Seconds and growth of memory of each step of a process."""

    def __init__(self) -> None:
        self.found: list[tuple[str, float, float]] = []

    def run(self, name: str, call: Callable[[], Any]) -> Any:
        before, start = psutil.Process().memory_info().rss, time.perf_counter()
        result = call()
        seconds, grown = time.perf_counter() - start, (psutil.Process().memory_info().rss - before) / 1e6
        self.found.append((name, seconds, grown))
        print(f"{name:42s} {seconds:8.3f} s  {grown:+8.1f} MB", flush=True)
        return result


def trainer(recipe: Path) -> None:
    """What a trainer does before its first step, one by one."""
    study: Study = load_recipe(recipe, []).runs[0].study
    data = study.data.distill
    assert data is not None
    steps = _Steps()
    steps.run("source: open", lambda: cached_source(data.source))
    spec = steps.run("view_set_spec", lambda: view_set_spec(data, labels=False))
    store = steps.run("Store.open", lambda: Store.open(study.store))
    view_set = steps.run("Store.view_set", lambda: store.view_set(spec.name))
    steps.run("ViewSet.missing_parts", view_set.missing_parts)
    steps.run("ViewSet.usable_rows", view_set.usable_rows)
    teacher = study.teachers["tiny"].spec("tiny")
    column = steps.run("find_column", lambda: find_column(store, teacher, view_set=spec, codec=study.codec("tiny")))
    steps.run("Column.missing_parts", column.missing_parts)
    steps.run("Column.check_join", lambda: column.check_join(view_set))
    steps.run("complete_views", lambda: complete_views(study, data, labels=False))
    columns = steps.run("study_columns (fresh)", lambda: study_columns(study, view_set=spec))
    from pipeline.targets import CachedTargets

    targets = CachedTargets(columns)
    loader = steps.run("Loader", lambda: Loader(view_set, batch=64, seed=study.seed, targets=targets))
    steps.run("Loader.rows(0)", lambda: loader.rows(0))
    items = [view_set, *columns.values()]
    use = steps.run("make_use", lambda: make_use(store, experiment="e", folder="/e", items=items))
    steps.run("save_use", lambda: save_use(store, use))
    stream = loader.batches(0, 2)
    steps.run("first batch", lambda: next(stream))
    steps.run("second batch", lambda: next(stream))
    print(f"peak {psutil.Process().memory_info().rss / 1e6:.0f} MB now")


def commands(recipe: Path) -> None:
    """Wall time of the commands, each in its own process."""
    study = load_recipe(recipe, []).runs[0].study
    view_set = Store.open(study.store).view_set_names()[0]
    column = Store.open(study.store).column_names(view_set)[0]
    asked = [["store", "ls", study.store], ["store", "info", study.store, view_set]]
    asked += [["store", "info", study.store, column], ["extract", str(recipe)], ["distill", str(recipe)]]
    for words in [["--help"], *asked]:
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "cli", *words], capture_output=True, text=True, check=False)
        print(f"sak {' '.join(words)[:60]:60s} {time.perf_counter() - start:8.2f} s  rc {done.returncode}", flush=True)
        if done.returncode:
            print(done.stderr[-2000:])


def main() -> None:
    """Parse and do one of the two."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["make", "time", "trainer", "commands"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--per-shard", type=int, default=256)
    options = parser.parse_args()
    recipe = options.folder / "recipe.yaml"
    if options.what == "make":
        make(options.folder, rows=options.rows, per_shard=options.per_shard)
    if options.what in ("trainer", "time"):
        trainer(recipe)
    if options.what in ("commands", "time"):
        commands(recipe)


if __name__ == "__main__":
    main()
