"""The part of a recipe that decides what is in a column: teachers, and how their features are extracted."""

from __future__ import annotations

import dataclasses
from dataclasses import field
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from pipeline.config_checks import positive
from sak.teachers.registry import teacher_spec
from sak.teachers.spec import TeacherSpec
from store.codecs.registry import choice_json

__all__ = ["STRICT", "CodecValue", "ExtractConfig", "Size", "TeacherConfig"]

STRICT = ConfigDict(extra="forbid")

Size: TypeAlias = int | tuple[int, int]
"""Height and width; one number for both."""

CodecValue: TypeAlias = str | dict[str, bool | int | float | str]
"""A codec: its name, or a mapping of ``name`` and options, ``{name: fp16, clip: true}``."""

# What a built-in teacher takes beside its name.
_TEACHER_CHOICES = ("resize", "normalization", "alignment", "grid", "codec")


def _pair(size: Size | None) -> tuple[int, int] | None:
    return (size, size) if isinstance(size, int) else size


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class TeacherConfig:
    """A teacher: ``builtin`` by name, or any ``timm`` model with weights from a file, the hub or a seed.

    ``grid`` is what its maps are pooled to before they are stored or compared: ``native``, 24, or [24, 32]. ``codec``
    takes the place of ``extract.codec`` for this teacher's columns.
    """

    builtin: str = ""
    timm: str = ""
    checkpoint: str | None = None
    pretrained: bool = False
    random: int | None = None
    levels: tuple[int, ...] = ()
    input_size: Size | None = None
    resize: Literal["squash", "long_side_pad"] = "squash"
    normalization: Literal["native", "reference"] = "native"
    alignment: Literal["exact", "reference"] = "exact"
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    grid: Literal["native"] | Size = "native"
    codec: CodecValue | None = None
    overrides: dict[str, int | float | str | bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.spec("teacher")
        if self.codec is not None:
            choice_json(self.codec)

    def spec(self, name: str) -> TeacherSpec:
        """The model-side description of this teacher under the recipe's name for it.

        Raises:
            ValueError: A built-in is given other options than its name, or the options contradict each other.
        """
        grid = None if self.grid == "native" else _pair(self.grid)
        if self.builtin:
            others = {
                item.name: getattr(self, item.name) for item in dataclasses.fields(self) if item.name != "builtin"
            }
            if any(value for name, value in others.items() if name not in _TEACHER_CHOICES):
                raise ValueError(f"teacher: builtin {self.builtin} is complete in itself; drop its other keys")
            spec, native = teacher_spec(self.builtin), self.normalization == "native"
            return dataclasses.replace(
                spec,
                name=name,
                resize=self.resize,
                normalization=self.normalization,
                alignment=self.alignment,
                grid=grid,
                mean=spec.mean if native else None,
                std=spec.std if native else None,
            )
        return TeacherSpec(
            name=name,
            timm=self.timm,
            checkpoint=Path(self.checkpoint) if self.checkpoint else None,
            pretrained=self.pretrained,
            random=self.random,
            levels=self.levels,
            input_size=_pair(self.input_size),
            resize=self.resize,
            mean=self.mean,
            std=self.std,
            normalization=self.normalization,
            alignment=self.alignment,
            grid=grid,
            overrides=self.overrides,
        )


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class ExtractConfig:
    """How columns are made. ``codec`` is part of a column's identity, the rest is not."""

    codec: CodecValue = "int8"
    batch: int = 32
    workers: int = 2

    def __post_init__(self) -> None:
        positive("extract", {"batch": self.batch, "workers": self.workers})
        choice_json(self.codec)
