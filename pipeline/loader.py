"""Joins images, labels and encoded targets by row, ahead of the training step where that pays.

The order of rows is a pure function of (seed, step): training resumed at step ``s`` sees what an uninterrupted run saw,
on however many ranks. Threads only read; which rows, and in what order, is decided in the consumer's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import LoaderConfig
from pipeline.errors import DataError
from pipeline.images.sample import ImageSample
from pipeline.live_views import CroppedViews, FreshViews, LiveViews
from pipeline.pixels import decode_sample
from pipeline.readahead import Ahead, read_ahead
from pipeline.split import Split
from pipeline.targets import Encoded, TargetSource
from pipeline.tensors import to_tensors
from sak.draws import Share
from store.crossings import Crossings, counted
from store.order import EpochOrder
from store.viewset import ViewSet
from store.workers import processors

__all__ = ["Batch", "Loader", "default_ahead", "load_samples", "loader_bytes"]

_AHEAD_BYTES = 2 << 30
_READERS = 4
_KEEP_BYTES = 1 << 30
_WINDOW = 8
_ANNOUNCED = 32


class Batch(NamedTuple):
    """One step's data, or a micro-batch of it, on the training device.

    Attributes:
        share: Where in the step's rows these are; ``None`` where they are all of them.
        watched: Whether the step is recorded, so that losses measure what else is wanted of it.

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
    share: Share | None = None
    watched: bool = False


def load_samples(view_set: ViewSet | LiveViews, rows: Sequence[int], /, *, tasks: Sequence[str]) -> list[ImageSample]:
    """Decode (or draw) rows of a view set, in the order asked for."""
    if isinstance(view_set, FreshViews):
        return view_set.load(rows, tasks=tasks)
    if isinstance(view_set, CroppedViews):
        assert not tasks, "crops of stored views have no labels"
        return view_set.load(rows)
    return [decode_sample(row.files, key=row.key, tasks=tasks) for row in view_set.read_rows(rows)]


def loader_bytes(rows: int, /, *, batch: int, image: int, encoded: int, ahead: Ahead) -> int:
    """Memory that a loader takes at most: samples kept decoded, and the batches on their way.

    Args:
        rows: Of the view set.
        image: Bytes of a decoded image with its labels.
        encoded: Bytes of a row's targets as stored, unpacked.
        ahead: How much is read ahead of the step.
    """
    batches = 1 + (ahead.readers if ahead.nbytes else 0)  # one in use, and those in the making
    return min(_KEEP_BYTES, rows * image) + ahead.nbytes + batches * batch * (image + encoded)


@dataclass(slots=True)
class _Samples:
    """Decoded samples kept in memory up to a bound, because small sets are read many times; live views are not."""

    view_set: ViewSet | LiveViews
    tasks: tuple[str, ...]
    kept: dict[int, ImageSample]
    nbytes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, rows: Sequence[int]) -> list[ImageSample]:
        absent = [row for row in rows if row not in self.kept]
        fresh = dict(zip(absent, load_samples(self.view_set, absent, tasks=self.tasks), strict=True)) if absent else {}
        with self.lock:
            for row, sample in fresh.items():
                size = sample.image.nbytes + sum(label.nbytes for label in sample.labels.values())
                kept = row in self.kept or not isinstance(self.view_set, ViewSet)
                if not kept and self.nbytes + size <= _KEEP_BYTES:
                    self.kept[row] = sample
                    self.nbytes += size
        return [fresh[row] if row in fresh else self.kept[row] for row in rows]


class _Job(NamedTuple):
    step: int
    rows: NDArray[np.int64]
    share: Share | None


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
        self._soon: dict[int, list[int]] = {}
        self._crossings = Crossings()
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
        return self._cycle.rows(index * self._batch, (index + 1) * self._batch)

    @property
    def read_bytes(self) -> int:
        """Bytes read from the store so far, those ahead of the step included; nothing that is kept is read again."""
        return self._crossings.read

    def _order(self, cycle: int) -> EpochOrder:
        spec, unusable = self._view_set.spec, self._unusable
        return EpochOrder(spec, seed=self._seed, epoch=cycle, window=_WINDOW, leave_out=unusable)

    def batches(
        self, start: int, stop: int, /, *, split: Split | None = None, loading: LoaderConfig | None = None
    ) -> Generator[Batch, None, None]:
        """Batches of steps ``start`` to ``stop - 1``: of each step its micro-batches, one after another.

        Args:
            split: How a step's rows are shared out, of which this rank's part is read; ``None`` for one whole batch.
            loading: How much threads read ahead; their errors are raised here, and closing the generator ends them.
                By default that is nothing on a CPU, where the step itself uses every core: there a reader thread
                doubled the step (60 to 125 ms on 2 cores, docs/studies/cpu_loader.md), because torch's threads wait
                for each other at every operation.
        """
        ahead = (loading or LoaderConfig()).ahead(default_ahead(), on_cpu=self._device.type == "cpu")
        assert split is None or split.batch == self._batch
        jobs = self._jobs(start, stop, split=split, announce=ahead.nbytes > 0)
        copies = _Copies(self._device)
        for batch in read_ahead(jobs, self._read, size=_nbytes, ahead=ahead):
            yield copies.move(batch)

    def _jobs(self, start: int, stop: int, *, split: Split | None, announce: bool) -> Iterator[_Job]:
        for step in range(start, stop):
            rows = self.rows(step)
            if announce:
                self._announce(step)
            if split is None or split.whole:
                yield _Job(step, rows, None)
                continue
            for share in split.shares():
                yield _Job(step, rows[share.start : share.start + split.micro], share)

    def _announce(self, step: int) -> None:
        """Have the shards of the next steps of this cycle opened by other threads before they are read."""
        if self._targets is None:
            return
        end = (step // self.steps_per_cycle + 1) * self.steps_per_cycle
        self._soon = {
            later: self._soon[later] if later in self._soon else self._parts(later)
            for later in range(step, min(step + _ANNOUNCED, end))
        }
        with counted(self._crossings):
            self._targets.prefetch(self._soon)

    def _parts(self, step: int) -> list[int]:
        found: list[int] = np.unique(self._view_set.spec.parts_of(self.rows(step))).tolist()
        return found

    def _read(self, job: _Job) -> Batch:
        with counted(self._crossings):
            pixels, labels = to_tensors(self._samples.get(job.rows.tolist()))
            encoded = self._targets.read(job.rows, step=job.step) if self._targets else {}
        batch = Batch(job.step, job.rows, pixels, labels, encoded, job.share)
        # Only from page-locked memory are copies to the device asynchronous.
        return _mapped(batch, Tensor.pin_memory) if self._device.type == "cuda" else batch


def default_ahead() -> Ahead:
    """What is read ahead beside an accelerator: readers as cores allow, when every GPU of a machine has a process."""
    cores = processors() // max(1, torch.cuda.device_count())
    return Ahead(_AHEAD_BYTES, readers=max(1, min(_READERS, cores - 1)))


class _Copies:
    """Copies to the device; on a GPU in a stream of their own, beside the step before."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        make: Callable[..., torch.cuda.Stream] = torch.cuda.Stream
        self._stream = make(device) if device.type == "cuda" else None

    def move(self, batch: Batch) -> Batch:
        """The batch on the device; work queued from here on waits for its copy, the host does not."""
        if self._stream is None:
            return _mapped(batch, lambda tensor: tensor.to(self._device))
        with torch.cuda.stream(self._stream):
            moved = _mapped(batch, lambda tensor: tensor.to(self._device, non_blocking=True))
        compute = torch.cuda.current_stream(self._device)
        compute.wait_stream(self._stream)

        def used(tensor: Tensor) -> Tensor:
            tensor.record_stream(compute)  # its memory is given to no other copy while the step still reads it
            return tensor

        return _mapped(moved, used)


def _mapped(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """A batch with every tensor changed."""
    encoded = {
        name: [{part: change(tensor) for part, tensor in level.items()} for level in levels]
        for name, levels in batch.encoded.items()
    }
    labels = {task: change(label) for task, label in batch.labels.items()}
    return batch._replace(pixels=change(batch.pixels), labels=labels, encoded=encoded)


def _nbytes(batch: Batch) -> int:
    """Of all tensors of a batch."""
    levels = [level for levels in batch.encoded.values() for level in levels]
    tensors = [batch.pixels, *batch.labels.values(), *(tensor for level in levels for tensor in level.values())]
    return sum(tensor.nbytes for tensor in tensors)
