"""Making columns: the column that a teacher's maps go to, and each part of it, encoded, with the error this causes.

Legend: N rows, H W rows and columns of an image.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.calibration import in_batches
from pipeline.clock import Clock
from pipeline.features import decode_maps, encode_maps, load_pixels
from pipeline.fidelity import Fidelity
from pipeline.maps import MapSource
from pipeline.targets import find_column
from pipeline.viewsets import view_size
from sak.teachers.identity import teacher_identity
from sak.teachers.spec import TeacherSpec
from store.codecs.base import Codec, LevelSpec
from store.codecs.registry import CodecChoice
from store.column import Column
from store.commits import PartCommit
from store.costs import Spent
from store.spec import ColumnSpec, ViewSetSpec
from store.store import Store
from store.viewset import ViewSet

__all__ = [
    "EncodedPart",
    "PartPixels",
    "Wanted",
    "encode_part",
    "part_pixels",
    "settled_column",
    "write_part",
]


class Wanted(NamedTuple):
    """A column that is asked for over some view set."""

    spec: TeacherSpec
    codec: CodecChoice


class PartPixels(NamedTuple):
    """A part's rows, pixels ``(N, 3, H, W)`` uint8, and which rows ``(N,)`` have an image; the others are black."""

    rows: range
    pixels: Tensor
    usable: Tensor


class EncodedPart(NamedTuple):
    """What ``Column.write_part`` takes: stored arrays of each level, the measured error of each, and the time spent."""

    levels: list[dict[str, NDArray[np.generic]]]
    stats: dict[str, dict[str, float]]
    spent: Spent


def settled_column(
    store: Store, wanted: Wanted, /, *, view_set: ViewSetSpec, fit: Callable[[], tuple[Sequence[LevelSpec], Codec]]
) -> Column:
    """The column that a teacher's parts go to: the one there is, or a new one.

    Of processes that race, the lock lets one make it. Where no lock holds, each may fit its own; all then take the
    column that ``find_column`` puts first.

    Args:
        fit: Shapes of the maps, and the codec fitted to them; called where there is no such column.

    Raises:
        StoreError: The store is damaged or cannot be written.
    """
    find = functools.partial(find_column, store, wanted.spec, view_set=view_set, codec=wanted.codec)
    with store.root.lock(f"columns/{view_set.name}"):
        found = find()
        # Of one that is there this clears away what writers that died left, and describes the views appended since.
        store.create_column(found.spec if found else _new_column(wanted, view_set.name, *fit()))
        column = find()
        assert column is not None
        return column


def _new_column(wanted: Wanted, view_set: str, levels: Sequence[LevelSpec], codec: Codec) -> ColumnSpec:
    return ColumnSpec(
        view_set=view_set,
        teacher=wanted.spec.name,
        identity=teacher_identity(wanted.spec),
        levels=tuple(levels),
        codec=codec,
    )


def part_pixels(view_set: ViewSet, part: int, /, *, batch: int, load: bool = True) -> PartPixels:
    """Pixels of a part; no reader ever asks for a row without an image.

    Args:
        load: Whether anyone will look at them; if not, they are all black.

    Raises:
        StoreError: The part is not committed, or its bytes have changed.
    """
    rows = view_set.spec.part_rows(part)
    good = [row.row for row in view_set.index(part) if row.error is None]
    pixels = torch.zeros((len(rows), 3, *view_size(view_set.spec)), dtype=torch.uint8)
    usable = torch.zeros(len(rows), dtype=torch.bool)
    usable[[row - rows.start for row in good]] = True
    for some in in_batches(good, batch) if load else ():
        pixels[[row - rows.start for row in some]] = load_pixels(view_set, some)
    return PartPixels(rows, pixels, usable)


def encode_part(
    source: MapSource, spec: ColumnSpec, shown: PartPixels, /, *, batch: int, done: Callable[[int], object]
) -> EncodedPart:
    """Encode a teacher's maps of a part; ``done`` is told the rows of every batch.

    Raises:
        TeacherError: The network takes no input of this size.
        StoreError: The codec cannot represent what it gives.
    """
    start, clock = time.perf_counter(), Clock(source.device)
    encoded = _Encoded(spec, rows=len(shown.pixels))
    fidelity = [Fidelity() for _ in spec.levels]
    for first in range(0, len(shown.pixels), batch):
        chunk, usable = shown.pixels[first : first + batch], shown.usable[first : first + batch].to(source.device)
        feats = source.maps(shown.rows[first : first + batch], chunk)
        parts = clock.run("encode", functools.partial(encode_maps, spec, feats))
        decoded = clock.run("decode", functools.partial(decode_maps, spec, parts))
        for item, feat, back in zip(fidelity, feats, decoded, strict=True):
            item.add(feat[usable], back[usable])
        encoded.put(parts, first=first)
        done(len(chunk))
    measured = {f"level_{index}": item.result() for index, item in enumerate(fidelity)}
    stats = {name: found._asdict() for name, found in measured.items() if found}
    spent = Spent(time.perf_counter() - start, clock.seconds("encode"), clock.seconds("decode"))
    return EncodedPart(encoded.levels, stats, spent)


def write_part(
    source: MapSource, column: Column, part: int, shown: PartPixels, /, *, batch: int, done: Callable[[int], object]
) -> PartCommit:
    """Encode a teacher's maps of a part and commit them; ``done`` is told the rows of every batch.

    Raises:
        TeacherError: As ``encode_part``.
        StoreError: As ``encode_part``, or the store cannot be written.
    """
    made = encode_part(source, column.spec, shown, batch=batch, done=done)
    keys = column.view_set.keys(part)
    return column.write_part(part, made.levels, keys=keys, stats=made.stats, spent=made.spent)


class _Encoded:
    """Stored arrays of a part, allocated once and filled batch by batch: a part of a large teacher takes gigabytes."""

    def __init__(self, spec: ColumnSpec, *, rows: int) -> None:
        self.levels = [
            {name: np.empty((rows, *item.shape), item.dtype) for name, item in parts.items()}
            for parts in (spec.codec.parts(level, index=index) for index, level in enumerate(spec.levels))
        ]

    def put(self, levels: Sequence[Mapping[str, Tensor]], *, first: int) -> None:
        """Copy the encoded parts of a batch to their rows, ``first`` and on."""
        for held, parts in zip(self.levels, levels, strict=True):
            for name, value in parts.items():
                rows = torch.from_numpy(held[name])[first : first + len(value)]
                # copy_ would broadcast and convert, and the store could no longer tell.
                assert (rows.shape, rows.dtype) == (value.shape, value.dtype)
                rows.copy_(value)
