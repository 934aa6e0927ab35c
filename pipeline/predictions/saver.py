"""Writes predicted maps while images are scored: a file for each task and image, whole or not there.

Legend: B batch, C channels, H W rows and columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from torch import Tensor

from pipeline.predictions.formats import encode_map, format_of, png_of
from pipeline.predictions.frame import Frame, frame_of, logits_in_image, on_canvas
from pipeline.predictions.names import relative_name
from pipeline.transforms import Array
from pipeline.views import ViewDraw
from pipeline.whole_file import write_whole
from store.viewset import ViewSet
from store.workers import processors

__all__ = ["Place", "Saver", "map_path"]

_MOST_WRITERS = 8


class Place(NamedTuple):
    """A row of a view set: its name among the files, and where its view lies in its image."""

    row: int
    name: Path
    frame: Frame


def map_path(folder: Path, place: Place, task: str, /) -> Path:
    """The file of one map."""
    return folder / task / place.name.with_name(f"{place.name.name}.png")


class Saver:
    """Encodes and writes in threads of its own, a few images behind the network; a context that ends them.

    Files that are there are left alone: they are whole, and of this network, or the folder would have been refused.

    Args:
        folder: Files are ``folder/TASK/KEY.png``.
        rows: The rows that will be added.

    Raises:
        DataError: A row's key cannot name a file; before anything is computed.
    """

    def __init__(self, folder: Path, view_set: ViewSet, /, *, tasks: Sequence[str], rows: Iterable[int]) -> None:
        self._folder, self._tasks, self._dataset = folder, tuple(tasks), view_set.spec.dataset
        self._places = {place.row: place for place in _places(view_set, rows)}
        self._absent = {row for row, place in self._places.items() if not all(p.exists() for p in self._files(place))}
        writers = min(_MOST_WRITERS, processors())
        self._pool = ThreadPoolExecutor(writers, thread_name_prefix="sak-predictions")
        self._pending: set[Future[None]] = set()
        self._most = 2 * writers

    @property
    def places(self) -> Sequence[Place]:
        """All rows, in the order of their names."""
        return sorted(self._places.values(), key=lambda place: (place.name.as_posix(), place.row))

    def absent(self, rows: Iterable[int]) -> list[int]:
        """Those of these rows that lack a file."""
        return [row for row in rows if row in self._absent]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        try:
            if error is None:
                self._settle(0)
        finally:
            self._pool.shutdown(cancel_futures=True)

    def add(self, rows: Sequence[int], logits: Mapping[str, Tensor], /) -> None:
        """Write what of these rows is absent.

        Shapes:
            logits: Task to ``(B, C, H, W)`` at the view's size.

        Raises:
            OSError: An earlier file could not be written.
        """
        for index, row in enumerate(rows):
            if row not in self._absent:
                continue
            frame = self._places[row].frame
            stored = {
                task: encode_map(task, logits_in_image(task, logits[task][index], frame=frame)) for task in self._tasks
            }
            self._settle(self._most)
            self._pending.add(self._pool.submit(self._write, self._places[row], stored))
            self._absent.discard(row)

    def _write(self, place: Place, stored: Mapping[str, Array]) -> None:
        for task, array in stored.items():
            whole = on_canvas(array, frame=place.frame, fill=format_of(task).fill)
            write_whole(map_path(self._folder, place, task), png_of(task, whole, dataset=self._dataset))

    def _settle(self, most: int) -> None:
        """Wait until at most so many images are still being written."""
        while len(self._pending) > most:
            done, self._pending = wait(self._pending, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()

    def _files(self, place: Place) -> list[Path]:
        return [map_path(self._folder, place, task) for task in self._tasks]


def _places(view_set: ViewSet, rows: Iterable[int]) -> Iterable[Place]:
    spec = view_set.spec
    for row in rows:
        part = int(spec.parts_of([row])[0])
        entry = view_set.index(part)[row - spec.part_rows(part)[0]]
        view = None if spec.views == 1 else entry.view
        yield Place(row, relative_name(entry.key, view=view), frame_of(ViewDraw.from_dict(entry.draw)))
