"""Teacher features as training targets: from stored columns, or from live teachers behind the same interface.

This is the seam between ``store`` (numpy, knows no torch) and ``sak`` (torch, knows no store).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import Study
from pipeline.mismatch import difference, nearest
from pipeline.sampling import TeacherDraw
from sak.teachers.identity import teacher_identity
from sak.teachers.model import Teacher, load_teacher
from sak.teachers.spec import TeacherSpec
from store.codecs.registry import CodecChoice, choice_json
from store.column import Column
from store.errors import MissingColumnError, StoreError
from store.roots import open_root
from store.spec import ViewSetSpec
from store.store import Store
from store.viewset import ViewSet

__all__ = [
    "CachedTargets",
    "Encoded",
    "OnlineTargets",
    "TargetSource",
    "Targets",
    "codec_label",
    "find_column",
    "find_columns",
    "study_columns",
    "target_source",
    "teacher_specs",
]

_FINGERPRINT = "-[0-9a-f]{16}"

# teacher -> level -> part name -> tensor (B, ...): what crosses disk and PCIe
Encoded = dict[str, list[dict[str, Tensor]]]
Targets = dict[str, list[Tensor]]


class TargetSource(Protocol):
    """Where the targets of a batch come from."""

    @property
    def widths(self) -> Mapping[str, tuple[int, ...]]:
        """Teacher to the channels of its levels."""
        ...

    @property
    def columns(self) -> tuple[Column, ...]:
        """Columns that are read; none for live teachers."""
        ...

    def read(self, rows: NDArray[np.int64], /, *, step: int | None = None) -> Encoded:
        """Stored integers of these rows; called in the loader's thread. Empty when nothing is stored.

        Args:
            step: Of training, which may learn from some of the teachers only: nothing of the others is read.
        """
        ...

    def prefetch(self, parts: Mapping[int, Sequence[int]], /) -> None:
        """Parts of the view set that each of the next steps will read; returns at once."""
        ...

    def targets(self, encoded: Encoded, pixels_BCHW: Tensor, /) -> Targets:
        """Teacher to a list of float32 maps ``(B, C, h, w)`` on the device of ``pixels_BCHW`` (uint8).

        Of the teachers that ``encoded`` names; of all where it names none.
        """
        ...


class CachedTargets:
    """Targets decoded from columns; builds no teacher.

    A teacher that a step leaves out costs it no reading, copying and decoding. A shard is verified whole all the same,
    once, before the first step that draws its teacher.

    Args:
        draw: The teachers of each step of training; None for all.
    """

    def __init__(self, columns: Mapping[str, Column], *, draw: TeacherDraw | None = None) -> None:
        self._columns, self._draw = dict(columns), draw
        self._begun: dict[str, set[int]] = {}

    @property
    def widths(self) -> Mapping[str, tuple[int, ...]]:
        """Teacher to the channels of its levels, as the columns record them."""
        return {name: tuple(level.components for level in column.spec.levels) for name, column in self._columns.items()}

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns, in the order of the teachers."""
        return tuple(self._columns.values())

    def read(self, rows: NDArray[np.int64], /, *, step: int | None = None) -> Encoded:
        """Encoded parts of the rows, in their order."""
        return {
            name: [
                {part: torch.from_numpy(np.ascontiguousarray(array)) for part, array in level.items()}
                for level in self._columns[name].read(rows.tolist())
            ]
            for name in self._names(step)
        }

    def prefetch(self, parts: Mapping[int, Sequence[int]], /) -> None:
        """Begin to open and verify, in other threads, those shards of each step's teachers that were not before."""
        wanted: dict[str, set[int]] = {name: set() for name in self._columns}
        for step, found in parts.items():
            for name in self._names(step):
                wanted[name].update(found)
        for name, column in self._columns.items():
            column.prefetch(sorted(wanted[name] - self._begun.get(name, set())))
        self._begun = wanted

    def _names(self, step: int | None) -> Iterable[str]:
        return self._columns if self._draw is None or step is None else self._draw(step)

    def targets(self, encoded: Encoded, pixels_BCHW: Tensor, /) -> Targets:
        """Decode on the device, next to the loss."""
        device = pixels_BCHW.device
        return {
            name: self._columns[name].spec.decode_levels(
                {
                    index: {part: tensor.to(device, non_blocking=True) for part, tensor in level.items()}
                    for index, level in enumerate(levels)
                }
            )
            for name, levels in encoded.items()
        }


class OnlineTargets:
    """Targets computed by live teachers from the very pixels that the columns were made from.

    Args:
        draw: The teachers of each step of training; None for all.
    """

    def __init__(
        self, specs: Mapping[str, TeacherSpec], *, device: torch.device, draw: TeacherDraw | None = None
    ) -> None:
        self._draw = draw
        self._teachers: dict[str, Teacher] = {
            name: load_teacher(spec, device=str(device)) for name, spec in specs.items()
        }

    @property
    def widths(self) -> Mapping[str, tuple[int, ...]]:
        """Teacher to the channels of its levels."""
        return {name: tuple(teacher.widths) for name, teacher in self._teachers.items()}

    @property
    def columns(self) -> tuple[Column, ...]:
        """None."""
        return ()

    def read(self, rows: NDArray[np.int64], /, *, step: int | None = None) -> Encoded:
        """Nothing is stored; the names of the step's teachers where they are not all."""
        return {} if self._draw is None or step is None else {name: [] for name in self._draw(step)}

    def prefetch(self, parts: Mapping[int, Sequence[int]], /) -> None:
        """Nothing is stored."""

    def targets(self, encoded: Encoded, pixels_BCHW: Tensor, /) -> Targets:
        """Run teachers on the batch, in full precision whatever the student's autocast."""
        with torch.no_grad(), torch.autocast(pixels_BCHW.device.type, enabled=False):
            return {name: self._teachers[name](pixels_BCHW) for name in encoded or self._teachers}


def codec_label(codec: CodecChoice, /) -> str:
    """A codec in words: ``int8``, or ``fp16 (clip: True)``."""
    if isinstance(codec, str):
        return codec
    options = ", ".join(f"{name}: {value}" for name, value in codec.items() if name != "name")
    return f"{codec['name']} ({options})" if options else str(codec["name"])


def find_column(store: Store, spec: TeacherSpec, /, *, view_set: ViewSetSpec, codec: CodecChoice) -> Column | None:
    """The stored column of this very teacher, view set and codec, found by identity without building the teacher.

    It shows the views that ``view_set`` has, however many the store has.

    A codec that is fitted is found by its settings: once there is such a column, nothing is fitted again. Of several,
    which two writers can leave where no lock holds them apart, it is the first by name for everybody. Opens only
    columns of that teacher's name, so that damage elsewhere in the store is no obstacle.

    Raises:
        StoreError: No column is the one, and one that may have been is damaged.
    """
    identity, wanted = teacher_identity(spec), choice_json(codec)
    damage: StoreError | None = None
    for name in store.column_names(view_set.name):
        if not re.fullmatch(re.escape(spec.name) + _FINGERPRINT, name):
            continue
        try:
            column = store.column(view_set.name, name, views=view_set.views)
        except StoreError as error:
            damage = error
            continue
        if dict(column.spec.identity) == identity and column.spec.codec.to_json() == wanted:
            return column
    if damage is not None:
        raise damage
    return None


def find_columns(
    store: Store, specs: Sequence[TeacherSpec], /, *, view_set: ViewSetSpec, codecs: Mapping[str, CodecChoice]
) -> dict[str, Column]:
    """Complete columns of several teachers.

    Args:
        codecs: Teacher name to codec.

    Raises:
        MissingColumnError: A column is absent or incomplete; the message names it.
    """
    found: dict[str, Column] = {}
    known = view_set.name in store.view_set_names()
    for spec in specs:
        codec = codecs[spec.name]
        column = find_column(store, spec, view_set=view_set, codec=codec) if known else None
        if column is None or column.missing_parts():
            state = "absent" if column is None else f"incomplete ({len(column.missing_parts())} shards missing)"
            what = f"the {codec_label(codec)} column of teacher {spec.name} over view set {view_set.name}"
            other = _other_column(store, spec, view_set=view_set.name) if column is None and known else ""
            raise MissingColumnError(f"store {store.root.url}: {what} is {state}{other}")
        column.check_join(column.view_set)
        found[spec.name] = column
    return found


def _other_column(store: Store, spec: TeacherSpec, /, *, view_set: str) -> str:
    """How the nearest column of a teacher's name differs from what a recipe asks for; empty where there is none."""
    names = [name for name in store.column_names(view_set) if re.fullmatch(re.escape(spec.name) + _FINGERPRINT, name)]
    wanted, held = teacher_identity(spec), {name: store.column(view_set, name).spec.identity for name in names}
    if not held:
        return ""
    name = nearest(wanted, held)
    told = difference(wanted, held[name])
    return f"; {name} holds {told}" if told else f"; {name} is of another codec"


def teacher_specs(study: Study, /) -> dict[str, TeacherSpec]:
    """The teachers that a study's student learns from, by name."""
    return {name: study.teachers[name].spec(name) for name in study.student_teachers}


def study_columns(study: Study, /, *, view_set: ViewSetSpec) -> dict[str, Column]:
    """Complete columns of a study's teachers over a view set.

    Raises:
        MissingColumnError: There is no store, or as ``find_columns``.
    """
    specs = teacher_specs(study)
    codecs = {name: study.codec(name) for name in specs}
    if not open_root(study.store).exists("store.json"):
        label = ", ".join(dict.fromkeys(codec_label(codec) for codec in codecs.values()))
        what = f"the {label} columns of teachers {', '.join(specs)} over view set {view_set.name} are absent"
        raise MissingColumnError(f"store {study.store}: there is none yet, so {what}")
    return find_columns(Store.open(study.store), list(specs.values()), view_set=view_set, codecs=codecs)


def target_source(
    study: Study, view_set: ViewSet, /, *, kind: str, device: torch.device, draw: TeacherDraw | None = None
) -> TargetSource:
    """Targets of the student's teachers over a view set: stored, or (``kind="online"``) from live teachers.

    Args:
        draw: The teachers of each step of training; None for all.

    Raises:
        MissingColumnError: As ``study_columns``.
    """
    if kind == "online":
        return OnlineTargets(teacher_specs(study), device=device, draw=draw)
    return CachedTargets(study_columns(study, view_set=view_set.spec), draw=draw)
