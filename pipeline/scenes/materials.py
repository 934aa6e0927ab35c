"""Procedural materials: textures in object coordinates, evaluated once per visible pixel.

Colours are linear light. Axis letters: N pixels, K materials.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["TEXTURES", "MaterialList", "MaterialTable", "Noise", "paint"]

F32 = NDArray[np.float32]
Colour = tuple[float, float, float]

PLAIN, CHECKER, STRIPES, NOISE, BRICKS, WOOD, PLANKS, FACADE, DOTS, TILES = range(10)
TEXTURES = {
    "plain": PLAIN,
    "checker": CHECKER,
    "stripes": STRIPES,
    "noise": NOISE,
    "bricks": BRICKS,
    "wood": WOOD,
    "planks": PLANKS,
    "facade": FACADE,
    "dots": DOTS,
    "tiles": TILES,
}


@dataclass(frozen=True, slots=True)
class Noise:
    """Smooth periodic value noise from a cubic table of random numbers."""

    table_SSS: F32

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Noise:
        """Draw a fresh table of 16 x 16 x 16 values in [0, 1)."""
        return cls(rng.random((16, 16, 16), dtype=np.float32))

    def __call__(self, point_N3: F32) -> F32:
        """Trilinear noise in [0, 1) at points ``(N, 3)``; one lattice cell is one unit."""
        floor = np.floor(point_N3)
        w = point_N3 - floor
        w = w * w * (3.0 - 2.0 * w)
        low = floor.astype(np.int32) & 15
        high = (low + 1) & 15
        x0, x1 = low[:, 0] * 256, high[:, 0] * 256
        y0, y1 = low[:, 1] * 16, high[:, 1] * 16
        z0, z1 = low[:, 2], high[:, 2]
        flat = self.table_SSS.reshape(-1)
        wx, wy, wz = w[:, 0], w[:, 1], w[:, 2]
        planes = []
        for x in (x0, x1):
            a, b = flat[x + y0 + z0], flat[x + y0 + z1]
            c, d = flat[x + y1 + z0], flat[x + y1 + z1]
            near = a + (b - a) * wz
            planes.append(near + (c + (d - c) * wz - near) * wy)
        return np.asarray(planes[0] + (planes[1] - planes[0]) * wx)


@dataclass(slots=True)
class MaterialList:
    """Collects materials while a world is being composed."""

    texture: list[int] = field(default_factory=list)
    first: list[Colour] = field(default_factory=list)
    second: list[Colour] = field(default_factory=list)
    frequency: list[float] = field(default_factory=list)
    gloss: list[float] = field(default_factory=list)
    glow: list[float] = field(default_factory=list)

    def add(
        self,
        texture: str,
        *,
        first: Colour,
        second: Colour = (0.0, 0.0, 0.0),
        frequency: float = 1.0,
        gloss: float = 0.0,
        glow: float = 0.0,
    ) -> int:
        """Append a material and return its number; ``frequency`` is in texture periods per metre."""
        self.texture.append(TEXTURES[texture])
        self.first.append(first)
        self.second.append(second)
        self.frequency.append(frequency)
        self.gloss.append(gloss)
        self.glow.append(glow)
        return len(self.texture) - 1

    def freeze(self) -> MaterialTable:
        """Turn the collected materials into arrays."""
        return MaterialTable(
            texture_K=np.asarray(self.texture, dtype=np.int64),
            first_K3=np.asarray(self.first, dtype=np.float32),
            second_K3=np.asarray(self.second, dtype=np.float32),
            frequency_K=np.asarray(self.frequency, dtype=np.float32),
            gloss_K=np.asarray(self.gloss, dtype=np.float32),
            glow_K=np.asarray(self.glow, dtype=np.float32),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MaterialTable:
    """All materials of a world as arrays."""

    texture_K: NDArray[np.int64]
    first_K3: F32
    second_K3: F32
    frequency_K: F32
    gloss_K: F32
    glow_K: F32


def paint(
    table: MaterialTable,
    *,
    material_N: NDArray[np.int64],
    point_N3: F32,
    normal_N3: F32,
    footprint_N: F32,
    noise: Noise,
) -> F32:
    """Linear colour ``(N, 3)`` of surface points.

    Args:
        table: The materials.
        material_N: Material number of each point.
        point_N3: Points in the coordinates of their object, in metres.
        normal_N3: Unit normals in the same coordinates.
        footprint_N: Width in metres that one pixel covers there; finer patterns fade to their mean.
        noise: Value noise of this world.
    """
    frequency_N = table.frequency_K[material_N]
    scaled_N3 = point_N3 * frequency_N[:, None]
    uv_N2 = _flatten(scaled_N3, normal_N3)
    mix_N = np.zeros(len(material_N), dtype=np.float32)
    texture_N = table.texture_K[material_N]
    for texture in np.unique(texture_N).tolist():
        if texture == PLAIN:
            continue
        who = np.flatnonzero(texture_N == texture)
        pattern, mean = _PATTERNS[texture]
        # An unfiltered pattern finer than a pixel would alias into labels-like structure that is not there.
        keep = np.clip(1.6 - 2.0 * footprint_N[who] * frequency_N[who], 0.0, 1.0)
        mix_N[who] = mean + keep * (pattern(scaled_N3[who], uv_N2[who], noise) - mean)
    first_N3 = table.first_K3[material_N]
    colour_N3 = first_N3 + (table.second_K3[material_N] - first_N3) * mix_N[:, None]
    grain_N = 0.86 + 0.28 * noise(point_N3 * 3.1)
    return np.asarray(colour_N3 * grain_N[:, None], dtype=np.float32)


def _flatten(point_N3: F32, normal_N3: F32) -> F32:
    """Project points along the dominant axis of their normal: (u, v) with v upwards on walls."""
    size = np.abs(normal_N3)
    up = (size[:, 1] > size[:, 0]) & (size[:, 1] > size[:, 2])
    side = size[:, 0] > size[:, 2]
    u = np.where(side & ~up, point_N3[:, 2], point_N3[:, 0])
    v = np.where(up, point_N3[:, 2], point_N3[:, 1])
    return np.stack([u, v], 1)


def _checker(p: F32, uv: F32, noise: Noise) -> F32:
    return np.asarray((np.floor(p + 0.37).sum(1) % 2.0), dtype=np.float32)


def _stripes(p: F32, uv: F32, noise: Noise) -> F32:
    return np.asarray((p[:, 1] + 0.5 * p[:, 0]) % 1.0 < 0.5, dtype=np.float32)


def _noise(p: F32, uv: F32, noise: Noise) -> F32:
    return np.clip(1.6 * (0.65 * noise(p) + 0.35 * noise(p * 2.7 + 5.0)) - 0.3, 0.0, 1.0)


def _bricks(p: F32, uv: F32, noise: Noise) -> F32:
    row = np.floor(uv[:, 1] * 2.0)
    u = (uv[:, 0] + 0.5 * (row % 2.0)) % 1.0
    v = (uv[:, 1] * 2.0) % 1.0
    joint = (u < 0.07) | (v < 0.13)
    cell = np.stack([np.floor(uv[:, 0] + 0.5 * (row % 2.0)) * 3.7, row * 5.3, row * 0.0], 1)
    return np.where(joint, np.float32(1.0), 0.35 * noise(cell))


def _wood(p: F32, uv: F32, noise: Noise) -> F32:
    ring = p[:, 0] + 0.25 * p[:, 2] + 1.1 * noise(p * np.array([0.9, 0.25, 0.9], dtype=np.float32))
    return np.asarray(0.5 + 0.5 * np.sin(6.2831853 * ring), dtype=np.float32)


def _planks(p: F32, uv: F32, noise: Noise) -> F32:
    board = np.floor(uv[:, 0])
    gap = (uv[:, 0] % 1.0) < 0.09
    tint = noise(np.stack([board * 4.3, board * 1.7, 0.15 * uv[:, 1]], 1))
    return np.where(gap, np.float32(1.0), 0.6 * tint)


def _facade(p: F32, uv: F32, noise: Noise) -> F32:
    u, v = uv[:, 0] % 1.0, uv[:, 1] % 1.0
    return np.asarray((np.abs(u - 0.5) < 0.24) & (np.abs(v - 0.5) < 0.3), dtype=np.float32)


def _dots(p: F32, uv: F32, noise: Noise) -> F32:
    cell = (p + 0.25) % 1.0 - 0.5
    return np.asarray((cell * cell).sum(1) < 0.13, dtype=np.float32)


def _tiles(p: F32, uv: F32, noise: Noise) -> F32:
    joint = ((uv % 1.0) < 0.06).any(1)
    cell = np.floor(uv)
    tint = noise(np.stack([cell[:, 0] * 2.9, cell[:, 1] * 3.3, cell[:, 0]], 1))
    return np.where(joint, np.float32(1.0), 0.4 * tint)


# Texture number -> pattern in [0, 1] and the mean it fades to with distance.
_PATTERNS: dict[int, tuple[Callable[[F32, F32, Noise], F32], float]] = {
    CHECKER: (_checker, 0.5),
    STRIPES: (_stripes, 0.5),
    NOISE: (_noise, 0.5),
    BRICKS: (_bricks, 0.3),
    WOOD: (_wood, 0.5),
    PLANKS: (_planks, 0.36),
    FACADE: (_facade, 0.29),
    DOTS: (_dots, 0.2),
    TILES: (_tiles, 0.3),
}
