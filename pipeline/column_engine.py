"""The engine of extraction: source → view → teacher → codec → shard, the steps side by side where that pays.

A part's pixels are decoded once for all teachers that lack it. Beside a GPU, threads decode the next batches into
page-locked memory and write the parts before; the teacher runs on a batch while the one before is encoded in a stream
of its own, measured, and copied back. On a CPU the teacher itself uses every core, and a thread that holds one makes
the others wait at each of its operations (docs/extraction.md), so there the steps take turns, each on every core, but
for writing, which mostly waits for the disk.

What is stored depends on none of this: batches are the same ones, and a part is committed when all of it is there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import NamedTuple

import torch

from pipeline.ahead import Behind, Room
from pipeline.columns import EncodedPart, SideStream, encode_part
from pipeline.maps import MapSource
from pipeline.memory import available_bytes
from pipeline.part_pixels import PartPixels, Reading, parts_pixels
from pipeline.viewsets import view_size
from store.column import Column
from store.commits import PartCommit
from store.viewset import ViewSet
from store.workers import processors

__all__ = ["Lane", "Output", "Overlap", "behind_bytes", "fill_columns", "overlap_of"]

_AHEAD_BYTES = 256 << 20
_MOST_AHEAD = 16
_MOST_THREADS = 16


class Output(NamedTuple):
    """A column to fill: where its maps come from, and its missing parts."""

    source: MapSource
    column: Column
    missing: frozenset[int]


class Overlap(NamedTuple):
    """What is done beside the teacher.

    Attributes:
        threads: That decode the images of a batch.
        ahead: Batches decoded ahead of the teacher, by a thread that leads those; 0: decoded when it is done.
        behind: Parts written, digests included, while the next is made; 0: each before the next is begun.
        pinned: Whether pixels go to page-locked memory.
    """

    threads: int
    ahead: int = 0
    behind: int = 0
    pinned: bool = False


class Lane:
    """What calls of ``fill_columns`` for one device share: one's teachers run, others read ahead or have parts written.

    Args:
        makers: How many calls may have their teachers run at once.
        leave: Called in a call's own thread when the next may begin beside it: as soon as its teachers run, where the
            next reads ahead meanwhile; else when they have run.
        overlap: In place of what pays beside the device.
    """

    def __init__(
        self, *, makers: int = 1, leave: Callable[[], object] = lambda: None, overlap: Overlap | None = None
    ) -> None:
        self.overlap, self.room = overlap, Room(times=makers)
        self._making, self._leave = threading.Semaphore(makers), leave

    @contextmanager
    def making(self, *, reads_ahead: bool) -> Iterator[None]:
        """A call's turn to run its teachers."""
        with self._making:
            if reads_ahead:
                self._leave()
            yield
        if not reads_ahead:
            self._leave()


def overlap_of(device: torch.device, /, *, batch_bytes: int) -> Overlap:
    """What is done beside a device; why, and what of it is measured, says docs/extraction.md."""
    if device.type == "cpu":
        return Overlap(threads=torch.get_num_threads(), behind=1)
    threads = min(_MOST_THREADS, processors())
    ahead = max(2, min(_MOST_AHEAD, _AHEAD_BYTES // max(1, batch_bytes)))
    return Overlap(threads=threads, ahead=ahead, behind=2, pinned=device.type == "cuda")


def behind_bytes(workers: int = 1, /) -> int:
    """Most that encoded parts may take which wait to be written: a quarter of what is free, shared by workers."""
    return available_bytes() // 4 // workers


def fill_columns(
    view_set: ViewSet,
    outputs: Sequence[Output],
    /,
    *,
    batch: int,
    advance: Callable[[str, int], object],
    finished: Callable[[str, int, PartCommit], object],
    lane: Lane | None = None,
) -> None:
    """Make the missing parts of columns over one view set, all of one device, and commit each on its own.

    Args:
        batch: Rows that a teacher sees at once.
        advance: Told the name of a teacher and the rows of each batch it is done with; in the calling thread.
        finished: Told the name of a teacher, the part and its record, once it is committed; in the calling thread.
        lane: Of all calls for this device, where there may be several at once.

    Raises:
        TeacherError: A network takes no input of this size.
        StoreError: A codec cannot represent what its teacher gives, or the store cannot be read or written.
    """
    parts = sorted(frozenset[int]().union(*(output.missing for output in outputs)))
    if not parts:
        return
    device = outputs[0].source.device
    height, width = view_size(view_set.spec)
    lane = lane or Lane()
    overlap = lane.overlap or overlap_of(device, batch_bytes=batch * 3 * height * width)
    reading = Reading(batch, threads=overlap.threads, ahead=overlap.ahead, pinned=overlap.pinned)

    def reads_pixels(part: int) -> bool:
        return any(part in output.missing and output.source.reads_pixels for output in outputs)

    side = SideStream(device)
    with (
        Behind(overlap.behind, most_bytes=behind_bytes(), room=lane.room) as behind,
        closing(parts_pixels(view_set, parts, reading=reading, wanted=reads_pixels)) as stream,
        ExitStack() as turn,
    ):
        for part, shown in zip(parts, stream, strict=True):
            if part == parts[0]:  # whose pixels are being read by now
                turn.enter_context(lane.making(reads_ahead=overlap.ahead > 0))
            for output in outputs:
                if part in output.missing:
                    _fill(output, part, shown, behind, side, _Told(advance, finished))
        del shown  # while the last parts are written, others may need its room


class _Told(NamedTuple):
    advance: Callable[[str, int], object]
    finished: Callable[[str, int, PartCommit], object]


def _fill(output: Output, part: int, shown: PartPixels, behind: Behind, side: SideStream, told: _Told) -> None:
    # A function, so that what it made is let go of before more is made.
    column = output.column
    name = column.spec.teacher

    def done(rows: int) -> None:
        told.advance(name, rows)
        behind.settle()

    made = encode_part(output.source, column.spec, shown, done=done, side=side)
    write = partial(_commit, column, part, made)
    behind.hand(write, size=made.nbytes, then=lambda commit: told.finished(name, part, commit))


def _commit(column: Column, part: int, made: EncodedPart) -> PartCommit:
    keys = column.view_set.keys(part)
    return column.write_part(part, made.levels, keys=keys, stats=made.stats, spent=made.spent)
