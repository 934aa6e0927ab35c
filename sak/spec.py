"""Frozen descriptions of networks; builders turn them into modules."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sak.errors import SakError

__all__ = ["HEADS", "NOISES", "PATHS", "ROUTERS", "StudentSpec"]

PATHS = ("adapters", "none", "frozen")
"""``adapters`` is SAK; ``none`` is one plain path, aligned to every teacher at once (many to one); ``frozen`` has no
network of its own but heads on the teachers' maps."""

ROUTERS = ("mor", "none")
"""``mor`` mixes the representations per task, level and image; ``none`` adds them up."""

NOISES = ("image", "pixel")
"""Training noise of a router: one draw per image and expert, or (as published) one per token and expert."""

HEADS = ("published", "light")
"""``published`` fuses the levels at a quarter of the image, ``light`` at the token grid."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentSpec:
    """A student: stem, adapter paths, routers, heads.

    Attributes:
        stem: timm name of a plain vision transformer; of it, ``frozen`` takes the width of its heads.
        image_size: Input rows and columns; multiples of the stem's patch size.
        stem_overrides: Integers handed to timm over the named model's own, such as ``patch_size`` or ``depth``.
        levels: Blocks (zero-based, ascending) whose outputs are the four levels; empty for evenly spaced ones.
        teacher_widths: Teacher name → channels of its maps, one number or one for each level (a pyramid network);
            empty for a student that is not distilled.
        down_ratio: Adapter bottleneck: stem width divided by this.
        aligners: Project each normalised path to its teacher's width. Plain students (``paths="none"``) always do.
        tasks: Task name → channels of its logits; empty in stage 1.
        paths: One of ``PATHS``.
        router: One of ``ROUTERS``; must be ``none`` without adapter paths.
        noisy_gating: Perturb the routers' logits in training with learnt noise.
        noise: One of ``NOISES``.
        head: One of ``HEADS``.
    """

    stem: str
    image_size: tuple[int, int]
    stem_overrides: Mapping[str, int] = field(default_factory=dict)
    levels: tuple[int, ...] = ()
    teacher_widths: Mapping[str, int | tuple[int, ...]] = field(default_factory=dict)
    down_ratio: int = 4
    aligners: bool = False
    tasks: Mapping[str, int] = field(default_factory=dict)
    paths: str = "adapters"
    router: str = "mor"
    noisy_gating: bool = True
    noise: str = "image"
    head: str = "published"

    def __post_init__(self) -> None:
        """Check the fields against each other; a stem's own limits are checked when it is built.

        Raises:
            SakError: a field has a value that no student can have; every fault is listed.
        """
        faults = [*self._choice_faults(), *self._number_faults(), *self._name_faults()]
        if faults:
            raise SakError("student spec: " + "; ".join(faults))

    def _choice_faults(self) -> list[str]:
        choices = (
            *(("paths", self.paths, PATHS), ("router", self.router, ROUTERS)),
            *(("noise", self.noise, NOISES), ("head", self.head, HEADS)),
        )
        faults = [
            f"{name}: expected one of {', '.join(all_)}, got {got!r}" for name, got, all_ in choices if got not in all_
        ]
        if self.paths in ("none", "frozen") and self.router == "mor":
            faults.append(f"router: paths {self.paths!r} leave nothing to route, got 'mor'; set router to 'none'")
        if self.paths in ("adapters", "frozen") and not self.teacher_widths:
            what = "adapter paths need a teacher each" if self.paths == "adapters" else "paths 'frozen' need a teacher"
            faults.append(f"teacher_widths: {what}, got none; name teachers or set paths to 'none'")
        if self.paths == "frozen" and self.aligners:
            faults.append("aligners: paths 'frozen' answer no teacher, got true; set aligners to false")
        return faults

    def _number_faults(self) -> list[str]:
        faults = []
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            faults.append(f"image_size: expected (rows, columns), both positive, got {self.image_size}")
        if self.down_ratio < 1:
            faults.append(f"down_ratio: expected at least 1, got {self.down_ratio}")
        ascending = tuple(sorted(set(self.levels))) == tuple(self.levels)
        if self.levels and (len(self.levels) != 4 or not ascending or self.levels[0] < 0):
            faults.append(f"levels: expected 4 ascending block indices from 0, got {self.levels}")
        widths = [(name, width) for name in self.teacher_widths for width in self.level_widths(name)]
        counts = [*widths, *self.tasks.items()]
        faults += [f"{name}: expected a positive number of channels, got {got}" for name, got in counts if got < 1]
        wrong = [name for name in self.teacher_widths if len(self.level_widths(name)) != 4]
        faults += [f"{name}: expected one width or four, got {self.teacher_widths[name]}" for name in wrong]
        return faults

    def _name_faults(self) -> list[str]:
        # A name becomes part of a state-dict key, where a dot separates modules.
        names = [*self.teacher_widths, *self.tasks]
        return [f"name {name!r}: expected letters, digits, '_' or '-'" for name in names if not _NAME.fullmatch(name)]

    def level_widths(self, teacher: str, /) -> tuple[int, ...]:
        """Channels of a teacher's four levels."""
        width = self.teacher_widths[teacher]
        return (width,) * 4 if isinstance(width, int) else tuple(width)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON.

        Teachers are pairs, not a mapping: their order is the order of a router's experts, and JSON writers sort keys.
        """
        plain = asdict(self)
        widths = [[name, got if isinstance(got, int) else list(got)] for name, got in self.teacher_widths.items()]
        return plain | {"image_size": list(self.image_size), "levels": list(self.levels), "teacher_widths": widths}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any], /) -> StudentSpec:
        """Rebuild a spec from ``to_dict``.

        Raises:
            SakError: a key is unknown or missing, or a value is out of range.
        """
        known = set(cls.__dataclass_fields__)
        unknown, missing = sorted(set(plain) - known), sorted({"stem", "image_size"} - set(plain))
        if unknown or missing:
            raise SakError(f"student spec: unknown keys {unknown}, missing keys {missing}; known are {sorted(known)}")
        values = dict(plain)
        if not isinstance(values["stem"], str):
            raise SakError(f"student spec: stem: expected a timm name, got {values['stem']!r}")
        rows, columns = values["image_size"]
        values |= {"image_size": (int(rows), int(columns)), "levels": tuple(values.get("levels", ()))}
        widths = values.get("teacher_widths", [])
        values["teacher_widths"] = {name: got if isinstance(got, int) else tuple(got) for name, got in widths}
        return cls(**values)
