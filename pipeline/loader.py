"""Joins images, labels and encoded targets by row, ahead of the training step where that pays.

The order of rows is a pure function of (seed, step): training resumed at step ``s`` sees what an uninterrupted run saw.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import DataError
from pipeline.images.sample import ImageSample
from pipeline.live_views import LiveViews
from pipeline.pixels import decode_sample
from pipeline.targets import Encoded, TargetSource
from pipeline.tensors import to_tensors
from store.order import EpochOrder
from store.viewset import ViewSet

__all__ = ["Batch", "Loader", "load_samples", "loader_bytes"]

_AHEAD = 4
_KEEP_BYTES = 1 << 30
_WINDOW = 8
_ANNOUNCED = 32


class Batch(NamedTuple):
    """One step's data, on the training device.

    Shapes:
        pixels: ``(B, 3, H, W)`` uint8.
        labels: task to ``(B, 1, H, W)`` float32, ``(B, 3, H, W)`` for normals.
        encoded: teacher to levels to parts, still as stored.
    """

    step: int
    rows: NDArray[np.int64]
    pixels: Tensor
    labels: dict[str, Tensor]
    encoded: Encoded


def load_samples(view_set: ViewSet | LiveViews, rows: Sequence[int], /, *, tasks: Sequence[str]) -> list[ImageSample]:
    """Decode (or draw) rows of a view set, in the order asked for."""
    if isinstance(view_set, LiveViews):
        assert not tasks, "live views have no labels"
        return view_set.load(rows)
    return [decode_sample(row.files, key=row.key, tasks=tasks) for row in view_set.read_rows(rows)]


def loader_bytes(rows: int, /, *, batch: int, image: int, encoded: int, accelerator: bool) -> int:
    """Memory that a loader takes at most: samples kept decoded, and the batches on their way.

    Args:
        rows: Of the view set.
        image: Bytes of a decoded image with its labels.
        encoded: Bytes of a row's targets as stored, unpacked.
        accelerator: Whether batches are read ahead of the step.
    """
    batches = _AHEAD + 2 if accelerator else 1  # one in the making, and one in use
    return min(_KEEP_BYTES, rows * image) + batches * batch * (image + encoded)


@dataclass(slots=True)
class _Samples:
    """Decoded samples kept in memory up to a bound, because small sets are read many times; live views are not."""

    view_set: ViewSet | LiveViews
    tasks: tuple[str, ...]
    kept: dict[int, ImageSample]
    nbytes: int = 0

    def get(self, rows: Sequence[int]) -> list[ImageSample]:
        absent = [row for row in rows if row not in self.kept]
        fresh = dict(zip(absent, load_samples(self.view_set, absent, tasks=self.tasks), strict=True)) if absent else {}
        for row, sample in fresh.items():
            size = sample.image.nbytes + sum(label.nbytes for label in sample.labels.values())
            if self.nbytes + size <= _KEEP_BYTES and isinstance(self.view_set, ViewSet):
                self.kept[row] = sample
                self.nbytes += size
        return [fresh[row] if row in fresh else self.kept[row] for row in rows]


class Loader:
    """Batches of a view set and any targets over it.

    Args:
        view_set: Complete view set, or one that is drawn as it is read.
        batch: Rows a step.
        seed: Of the order.
        tasks: Label maps to decode; empty for none.
        targets: Where encoded targets are read; ``None`` when the loss needs none.

    Raises:
        DataError: Fewer usable rows than one batch.
    """

    def __init__(
        self,
        view_set: ViewSet | LiveViews,
        *,
        batch: int,
        seed: int,
        tasks: tuple[str, ...] = (),
        targets: TargetSource | None = None,
        device: torch.device | None = None,
    ) -> None:
        self._view_set, self._targets, self._batch, self._seed = view_set, targets, batch, seed
        self._device = device or torch.device("cpu")
        self._samples = _Samples(view_set, tasks, {})
        self._unusable = view_set.unusable_rows()
        self._number, self._cycle = 0, self._order(0)
        self._announced: set[int] = set()
        lost = np.bincount(self._unusable // view_set.spec.images, minlength=view_set.spec.views)
        fewest = view_set.spec.images - int(lost.max())  # of all views: cycles are equally long
        self.steps_per_cycle = fewest // batch
        if self.steps_per_cycle == 0:
            raise DataError(
                f"view set {view_set.name}: {fewest} usable rows of a view are fewer than one batch of {batch};"
                " lower the batch or add images"
            )

    def rows(self, step: int, /) -> NDArray[np.int64]:
        """Rows of a step: a pure function of (seed, step). One cycle visits every row of one view at most once."""
        cycle, index = divmod(step, self.steps_per_cycle)
        if self._number != cycle:
            self._number, self._cycle = cycle, self._order(cycle)
            self._announced.clear()
        return self._cycle.rows(index * self._batch, (index + 1) * self._batch)

    def _order(self, cycle: int) -> EpochOrder:
        spec, unusable = self._view_set.spec, self._unusable
        return EpochOrder(spec, seed=self._seed, epoch=cycle, window=_WINDOW, leave_out=unusable)

    def batches(self, start: int, stop: int, /, *, ahead: int | None = None) -> Generator[Batch, None, None]:
        """Batches of steps ``start`` to ``stop - 1``.

        Args:
            ahead: How many batches a thread reads ahead; its errors are raised here, and closing the generator ends
                it. 0 reads each batch when it is asked for. ``None`` takes 4 beside an accelerator and 0 on a CPU,
                where the step itself uses every core: there a reader thread doubled the step (60 to 125 ms on 2
                cores, docs/studies/cpu_loader.md), because torch's threads wait for each other at every operation.
        """
        if ahead is None:
            ahead = 0 if self._device.type == "cpu" else _AHEAD
        if ahead:
            yield from self._read_ahead(start, stop, ahead=ahead)
        else:
            for step in range(start, stop):
                yield self._to_device(self._read(step))

    def _read_ahead(self, start: int, stop: int, *, ahead: int) -> Generator[Batch, None, None]:
        ready: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=ahead)
        closed = threading.Event()

        def put(item: Batch | BaseException) -> None:
            while not closed.is_set():
                try:
                    return ready.put(item, timeout=0.1)
                except queue.Full:
                    continue
            return None

        def work() -> None:
            try:
                for step in range(start, stop):
                    if closed.is_set():
                        return
                    self._announce(step)
                    put(self._read(step))
            except BaseException as error:
                put(error)

        thread = threading.Thread(target=work, name="sak-loader", daemon=True)
        thread.start()
        try:
            for _ in range(start, stop):
                item = ready.get()
                if isinstance(item, BaseException):
                    raise item
                yield self._to_device(item)
        finally:
            closed.set()
            thread.join()

    def _announce(self, step: int) -> None:
        """Have the shards of the next steps of this cycle opened by other threads, each once, before they are read."""
        if self._targets is None:
            return
        self.rows(step)
        first = step % self.steps_per_cycle * self._batch
        soon = self._cycle.rows(first, first + _ANNOUNCED * self._batch)
        parts = np.unique(self._view_set.spec.parts_of(soon)).tolist()
        self._targets.prefetch([part for part in parts if part not in self._announced])
        self._announced.update(parts)

    def _read(self, step: int) -> Batch:
        rows = self.rows(step)
        pixels, labels = to_tensors(self._samples.get(rows.tolist()))
        encoded = self._targets.read(rows, step=step) if self._targets else {}
        batch = Batch(step, rows, pixels, labels, encoded)
        return _pinned(batch) if self._device.type == "cuda" else batch

    def _to_device(self, batch: Batch) -> Batch:
        labels = {task: label.to(self._device, non_blocking=True) for task, label in batch.labels.items()}
        return batch._replace(pixels=batch.pixels.to(self._device, non_blocking=True), labels=labels)


def _pinned(batch: Batch) -> Batch:
    """A batch in page-locked memory: only from there are copies to the device asynchronous."""
    encoded = {
        name: [{part: tensor.pin_memory() for part, tensor in level.items()} for level in levels]
        for name, levels in batch.encoded.items()
    }
    labels = {task: label.pin_memory() for task, label in batch.labels.items()}
    return batch._replace(pixels=batch.pixels.pin_memory(), labels=labels, encoded=encoded)
