"""What is known of a published teacher before its weights are at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sak.errors import TeacherError
from sak.teachers.spec import TeacherSpec

__all__ = ["TeacherEntry", "Weights"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Where a teacher's weights come from; exactly one, as ``TeacherSpec`` says."""

    checkpoint: Path | None = None
    pretrained: bool = False
    random: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherEntry:
    """A published network with its own preprocessing and the four depths that are its maps.

    Attributes:
        timm: timm architecture; with the tag of its weights where timm's hub has them, else without.
        levels: Four blocks, or feature stages of a pyramid; the residual stream after each, before any norm or neck.
        prefix: Class and register tokens in front of the patches; none is in a map.
        size: Side of the square input that it was trained at, or last tuned at.
        cell: Pixels a side of a cell of its finest level.
        mean, std: Statistics of 0..1 pixels that it was trained with.
        licence: SPDX identifier of the weights' licence, or its name and main restriction.
        source: Where the weights are published.
        files: Names under which they are published as a file, where others than timm publish them.
        any_size: Whether it takes the view's own size (positions are interpolated), which is then its default;
            otherwise views are resized to ``size``.
        resize: How a view becomes an input of a size, see ``TeacherSpec``; bicubic.
        overrides: What its network has other than timm's architecture of that name.
        note: What to know before trusting it.
    """

    timm: str
    levels: tuple[int, int, int, int]
    prefix: int
    size: int
    cell: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    licence: str
    source: str
    files: tuple[str, ...] = ()
    any_size: bool = True
    resize: str = "squash"
    overrides: Mapping[str, int | float | str | bool | tuple[int, int]] = field(default_factory=dict)
    note: str = ""

    @property
    def input_size(self) -> tuple[int, int] | None:
        """What it sees unless told otherwise; None for the view's own size."""
        return None if self.any_size else (self.size, self.size)

    @property
    def on_hub(self) -> bool:
        """Whether timm's hub has its weights, so that ``pretrained`` finds them."""
        return "." in self.timm

    def spec(self, name: str, /, *, weights: Weights) -> TeacherSpec:
        """The teacher under a recipe's name for it, with its own preprocessing.

        Raises:
            TeacherError: It is asked for from the hub, which does not have it; or not exactly one source is given.
        """
        if weights.pretrained and not self.on_hub:
            raise TeacherError(
                f"teacher {name!r}: pretrained: timm's hub has no weights of this network; fetch them from"
                f" {self.source} and give checkpoint: FILE"
            )
        return TeacherSpec(
            name=name,
            timm=self.timm,
            checkpoint=weights.checkpoint,
            pretrained=weights.pretrained,
            random=weights.random,
            levels=self.levels,
            input_size=self.input_size,
            resize=self.resize,
            mean=self.mean,
            std=self.std,
            # A plain dictionary, because specs travel to worker processes.
            overrides=dict(self.overrides),
        )
