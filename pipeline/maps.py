"""Where the maps of a new column come from: a teacher that runs, or a column that holds its maps exactly.

An exact column is worth a teacher: every other codec's column is then made without loading one.

Legend: N rows, H W rows and columns of an image, C h w of a map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from pipeline.features import device_of, load_pixels, probe_levels, run_teacher
from pipeline.memory import Fitting
from pipeline.targets import find_column
from pipeline.viewsets import view_size
from sak.teachers.model import Teacher
from sak.teachers.spec import TeacherSpec
from store.codecs.base import LevelSpec
from store.codecs.registry import CodecChoice, choice_json
from store.column import Column
from store.store import Store
from store.viewset import ViewSet

__all__ = ["EXACT", "LiveMaps", "MapSource", "StoredMaps", "exact_column", "exact_maps", "map_source"]

EXACT = "fp32"
"""The codec that loses nothing."""


class MapSource(Protocol):
    """One teacher's maps of the rows of a view set."""

    @property
    def spec(self) -> TeacherSpec:
        """Whose maps they are."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the maps are."""
        ...

    @property
    def reads_pixels(self) -> bool:
        """Whether ``maps`` looks at pixels at all."""
        ...

    def levels(self, view_set: ViewSet, /) -> tuple[LevelSpec, ...]:
        """Shapes of the maps."""
        ...

    def maps(self, rows: Sequence[int], pixels_N3HW: Tensor, /) -> list[Tensor]:
        """Float32 ``(N, C, h, w)`` of each level."""
        ...

    def sample(self, view_set: ViewSet, rows: Sequence[int], /) -> list[Tensor]:
        """``maps`` of usable rows, with the pixels read here where they are needed."""
        ...


class LiveMaps:
    """Maps of a teacher that runs.

    Args:
        fits: Whether batches that memory does not hold are cut, and not refused.
    """

    reads_pixels = True

    def __init__(self, teacher: Teacher, *, fits: bool = False) -> None:
        self._teacher = teacher
        self._fitting = Fitting(teacher.spec.name) if fits else None

    @property
    def spec(self) -> TeacherSpec:
        """The teacher's."""
        return self._teacher.spec

    @property
    def device(self) -> torch.device:
        """The teacher's."""
        return device_of(self._teacher)

    def levels(self, view_set: ViewSet, /) -> tuple[LevelSpec, ...]:
        """Found by running the teacher once.

        Raises:
            TeacherError: The network takes no input of the views' size.
        """
        return probe_levels(self._teacher, size=view_size(view_set.spec))

    def maps(self, rows: Sequence[int], pixels_N3HW: Tensor, /) -> list[Tensor]:
        """The teacher, run on the pixels."""
        if self._fitting is None:
            return run_teacher(self._teacher, pixels_N3HW)
        there = pixels_N3HW.to(self.device)
        return self._fitting.run(there, lambda some: run_teacher(self._teacher, there[some]))

    def sample(self, view_set: ViewSet, rows: Sequence[int], /) -> list[Tensor]:
        """The teacher, run on the rows' pixels."""
        return self.maps(rows, load_pixels(view_set, rows))


class StoredMaps:
    """Maps read from a column whose codec loses nothing."""

    reads_pixels = False

    def __init__(self, column: Column, spec: TeacherSpec, *, device: torch.device) -> None:
        self.column, self._spec, self._device = column, spec, device

    @property
    def spec(self) -> TeacherSpec:
        """That of the teacher which the column was made with."""
        return self._spec

    @property
    def device(self) -> torch.device:
        """The one asked for."""
        return self._device

    def levels(self, view_set: ViewSet, /) -> tuple[LevelSpec, ...]:
        """As the column records them."""
        return self.column.spec.levels

    def maps(self, rows: Sequence[int], pixels_N3HW: Tensor, /) -> list[Tensor]:
        """The stored maps; the pixels are not looked at."""
        return [torch.from_numpy(feat).to(self._device) for feat in self.column.read_floats(rows)]

    def sample(self, view_set: ViewSet, rows: Sequence[int], /) -> list[Tensor]:
        """The stored maps."""
        return self.maps(rows, torch.empty(0))


def exact_maps(
    store: Store, spec: TeacherSpec, /, *, codec: CodecChoice, view_set: ViewSet, device: torch.device
) -> StoredMaps | None:
    """The exact column of this very teacher and view set, where there is one and another codec is asked for.

    Raises:
        StoreError: A column that may have been the one is damaged.
    """
    if choice_json(codec)["name"] == EXACT:
        return None
    exact = find_column(store, spec, view_set=view_set.spec, codec=EXACT)
    return None if exact is None else StoredMaps(exact, spec, device=device)


def map_source(
    store: Store,
    spec: TeacherSpec,
    /,
    *,
    view_set: ViewSet,
    codec: CodecChoice,
    device: torch.device,
    live: Callable[[TeacherSpec], MapSource],
) -> MapSource:
    """A complete exact column of this very teacher and view set where there is one, else ``live``, the teacher.

    Raises:
        TeacherError: The teacher's weights are absent or do not fit.
        StoreError: A column that may have been the exact one is damaged.
    """
    exact = exact_column(store, spec, view_set=view_set, codec=codec)
    return live(spec) if exact is None else StoredMaps(exact, spec, device=device)


def exact_column(store: Store, spec: TeacherSpec, /, *, view_set: ViewSet, codec: CodecChoice) -> Column | None:
    """A complete exact column of this very teacher and view set, to make a column of another codec from.

    Raises:
        StoreError: A column that may have been the exact one is damaged, or was made from other images.
    """
    exact = exact_maps(store, spec, codec=codec, view_set=view_set, device=torch.device("cpu"))
    if exact is None or exact.column.missing_parts():
        return None
    exact.column.check_join(view_set)
    return exact.column
