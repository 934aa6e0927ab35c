"""The rows that every contender holds: made once, kept in a store of ours, with a digest of every array of every row.

N is rows, C components, H and W the token grid.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.bench.contender import BenchError
from pipeline.bench.features import FeatureMaker
from pipeline.bench.plan import BenchPlan, Source
from pipeline.calibration import Replay, fit_codecs
from pipeline.tracking import progress_bar
from store.codecs.base import Codec, PartSpec
from store.codecs.registry import choose_codec, is_fitted, make_fitter
from store.column import Column
from store.rows import ViewRow
from store.spec import ColumnSpec, ViewSetSpec
from store.store import Store
from store.viewset import ReadOptions

__all__ = ["VIEW_SET", "Held", "array_bytes", "digest", "hold"]

VIEW_SET = "bench"
# The default of a recipe.
_ROWS_PER_SHARD = 256
_CHUNK = 16
Row = dict[str, Any]


class _Feed(NamedTuple):
    """Where a column's rows come from: its spec, and encoded levels of rows counted from 0."""

    spec: ColumnSpec
    encoded: Callable[[Sequence[int]], list[Mapping[str, NDArray[np.generic]]]]


class Held:
    """Rows in a store of ours, and what they must be wherever they are held.

    ``fields`` are the stored arrays of a row by name, ``maps`` the decoded ones.
    """

    def __init__(self, root: Path, columns: Sequence[str], *, rows: int, digests: list[dict[str, bytes]]) -> None:
        self.root = root
        self.names = tuple(columns)
        self.rows = rows
        self._columns = self.open()
        self.view_set = self._columns[0].view_set.spec
        self.fields = {
            field_name(index, array.level, array.part, many=len(columns) > 1): array.spec
            for index, column in enumerate(self._columns)
            for array in column.arrays
        }
        self.levels = {
            field_name(index, level, "values", many=len(columns) > 1): shape
            for index, column in enumerate(self._columns)
            for level, shape in enumerate(column.spec.levels)
        }
        self._digests = {"stored": digests}

    def open(self, options: ReadOptions | None = None) -> list[Column]:
        """The columns, freshly opened."""
        store = Store.open(self.root, options=options or ReadOptions(threads=1))
        return [store.column(VIEW_SET, name) for name in self.names]

    @property
    def codec(self) -> Codec:
        """The columns' codec."""
        return self._columns[0].spec.codec

    @property
    def row_bytes(self) -> int:
        """Bytes of a row's stored arrays before any byte codec: what a reader hands over."""
        return sum(spec.row_bytes for spec in self.fields.values())

    @property
    def values(self) -> int:
        """Feature values of a row."""
        return sum(shape.values for shape in self.levels.values())

    def shapes(self, fidelity: str, /) -> dict[str, PartSpec]:
        """Array name to shape and type of a row as held at a fidelity.

        Raises:
            BenchError: The fidelity is unknown.
        """
        if fidelity == "stored":
            return dict(self.fields)
        if fidelity not in ("fp16", "bf16"):
            raise BenchError(f"fidelity: expected stored, fp16 or bf16, got {fidelity!r}")
        dtype = "float16" if fidelity == "fp16" else "bfloat16"
        return {name: PartSpec(shape=shape.shape, dtype=dtype) for name, shape in self.levels.items()}

    def iterate(self, fidelity: str, /) -> Iterator[tuple[int, Row]]:
        """Every row in order, as held at a fidelity: NumPy arrays, or torch tensors for bf16, which NumPy lacks."""
        keep = fidelity not in self._digests
        found = []
        for rows in _chunks(range(self.rows)):
            arrays = join(self._columns, [column.read(rows) for column in self._columns])
            held = arrays if fidelity == "stored" else self._floats(arrays, fidelity)
            for position, row in enumerate(rows):
                one = {name: array[position] for name, array in held.items()}
                if keep:
                    found.append({name: digest(array) for name, array in one.items()})
                yield row, one
        if keep:
            self._digests[fidelity] = found

    def digests(self, fidelity: str, /) -> Sequence[Mapping[str, bytes]]:
        """Of each row, array name to digest; ``iterate`` of that fidelity comes first."""
        return self._digests[fidelity]

    def _floats(self, arrays: Mapping[str, NDArray[np.generic]], fidelity: str) -> dict[str, Any]:
        held: dict[str, Any] = {}
        for index, column in enumerate(self._columns):
            names = {
                (array.level, array.part): field_name(index, array.level, array.part, many=len(self._columns) > 1)
                for array in column.arrays
            }
            parts: dict[int, dict[str, NDArray[np.generic]]] = {}
            for (level, part), name in names.items():
                parts.setdefault(level, {})[part] = arrays[name]
            for level, feat_NCHW in enumerate(column.spec.decode_levels(parts)):
                half = feat_NCHW.astype(np.float16) if fidelity == "fp16" else torch.from_numpy(feat_NCHW).bfloat16()
                held[names[level, "values"]] = half
        return held


def field_name(column: int, level: int, part: str, *, many: bool) -> str:
    """``level_0``, ``level_0_scale``; with several columns ``teacher_0_level_0``."""
    tail = "" if part == "values" else f"_{part}"
    return f"teacher_{column}_level_{level}{tail}" if many else f"level_{level}{tail}"


def join(
    columns: Sequence[Column], read: Sequence[Sequence[Mapping[str, NDArray[np.generic]]]]
) -> dict[str, NDArray[np.generic]]:
    """What ``Column.read`` gave for each column, as one mapping of fields."""
    return {
        field_name(index, level, part, many=len(columns) > 1): array
        for index, levels in enumerate(read)
        for level, parts in enumerate(levels)
        for part, array in parts.items()
    }


def array_bytes(array: Any, /) -> bytes:
    """Little-endian bytes of an array or tensor."""
    if 0 in array.shape:
        return b""
    if isinstance(array, torch.Tensor):
        array = array.contiguous().view(torch.uint8).numpy()
    return np.ascontiguousarray(array).tobytes()


def digest(array: Any, /) -> bytes:
    """SHA-256 of an array's bytes."""
    return hashlib.sha256(array_bytes(array)).digest()


def hold(plan: BenchPlan, root: Path, /) -> Held:
    """Make the rows, or copy them from a column, into a new store at ``root``; shows progress.

    Raises:
        StoreError: The disk is full, or there is no such column.
        BenchError: The column holds fewer than two batches.
    """
    feeds, rows = _copied(plan, plan.source) if plan.source else (_made(plan), plan.rows)
    store = Store.create(root)
    views = store.create_view_set(_view_set(rows))
    for part in range(views.spec.parts):
        views.write_part(part, [_view_row(row) for row in views.spec.part_rows(part)])
    digests: list[dict[str, bytes]] = [{} for _ in range(rows)]
    names = []
    with progress_bar("rows") as bar:
        shown = bar.add_task("make rows", total=rows * len(feeds))
        for index, feed in enumerate(feeds):
            column = store.create_column(feed.spec)
            names.append(column.name)
            for part in range(views.spec.parts):
                chunks = []
                for chunk in _chunks(views.spec.part_rows(part)):
                    chunks.append(feed.encoded(chunk))
                    _note(digests, index, chunk, chunks[-1], many=len(feeds) > 1)
                    bar.advance(shown, len(chunk))
                column.write_part(part, _joined(chunks), keys=[f"{row:09d}" for row in views.spec.part_rows(part)])
    return Held(root, names, rows=rows, digests=digests)


def _chunks(rows: range) -> list[range]:
    return [range(first, min(first + _CHUNK, rows.stop)) for first in range(rows.start, rows.stop, _CHUNK)]


def _joined(
    chunks: Sequence[Sequence[Mapping[str, NDArray[np.generic]]]],
) -> list[dict[str, NDArray[np.generic]]]:
    return [
        {name: np.concatenate([chunk[level][name] for chunk in chunks]) for name in parts}
        for level, parts in enumerate(chunks[0])
    ]


def _note(
    digests: list[dict[str, bytes]],
    column: int,
    rows: range,
    levels: Sequence[Mapping[str, NDArray[np.generic]]],
    *,
    many: bool,
) -> None:
    for level, parts in enumerate(levels):
        for part, array in parts.items():
            for row, one in zip(rows, array, strict=True):
                digests[row][field_name(column, level, part, many=many)] = digest(one)


def _made(plan: BenchPlan) -> list[_Feed]:
    return [_made_feed(plan, teacher) for teacher in range(plan.columns)]


def _made_feed(plan: BenchPlan, teacher: int) -> _Feed:
    maker = FeatureMaker(plan.levels, seed=plan.seed, teacher=teacher)
    codec = _codec(plan, maker)
    spec = ColumnSpec(
        view_set=VIEW_SET, teacher=f"made{teacher}", identity={"seed": plan.seed}, levels=plan.levels, codec=codec
    )
    return _Feed(spec, lambda rows: [*spec.encode_levels(maker.rows(list(rows)))])


def _codec(plan: BenchPlan, maker: FeatureMaker) -> Codec:
    if not is_fitted(plan.codec):
        return choose_codec(plan.codec)
    fitter = make_fitter(plan.codec, plan.levels)
    chunks = _chunks(range(min(fitter.rows, plan.rows)))
    sample = Replay(len(chunks), make=lambda index: [torch.from_numpy(feat) for feat in maker.rows(chunks[index])])
    with progress_bar("rows") as bar:
        shown = bar.add_task("fit codec", total=fitter.passes * sum(map(len, chunks)))
        (codec,) = fit_codecs([fitter], sample, done=lambda count: bar.advance(shown, count))
    return codec


def _copied(plan: BenchPlan, source: Source) -> tuple[list[_Feed], int]:
    column = Store.open(source.store).column(source.view_set, source.column)
    spec = column.view_set.spec
    rows = [row for part in column.committed_parts() for row in spec.part_rows(part)][: plan.rows]
    if len(rows) < 2 * plan.batch:
        raise BenchError(
            f"{column.folder}: expected at least two batches of {plan.batch} committed rows, found {len(rows)}; "
            "lower the batch or extract more"
        )
    found = column.spec
    copy = ColumnSpec(
        view_set=VIEW_SET, teacher=found.teacher, identity=found.identity, levels=found.levels, codec=found.codec
    )
    return [_Feed(copy, lambda wanted: [*column.read([rows[row] for row in wanted])])], len(rows)


def _view_set(rows: int) -> ViewSetSpec:
    return ViewSetSpec(
        name=VIEW_SET,
        source={},
        view={},
        images=rows,
        views=1,
        rows_per_shard=_ROWS_PER_SHARD,
        order_seed=0,
        seed=0,
        dataset="",
        tasks=(),
    )


def _view_row(row: int) -> ViewRow:
    # The benchmark reads no images; a view set's rows must have one all the same.
    return ViewRow(row=row, key=f"{row:09d}", view=0, files={"png": b"-"})
