"""What composite objects are written in: a placed frame to which boxes, limbs and balls are added."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.scenes.geometry import BOX, CAPSULE, ELLIPSOID, FRUSTUM, PrimList, Vec, axis_frame, yaw_frame
from pipeline.scenes.materials import Colour, MaterialList

__all__ = ["CLASSES", "Builder", "Draw", "Solid"]

CLASSES = ("ground", "wall", "sky", "person", "ball", "crate", "pillar", "cone", "table", "tree", "lamp", "car")

_Range = tuple[float, float]
# Hue, saturation and value of wood, stone, plaster, brick, slate, sage, sky, blush, and anything.
_EARTH: tuple[tuple[_Range, _Range, _Range], ...] = (
    ((0.05, 0.10), (0.35, 0.65), (0.35, 0.80)),
    ((0.05, 0.14), (0.03, 0.18), (0.45, 0.80)),
    ((0.09, 0.15), (0.05, 0.28), (0.80, 0.97)),
    ((0.00, 0.05), (0.40, 0.70), (0.45, 0.78)),
    ((0.55, 0.65), (0.08, 0.40), (0.35, 0.70)),
    ((0.25, 0.42), (0.10, 0.35), (0.55, 0.85)),
    ((0.50, 0.62), (0.12, 0.40), (0.75, 0.95)),
    ((0.92, 1.05), (0.10, 0.35), (0.75, 0.95)),
    ((0.00, 1.00), (0.05, 0.60), (0.40, 0.95)),
)


@dataclass(frozen=True, slots=True)
class Draw:
    """Short names for the random draws that scene composition needs."""

    rng: np.random.Generator

    def real(self, low: float, high: float) -> float:
        """Uniform in [low, high)."""
        return low + (high - low) * float(self.rng.random())

    def chance(self, p: float) -> bool:
        """True with probability ``p``."""
        return float(self.rng.random()) < p

    def pick(self, options: Sequence[str], weights: Sequence[float] | None = None) -> str:
        """One of the options, evenly or by weight."""
        if weights is None:
            return options[int(self.rng.random() * len(options))]
        mark = float(self.rng.random()) * sum(weights)
        for option, weight in zip(options, weights, strict=True):
            mark -= weight
            if mark < 0:
                return option
        return options[-1]

    def colour(self, *, hue: tuple[float, float], sat: tuple[float, float], val: tuple[float, float]) -> Colour:
        """Random colour in linear light from ranges of hue, saturation and (display) value."""
        rgb = colorsys.hsv_to_rgb(self.real(*hue) % 1.0, self.real(*sat), self.real(*val))
        return (rgb[0] ** 2.2, rgb[1] ** 2.2, rgb[2] ** 2.2)

    def vivid(self) -> Colour:
        """Any hue, clearly coloured."""
        return self.colour(hue=(0, 1), sat=(0.45, 0.95), val=(0.45, 0.98))

    def earth(self) -> Colour:
        """A building colour: mostly wood, stone, plaster, brick or a pale tint; now and then anything."""
        hue, sat, val = _EARTH[int(self.rng.random() * len(_EARTH))]
        return self.colour(hue=hue, sat=sat, val=val)

    def muted(self) -> Colour:
        """Any hue, greyish."""
        return self.colour(hue=(0, 1), sat=(0.02, 0.3), val=(0.3, 0.92))


@dataclass(slots=True)
class Builder:
    """The growing world: primitives, materials and one row per instance."""

    draw: Draw
    prims: PrimList = field(default_factory=PrimList)
    materials: MaterialList = field(default_factory=MaterialList)
    instance_class: list[int] = field(default_factory=list)
    instance_origin: list[Vec] = field(default_factory=list)
    instance_yaw: list[float] = field(default_factory=list)
    lights: list[tuple[Vec, Colour]] = field(default_factory=list)

    def instance(self, name: str, *, origin: Vec = (0.0, 0.0, 0.0), yaw: float = 0.0) -> int:
        """Register an instance of a class and return its number."""
        self.instance_class.append(CLASSES.index(name))
        self.instance_origin.append(origin)
        self.instance_yaw.append(yaw)
        return len(self.instance_class) - 1

    def solid(self, name: str, *, origin: Vec, yaw: float) -> Solid:
        """Start a composite object standing at ``origin``."""
        return Solid(self, self.instance(name, origin=origin, yaw=yaw), origin, yaw_frame(yaw))

    def surface(self, *, plain: float = 0.4, gloss: float = 0.3) -> int:
        """A random material: plain with the given probability, else any texture in two colours."""
        draw = self.draw
        first = draw.vivid() if draw.chance(0.6) else draw.muted()
        if draw.chance(plain):
            return self.materials.add("plain", first=first, gloss=draw.real(0, gloss))
        texture = draw.pick(("checker", "stripes", "noise", "wood", "planks", "dots", "bricks"))
        second = draw.vivid() if draw.chance(0.4) else draw.muted()
        frequency = draw.real(2.0, 6.0) if texture != "noise" else draw.real(3.0, 9.0)
        return self.materials.add(texture, first=first, second=second, frequency=frequency, gloss=draw.real(0, gloss))


@dataclass(frozen=True, slots=True)
class Solid:
    """One composite object; positions are in its own frame (y up, origin on the ground)."""

    builder: Builder
    instance: int
    origin: Vec
    frame: NDArray[np.float64]

    def place(self, point: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
        """Own coordinates to world coordinates."""
        return np.asarray(self.frame @ np.asarray(point) + self.origin)

    def ellipsoid(self, centre: Vec, radii: Vec, *, material: int, part: int = 0, turn: float = 0.0) -> None:
        """Add an ellipsoid; ``turn`` leans it about its own x axis."""
        self._add(ELLIPSOID, centre, self._lean(turn) * np.asarray(radii), material=material, part=part)

    def box(self, centre: Vec, half: Vec, *, material: int, part: int = 0, turn: float = 0.0) -> None:
        """Add a box of the given half sizes; ``turn`` leans it about its own x axis."""
        self._add(BOX, centre, self._lean(turn) * np.asarray(half), material=material, part=part)

    def frustum(self, low: Vec, high: Vec, radii: tuple[float, float], *, material: int) -> None:
        """Add a capped cone from ``low`` to ``high`` with the radii at both ends (the first must be positive)."""
        axis = np.subtract(high, low)
        length = math.sqrt(float(axis @ axis))
        middle = 0.5 * np.add(low, high)
        matrix = axis_frame(tuple(axis.tolist())) * np.array([radii[0], radii[0], 0.5 * length])
        self._add(FRUSTUM, middle, matrix, material=material, k=radii[1] / radii[0])

    def capsule(
        self,
        low: Sequence[float] | NDArray[np.float64],
        high: Sequence[float] | NDArray[np.float64],
        radius: float,
        *,
        material: int,
        part: int = 0,
    ) -> None:
        """Add a rounded limb from ``low`` to ``high``."""
        axis = np.subtract(high, low)
        length = math.sqrt(float(axis @ axis))
        matrix = axis_frame(tuple(axis.tolist())) * radius
        middle = 0.5 * np.add(low, high)
        self._add(CAPSULE, middle, matrix, material=material, part=part, k=0.5 * length / radius)

    def _lean(self, turn: float) -> NDArray[np.float64]:
        c, s = math.cos(turn), math.sin(turn)
        return np.array([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]])

    def _add(
        self,
        kind: int,
        centre: Sequence[float] | NDArray[np.float64],
        matrix: NDArray[np.float64],
        *,
        material: int,
        part: int = 0,
        k: float = 0.0,
    ) -> None:
        tag = (self.instance, material, part)
        self.builder.prims.add(kind, centre=self.place(centre).tolist(), matrix=self.frame @ matrix, k=k, tag=tag)
