"""Making columns: the column that a teacher's maps go to, and each part of it, encoded, with the error this causes.

Legend: N rows, H W rows and columns of an image.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.clock import Clock
from pipeline.features import Parts, decode_maps, encode_maps
from pipeline.fidelity import Fidelity
from pipeline.maps import MapSource
from pipeline.part_pixels import PartPixels
from pipeline.targets import find_column
from sak.teachers.identity import teacher_identity
from sak.teachers.spec import TeacherSpec
from store.codecs.base import Codec, LevelSpec
from store.codecs.registry import CodecChoice
from store.column import Column
from store.costs import Spent
from store.crossings import counted
from store.spec import ColumnSpec, ViewSetSpec
from store.store import Store

__all__ = ["MEASURED_SHARE", "EncodedPart", "SideStream", "Wanted", "encode_part", "measured_rows", "settled_column"]

MEASURED_SHARE = 8
"""Of so many rows the error of one is measured."""
_LEAST_MEASURED = 8


class Wanted(NamedTuple):
    """A column that is asked for over some view set."""

    spec: TeacherSpec
    codec: CodecChoice


class EncodedPart(NamedTuple):
    """What ``Column.write_part`` takes: stored arrays of each level, the measured error of each, and what it took."""

    levels: list[dict[str, NDArray[np.generic]]]
    stats: dict[str, dict[str, float]]
    spent: Spent

    @property
    def nbytes(self) -> int:
        """Memory that the arrays take."""
        return sum(array.nbytes for level in self.levels for array in level.values())


class SideStream:
    """Where a GPU encodes a batch while the teacher runs on the next; on a CPU nothing but the order of calls."""

    def __init__(self, device: torch.device, /) -> None:
        self.is_gpu = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self.is_gpu else None  # type: ignore[no-untyped-call]

    def mark(self) -> torch.cuda.Event | None:
        """The present end of the current stream's work."""
        return torch.cuda.current_stream(self._stream.device).record_event() if self._stream else None

    @contextmanager
    def after(self, mark: torch.cuda.Event | None, /) -> Iterator[None]:
        """Work that needs what was done before a mark; all of it is done at the end."""
        if self._stream is None or mark is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(mark)
            yield
            self._stream.synchronize()


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


def measured_rows(usable_N: Tensor, /) -> list[int]:
    """Positions in a part of the rows whose error is measured: of those with an image, one in eight, evenly spread.

    At least eight, and all where there are no more. To measure every row takes 2 to 8 % of a ViT-S's time.
    """
    found: list[int] = usable_N.nonzero().flatten().tolist()
    count = min(len(found), max(_LEAST_MEASURED, len(found) // MEASURED_SHARE))
    return [found[index * len(found) // count] for index in range(count)]


def encode_part(
    source: MapSource,
    spec: ColumnSpec,
    shown: PartPixels,
    /,
    *,
    done: Callable[[int], object],
    side: SideStream | None = None,
) -> EncodedPart:
    """Encode a teacher's maps of a part; ``done`` is told the rows of every batch.

    Raises:
        TeacherError: The network takes no input of this size.
        StoreError: The codec cannot represent what it gives, or the pixels cannot be read.
    """
    side = side or SideStream(source.device)
    encoder = _Encoder(source, spec, shown, side)
    waiting: _Maps | None = None
    for pixels in shown.batches:
        maps = encoder.run(pixels)
        # A batch is encoded when the GPU already has the next one to run on: what waits for results does not starve it.
        ready, waiting = (waiting, maps) if side.is_gpu else (maps, None)
        if ready is not None:
            done(encoder.encode(ready))
    if waiting is not None:
        done(encoder.encode(waiting))
    return encoder.result()


class _Maps(NamedTuple):
    """A teacher's maps of a batch whose first row is at ``first`` of the part, there once ``mark`` is reached."""

    first: int
    feats: list[Tensor]
    mark: torch.cuda.Event | None


class _Encoder:
    """One part of one column in the making."""

    def __init__(self, source: MapSource, spec: ColumnSpec, shown: PartPixels, side: SideStream, /) -> None:
        self._start, self._clock = time.perf_counter(), Clock(source.device)
        self._source, self._spec, self._shown, self._side = source, spec, shown, side
        self._measured = measured_rows(shown.usable)
        self._encoded = _Encoded(spec, rows=len(shown.rows))
        self._fidelity = [Fidelity() for _ in spec.levels]
        self._first = self._read_bytes = self._to_device = self._to_host = 0

    def run(self, pixels_N3HW: Tensor) -> _Maps:
        """The teacher's maps of the next batch; a GPU may still be at it when this returns."""
        first, device = self._first, self._source.device
        self._first += len(pixels_N3HW)
        rows = self._shown.rows[first : self._first]
        if self._source.reads_pixels and pixels_N3HW.device != device:
            there = self._clock.run("copy", lambda: pixels_N3HW.to(device, non_blocking=True))
            self._to_device += there.nbytes
            pixels_N3HW = there
        with counted() as crossed:
            feats = self._clock.run("forward", lambda: self._source.maps(rows, pixels_N3HW))
        self._read_bytes += crossed.read
        if self._side.is_gpu and not self._source.reads_pixels:  # then it is maps that were copied there
            self._to_device += sum(feat.nbytes for feat in feats)
        return _Maps(first, feats, self._side.mark())

    def encode(self, maps: _Maps) -> int:
        """Encode a batch and measure some of it; returns its rows."""
        with self._side.after(maps.mark):
            parts = self._clock.run("encode", lambda: encode_maps(self._spec, maps.feats))
            self._measure(maps, parts)
            there = [{name: value.to("cpu", non_blocking=True) for name, value in level.items()} for level in parts]
        if self._side.is_gpu:
            self._to_host += sum(value.nbytes for level in there for value in level.values())
        self._encoded.put(there, first=maps.first)
        return len(maps.feats[0])

    def _measure(self, maps: _Maps, parts: Parts) -> None:
        stop = maps.first + len(maps.feats[0])
        at = [row - maps.first for row in self._measured if maps.first <= row < stop]
        if not at:
            return
        whole, index = len(at) == len(maps.feats[0]), torch.tensor(at, device=maps.feats[0].device)
        some = parts if whole else [{name: value[index] for name, value in level.items()} for level in parts]
        decoded = self._clock.run("decode", lambda: decode_maps(self._spec, some))
        feats = maps.feats if whole else [feat[index] for feat in maps.feats]

        def compare() -> None:
            for item, feat, back in zip(self._fidelity, feats, decoded, strict=True):
                item.add(feat, back)

        self._clock.run("measure", compare)

    def result(self) -> EncodedPart:
        """The part, once all batches are encoded."""
        measured = {f"level_{index}": item.result() for index, item in enumerate(self._fidelity)}
        stats = {name: found._asdict() for name, found in measured.items() if found}
        seconds = self._clock.seconds
        spent = Spent(
            encode=seconds("encode"),
            decode=seconds("decode"),
            copy=seconds("copy"),
            forward=seconds("forward"),
            measure=seconds("measure"),
            total=time.perf_counter() - self._start,
            decoded_rows=len(self._measured),
            read_bytes=self._read_bytes,
            device_bytes=self._to_device,
            host_bytes=self._to_host,
        )
        return EncodedPart(self._encoded.levels, stats, spent.plus(self._shown.batches.spent()))


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
