"""Which teachers a step of stage 1 learns from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

__all__ = ["TeacherDraw"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherDraw:
    """``count`` of some teachers for each step: a pure function of (seed, step), the same on every rank.

    Attributes:
        teachers: In the recipe's order, in which the drawn ones come too.
    """

    teachers: tuple[str, ...]
    count: int
    seed: int

    def __call__(self, step: int, /) -> tuple[str, ...]:
        """The teachers of a step, counted from 0."""
        # A hash, not NumPy's generators: those may draw otherwise in another release.
        ranks = {name: hashlib.sha256(f"{self.seed}/{step}/{name}".encode()).digest() for name in self.teachers}
        drawn = sorted(self.teachers, key=ranks.__getitem__)[: self.count]
        return tuple(name for name in self.teachers if name in drawn)

    @property
    def scale(self) -> float:
        """What the loss of a step is multiplied with to be, on average, the loss of all teachers."""
        return len(self.teachers) / self.count
