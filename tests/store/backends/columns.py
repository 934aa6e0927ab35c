"""Small columns of every codec in every backend, over the view set of ``store_samples``; and a root that counts."""

from __future__ import annotations

import threading
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import store_samples
from numpy.typing import NDArray

from store.codecs.base import Codec, LevelSpec
from store.codecs.registry import is_fitted, make_codec, make_fitter
from store.column import Column
from store.local_root import LocalRoot
from store.root import Stamp, StoredFile
from store.spec import ColumnSpec
from store.store import Store
from store.viewset import ReadOptions, ViewSet

# Sizes that every codec takes.
LEVELS = (LevelSpec(components=8, height=4, width=4), LevelSpec(components=4, height=2, width=2))
ROWS, ROWS_PER_SHARD = 20, 8


def features(row: int, level: int) -> NDArray[np.float32]:
    """What the teacher gives for one row; zeros for the one without an image, as extraction stores it."""
    if store_samples.view_row(store_samples.view_spec(), row).error is not None:
        return np.zeros(LEVELS[level].shape, np.float32)
    return np.random.default_rng((row, level)).normal(0, 1 + level, LEVELS[level].shape).astype(np.float32)


def batch(rows: range, level: int) -> NDArray[np.float32]:
    return np.stack([features(row, level) for row in rows])


@cache
def codec_of(name: str) -> Codec:
    """A codec with its defaults, fitted to the rows where it needs to be."""
    if not is_fitted(name):
        return make_codec(name)
    fitter = make_fitter(name, LEVELS)
    for _ in range(fitter.passes):
        fitter.add([batch(range(ROWS), level) for level in range(len(LEVELS))])
        fitter.end_pass()
    return fitter.codec()


def fill(root: Path, *, codec: str, backend: str, threads: int = 1) -> Column:
    """A store with one complete column."""
    made = Store.create(root, options=ReadOptions(threads=threads))
    views = made.create_view_set(store_samples.view_spec())
    for part in views.missing_parts():
        views.write_part(part, [store_samples.view_row(views.spec, row) for row in views.spec.part_rows(part)])
    spec = ColumnSpec(view_set="train", teacher="dino", identity={"w": "x"}, levels=LEVELS, codec=codec_of(codec))
    column = made.create_column(spec, backend=backend)
    for part in column.missing_parts():
        column.write_part(part, encoded(spec, views.spec.part_rows(part)), keys=views.keys(part))
    return column


def encoded(spec: ColumnSpec, rows: range = range(ROWS)) -> list[dict[str, NDArray[np.generic]]]:
    return spec.encode_levels([batch(rows, level) for level in range(len(spec.levels))])


class CountingFile:
    """An open file that notes what is read from it."""

    def __init__(self, file: StoredFile, relative: str, root: CountingRoot) -> None:
        self._file, self._relative, self._root = file, relative, root

    @property
    def size(self) -> int:
        return self._file.size

    @property
    def stamp(self) -> Stamp:
        return self._file.stamp

    def read(self, offset: int, size: int, /) -> bytes:
        data = self._file.read(offset, size)
        self._root.note(self._relative, len(data))
        return data

    def digest(self) -> str:
        with self._root.guard:
            self._root.digests.append(self._relative)
        return self._file.digest()

    def close(self) -> None:
        self._file.close()


class CountingRoot:
    """A local root that counts bytes and reads by file, and digests."""

    def __init__(self, path: Path) -> None:
        self._root = LocalRoot(path)
        self.guard = threading.Lock()
        self.digests: list[str] = []
        self.reads: list[tuple[str, int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._root, name)

    def open(self, relative: str, /, *, sha256: str | None = None) -> CountingFile:
        return CountingFile(self._root.open(relative, sha256=sha256), relative, self)

    def note(self, relative: str, size: int) -> None:
        with self.guard:
            self.reads.append((relative, size))

    def take(self) -> list[tuple[str, int]]:
        """Reads since the last call, as paths and sizes."""
        with self.guard:
            taken, self.reads = self.reads, []
        return taken


def counted(path: Path, name: str, *, verify: str = "row", threads: int = 1) -> tuple[Column, CountingRoot]:
    """A column that is read through a counting root."""
    root, options = CountingRoot(path), ReadOptions(verify=verify, threads=threads)
    views = ViewSet(root, "train", options=options)
    return Column(root, name, view_set=views, options=options), root
