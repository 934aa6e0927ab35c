"""Stage ``extract``: view sets and teacher columns, each part committed on its own.

One decode of a part's pixels feeds every teacher that lacks it. What is already in the store is never redone; a
teacher is built only when some part of its column is missing.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.config import DataConfig, ExtractConfig, Study
from pipeline.errors import PipelineError
from pipeline.loader import load_samples
from pipeline.needs import Need, needs
from pipeline.runtime import pick_device
from pipeline.targets import find_column
from pipeline.tensors import to_tensors
from pipeline.tracking import CONSOLE, progress_bar
from pipeline.viewsets import end_with_parent, make_part, view_set_spec, view_size
from sak.teachers.identity import teacher_identity
from sak.teachers.model import Teacher, load_teacher
from sak.teachers.spec import TeacherSpec
from store.codecs.base import Codec
from store.codecs.registry import choose_codec
from store.column import Column
from store.spec import ColumnSpec, LevelSpec
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
            view_set = store.create_view_set(view_set_spec(need.data, labels=need.labels))
            worked = _views(store, view_set, need, config=study.extract)
            specs = [study.teachers[name].spec(name) for name in need.teachers]
            worked |= _columns(store, view_set, specs, config=study.extract, device=device)
            what = {view_set.name, *(f"{view_set.name}/{name}" for name in need.teachers)}
            if not worked and not what <= seen:
                names = ", ".join(("views", *need.teachers))
                CONSOLE.print(f"extract {view_set.name}: {names} are done ({study.store}), skipped")
            seen |= what


def _views(store: Store, view_set: ViewSet, need: Need, *, config: ExtractConfig) -> bool:
    """Make the missing parts of a view set; whether there were any."""
    missing = view_set.missing_parts()
    if not missing:
        return False
    label = f"views {view_set.name}"
    CONSOLE.print(f"{label}: {len(missing)} of {view_set.spec.parts} shards to make")
    workers = min(config.workers, len(missing), os.cpu_count() or 1)
    with progress_bar("rows") as bar:
        rows = sum(len(view_set.spec.part_rows(part)) for part in missing)
        shown = bar.add_task(label, total=rows, note="")
        for count in _parts_done(store, view_set, missing, data=need.data, workers=workers):
            bar.advance(shown, count)
    bad = view_set.spec.rows - len(view_set.usable_rows())
    if bad:
        CONSOLE.print(f"{label}: {bad} rows left out; their reasons are in the index (sak store info)")
    return True


def _parts_done(
    store: Store, view_set: ViewSet, missing: Sequence[int], *, data: DataConfig, workers: int
) -> Iterator[int]:
    root, name = str(store.root.path), view_set.name
    if workers <= 1:
        for part in missing:
            yield make_part(root, name, part, data)
        return
    # spawn: a forked child of a process that has run torch can deadlock in its thread pool.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_parent) as pool:
        with _interrupts_held():
            futures = [pool.submit(make_part, root, name, part, data) for part in missing]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise PipelineError(
                f"views {name}: a worker process was killed, most often for want of memory; lower extract.workers"
                f" (now {workers}) or rows_per_shard and rerun: finished shards are kept"
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back for a moment: a process started meanwhile inherits that, and so its parent alone answers."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Writer(NamedTuple):
    teacher: Teacher
    column: Column
    missing: frozenset[int]


def _columns(
    store: Store, view_set: ViewSet, specs: Sequence[TeacherSpec], *, config: ExtractConfig, device: torch.device
) -> bool:
    """Make the missing parts of the teachers' columns; whether there were any."""
    writers = []
    for spec in specs:
        column = find_column(store, spec, view_set=view_set.name, codec=config.codec)
        if column is None or column.missing_parts():
            writers.append(_writer(store, view_set, spec, codec=choose_codec(config.codec), device=device))
    if not writers:
        return False
    parts = sorted(frozenset[int]().union(*(writer.missing for writer in writers)))
    with progress_bar("rows") as bar:
        names = ", ".join(writer.column.spec.teacher for writer in writers)
        CONSOLE.print(f"extract {names} over {view_set.name}: {len(parts)} shards to make")
        total = sum(len(view_set.spec.part_rows(part)) * (part in w.missing) for part in parts for w in writers)
        shown = bar.add_task(f"extract {names}", total=total, note="")
        for part in parts:
            pixels = _part_pixels(view_set, part, batch=config.batch)
            for writer in writers:
                if part in writer.missing:
                    done = functools.partial(bar.advance, shown)
                    _write_part(writer, view_set, part, pixels, batch=config.batch, done=done)
    return True


def _writer(store: Store, view_set: ViewSet, spec: TeacherSpec, *, codec: Codec, device: torch.device) -> _Writer:
    teacher = load_teacher(spec, device=str(device))
    probe = torch.zeros((1, 3, *view_size(view_set.spec)), dtype=torch.uint8, device=device)  # only shapes are asked
    levels = tuple(
        LevelSpec(components=feat.shape[1], height=feat.shape[2], width=feat.shape[3])
        for feat in _features(teacher, probe)
    )
    column = store.create_column(
        ColumnSpec(
            view_set=view_set.name,
            teacher=spec.name,
            identity=teacher_identity(spec),
            levels=levels,
            codec=codec,
        )
    )
    return _Writer(teacher, column, frozenset(column.missing_parts()))


def _part_pixels(view_set: ViewSet, part: int, *, batch: int) -> Tensor:
    """Pixels of a part, (N, 3, H, W) uint8; rows without an image are black, and no reader ever asks for them."""
    rows = view_set.spec.part_rows(part)
    good = [row.row for row in view_set.index(part) if row.error is None]
    pixels = torch.zeros((len(rows), 3, *view_size(view_set.spec)), dtype=torch.uint8)
    for first in range(0, len(good), batch):
        some = good[first : first + batch]
        pixels[[row - rows.start for row in some]] = to_tensors(load_samples(view_set, some, tasks=())).pixels
    return pixels


def _features(teacher: Teacher, pixels: Tensor) -> list[Tensor]:
    with torch.inference_mode():
        return teacher.forward(pixels)


def _write_part(
    writer: _Writer, view_set: ViewSet, part: int, pixels: Tensor, *, batch: int, done: Callable[[int], None]
) -> None:
    """Run a teacher over a part and commit what it gives; ``done`` is told the rows of every batch."""
    start, spec = time.perf_counter(), writer.column.spec
    device = next(writer.teacher.parameters()).device
    encoded = _Encoded(spec, rows=len(pixels))
    fidelity = [_Fidelity() for _ in spec.levels]
    for first in range(0, len(pixels), batch):
        chunk = pixels[first : first + batch]
        for level, feat in enumerate(_features(writer.teacher, chunk.to(device))):
            parts = spec.encode(feat, level=level)
            fidelity[level].add(feat, spec.decode(parts, level=level))
            encoded.put(parts, level=level, first=first)
        done(len(chunk))
    writer.column.write_part(
        part,
        encoded.levels,
        keys=view_set.keys(part),
        stats={f"level_{index}": item.result() for index, item in enumerate(fidelity)},
        seconds=time.perf_counter() - start,
    )


class _Encoded:
    """Stored arrays of a part, allocated once and filled batch by batch: a part of a large teacher takes gigabytes."""

    def __init__(self, spec: ColumnSpec, *, rows: int) -> None:
        self.levels = [
            {name: np.empty((rows, *item.shape), item.dtype) for name, item in spec.codec.parts(level).items()}
            for level in spec.levels
        ]

    def put(self, parts: Mapping[str, Tensor], *, level: int, first: int) -> None:
        """Copy the encoded parts of a batch to their rows, ``first`` and on."""
        for name, value in parts.items():
            rows = torch.from_numpy(self.levels[level][name])[first : first + len(value)]
            # copy_ would broadcast and convert, and the store could no longer tell.
            assert (rows.shape, rows.dtype) == (value.shape, value.dtype)
            rows.copy_(value)


class _Fidelity:
    """Mean token cosine and relative error between features and what their codec gives back."""

    def __init__(self) -> None:
        self._cosine = self._tokens = 0.0
        self._error = self._power = 0.0

    def add(self, feat_NCHW: Tensor, back_NCHW: Tensor) -> None:
        """Accumulate one batch."""
        cosine = torch.nn.functional.cosine_similarity(feat_NCHW, back_NCHW, dim=1)
        self._cosine += float(cosine.double().sum())
        self._tokens += cosine.numel()
        self._error += float((feat_NCHW - back_NCHW).double().square().sum())
        self._power += float(feat_NCHW.double().square().sum())

    def result(self) -> dict[str, float]:
        """``cosine`` over tokens and ``relative_error`` = ‖error‖ / ‖features‖, rounded to what is meaningful."""
        error = (self._error / self._power) ** 0.5 if self._power else 0.0
        return {"cosine": round(self._cosine / self._tokens, 7), "relative_error": round(error, 7)}
