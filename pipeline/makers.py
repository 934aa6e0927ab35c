"""What of a store a recipe can make again: its view sets, from their images, and its columns, from stored pixels."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pipeline.config import DataConfig, Study
from pipeline.errors import EXPECTED
from pipeline.maps import LiveMaps
from pipeline.needs import needs
from pipeline.runtime import pick_device
from pipeline.viewsets import view_set_spec
from sak.teachers.identity import teacher_identity
from sak.teachers.model import load_teacher
from sak.teachers.spec import TeacherSpec
from store.codecs.registry import CodecChoice, choice_json
from store.column import Column
from store.spec import ViewSetSpec

__all__ = ["Makers", "TeacherMaker", "ViewMaker", "makers_of"]


class ViewMaker(NamedTuple):
    """A view set of a recipe, and how its rows are made."""

    spec: ViewSetSpec
    data: DataConfig
    workers: int
    threads: int | None


class TeacherMaker(NamedTuple):
    """A teacher of a recipe with the codec of its columns; not built yet.

    Attributes:
        fits: Whether batches that memory does not hold are cut.
        threads: Torch's, as extraction has them; None for torch's own choice.
    """

    spec: TeacherSpec
    identity: Mapping[str, Any]
    codec: CodecChoice
    batch: int
    device: str
    fits: bool
    threads: int | None

    def load(self) -> LiveMaps:
        """Build it.

        Raises:
            TeacherError: Its weights are absent or do not fit.
        """
        return LiveMaps(load_teacher(self.spec, device=str(pick_device(self.device))), fits=self.fits)


class Makers(NamedTuple):
    """What a recipe can make.

    Attributes:
        faults: What its configuration names and this machine lacks: images, weights.
    """

    views: tuple[ViewMaker, ...]
    teachers: tuple[TeacherMaker, ...]
    faults: tuple[str, ...]

    def of_views(self, name: str, /) -> ViewMaker | None:
        """What makes a view set, however many views it has."""
        return next((maker for maker in self.views if maker.spec.name == name), None)

    def of_column(self, column: Column, /) -> TeacherMaker | None:
        """What makes the parts of a column, over whichever view set it is."""
        identity, codec = dict(column.spec.identity), column.spec.codec.to_json()
        for maker in self.teachers:
            if maker.identity == identity and choice_json(maker.codec) == codec:
                return maker
        return None

    def named(self, column: str, /) -> list[TeacherMaker]:
        """What may have made a column of which only the name is left."""
        pattern = "{}-[0-9a-f]{{16}}"
        return [maker for maker in self.teachers if re.fullmatch(pattern.format(re.escape(maker.spec.name)), column)]

    def lack(self, what: str, /) -> str:
        """Why something cannot be made, with what this machine lacks."""
        return "; ".join([f"no {what} of the recipe makes it", *self.faults])


def makers_of(studies: Sequence[Study], /) -> Makers:
    """Everything that these studies can make; opens sources and reads weights files, and builds no teacher."""
    views: dict[str, ViewMaker] = {}
    teachers: list[TeacherMaker] = []
    faults: dict[str, None] = {}
    for study in studies:
        choices = [(name, study.codec(name)) for name in study.teachers]
        for need in needs(study):
            choices += need.teachers.items()
            try:
                spec = view_set_spec(need.data, labels=need.labels)
            except EXPECTED as error:
                faults[f"data.{need.purpose}: {error}"] = None
            else:
                known = views.get(spec.name)
                if known is None or known.spec.views < spec.views:
                    views[spec.name] = ViewMaker(spec, need.data, study.extract.workers, study.threads)
        for name, codec in choices:
            teacher = study.teachers[name].spec(name)
            try:
                identity = teacher_identity(teacher)
            except EXPECTED as error:
                faults[f"teachers.{name}: {error}"] = None
                continue
            config = study.extract
            maker = TeacherMaker(
                teacher, identity, codec, config.batch_rows, study.device, config.batch == "auto", study.threads
            )
            teachers += [maker] * (maker not in teachers)
    return Makers(tuple(views.values()), tuple(teachers), tuple(faults))
