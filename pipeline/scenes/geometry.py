"""Ray casting of affine unit primitives, vectorised over (primitive, pixel) pairs.

Every primitive is a canonical solid under an affine map, so one table of 3x3 matrices describes all of them:

- ellipsoid: the unit sphere;
- box: the cube ``[-1, 1]^3``;
- frustum: radius 1 at local ``z = -1`` and radius ``k`` at ``z = 1`` (``k = 1`` is a capped cylinder, ``0`` a cone);
- capsule: unit radius around the segment from ``z = -k`` to ``z = k``.

Axis letters: P primitives, N pixels or rays, M (primitive, ray) pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["BOX", "CAPSULE", "ELLIPSOID", "FRUSTUM", "Hits", "PrimList", "PrimTable", "Vec", "axis_frame", "yaw_frame"]

ELLIPSOID, BOX, FRUSTUM, CAPSULE = 0, 1, 2, 3
Vec = tuple[float, float, float]
F32 = NDArray[np.float32]
I64 = NDArray[np.int64]


class Hits(NamedTuple):
    """Nearest hit of each ray: distance along the ray (inf when none) and primitive number (-1 when none)."""

    t_N: F32
    prim_N: I64


def yaw_frame(yaw: float) -> NDArray[np.float64]:
    """Rotation about the vertical axis whose columns are the turned x, y and z axes."""
    c, s = math.cos(yaw), math.sin(yaw)
    return np.array([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]])


def axis_frame(axis: Sequence[float]) -> NDArray[np.float64]:
    """Orthonormal frame whose third column points along ``axis``."""
    x, y, z = axis
    n = math.sqrt(x * x + y * y + z * z)
    x, y, z = x / n, y / n, z / n
    sign = 1.0 if z >= 0 else -1.0
    a = -1.0 / (sign + z)
    b = x * y * a
    return np.array(
        [
            [1.0 + sign * x * x * a, b, x],
            [sign * b, sign + y * y * a, y],
            [-sign * x, -y, z],
        ]
    )


@dataclass(slots=True)
class PrimList:
    """Collects primitives while a world is being composed."""

    kind: list[int] = field(default_factory=list)
    centre: list[Sequence[float]] = field(default_factory=list)
    matrix: list[NDArray[np.float64]] = field(default_factory=list)
    k: list[float] = field(default_factory=list)
    instance: list[int] = field(default_factory=list)
    material: list[int] = field(default_factory=list)
    part: list[int] = field(default_factory=list)

    def add(
        self, kind: int, *, centre: Sequence[float], matrix: NDArray[np.float64], k: float, tag: tuple[int, int, int]
    ) -> None:
        """Append one primitive; ``matrix`` maps local to world, ``tag`` is (instance, material, human part)."""
        self.kind.append(kind)
        self.centre.append(centre)
        self.matrix.append(matrix)
        self.k.append(k)
        self.instance.append(tag[0])
        self.material.append(tag[1])
        self.part.append(tag[2])

    def freeze(self) -> PrimTable:
        """Turn the collected primitives into arrays, with the inverse maps that rays need."""
        count = len(self.kind)
        matrix_P33 = np.asarray(self.matrix, dtype=np.float64).reshape(count, 3, 3)
        return PrimTable(
            kind_P=np.asarray(self.kind, dtype=np.int64),
            centre_P3=np.asarray(self.centre, dtype=np.float64).reshape(count, 3),
            matrix_P33=matrix_P33,
            inverse_P33=np.asarray(np.linalg.inv(matrix_P33), dtype=np.float64),
            k_P=np.asarray(self.k, dtype=np.float32),
            instance_P=np.asarray(self.instance, dtype=np.int64),
            material_P=np.asarray(self.material, dtype=np.int64),
            part_P=np.asarray(self.part, dtype=np.uint8),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PrimTable:
    """All primitives of a world as arrays.

    Shapes:
        matrix_P33: local to world, ``inverse_P33`` world to local, both about ``centre_P3``.
    """

    kind_P: I64
    centre_P3: NDArray[np.float64]
    matrix_P33: NDArray[np.float64]
    inverse_P33: NDArray[np.float64]
    k_P: F32
    instance_P: I64
    material_P: I64
    part_P: NDArray[np.uint8]

    def corners(self) -> NDArray[np.float64]:
        """Corners ``(P, 8, 3)`` of each primitive's bounding box in world coordinates."""
        extent_P = np.where(self.kind_P == CAPSULE, self.k_P + 1.0, 1.0)
        signs_83 = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=np.float64)
        local_P83 = np.repeat(signs_83[None], len(extent_P), axis=0)
        local_P83[:, :, 2] *= extent_P[:, None]
        return np.asarray(local_P83 @ self.matrix_P33.transpose(0, 2, 1) + self.centre_P3[:, None, :])

    def trace(self, *, origin_3: NDArray[np.float64], ray_N3: F32, boxes_P4: I64, width: int) -> Hits:
        """Cast pixel rays from one origin, each primitive only over its pixel rectangle.

        Args:
            origin_3: Common origin of all rays in world coordinates.
            ray_N3: Directions in raster order; the returned distances are in multiples of them.
            boxes_P4: Half-open rectangles x0, y0, x1, y1 per primitive.
            width: Pixels per raster row.
        """
        t_N = np.full(len(ray_N3), np.inf, dtype=np.float32)
        prim_N = np.full(len(ray_N3), -1, dtype=np.int64)
        start_P3 = np.einsum("pij,pj->pi", self.inverse_P33, origin_3 - self.centre_P3).astype(np.float32)
        found: list[tuple[I64, I64, F32]] = []
        for kind in (ELLIPSOID, BOX, FRUSTUM, CAPSULE):
            which = np.flatnonzero(self.kind_P == kind)
            owner_M, pixel_M = _rectangle_pairs(which, boxes_P4[which], width)
            if not len(owner_M):
                continue
            matrix_M9 = self.inverse_P33.astype(np.float32).reshape(-1, 9)[owner_M]
            t_M = _intersect(kind, start_P3[owner_M], _apply(matrix_M9, ray_N3[pixel_M]), self.k_P[owner_M])
            hit = np.flatnonzero(t_M < np.inf)
            found.append((owner_M[hit], pixel_M[hit], t_M[hit]))
        for _, pixel_M, t_M in found:
            np.minimum.at(t_N, pixel_M, t_M)
        for owner_M, pixel_M, t_M in found:
            won = t_M == t_N[pixel_M]
            prim_N[pixel_M[won]] = owner_M[won]
        return Hits(t_N, prim_N)

    def occluded(self, *, point_N3: F32, direction_3: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether each point's ray towards a distant light meets a primitive."""
        frame = axis_frame(tuple(direction_3.tolist()))[:, :2]
        plane_P82 = self.corners() @ frame
        low_P2, high_P2 = plane_P82.min(1).astype(np.float32), plane_P82.max(1).astype(np.float32)
        u_N, v_N = (point_N3 @ frame.astype(np.float32)).T
        inverse_P33 = self.inverse_P33.astype(np.float32)
        local_P3 = (self.inverse_P33 @ direction_3).astype(np.float32)
        dark_N = np.zeros(len(point_N3), dtype=np.bool_)
        order = np.argsort(u_N)
        sorted_u = u_N[order]
        first = np.searchsorted(sorted_u, low_P2[:, 0])
        last = np.searchsorted(sorted_u, high_P2[:, 0])
        v_sorted = v_N[order]
        owners: list[list[I64]] = [[], [], [], []]
        pixels: list[list[I64]] = [[], [], [], []]
        for p in range(len(self.kind_P)):
            span = v_sorted[first[p] : last[p]]
            inside = np.flatnonzero((span >= low_P2[p, 1]) & (span <= high_P2[p, 1]))
            if len(inside):
                owners[self.kind_P[p]].append(np.full(len(inside), p))
                pixels[self.kind_P[p]].append(order[inside + first[p]])
        for kind in (ELLIPSOID, BOX, FRUSTUM, CAPSULE):
            if not owners[kind]:
                continue
            owner_M, pixel_M = np.concatenate(owners[kind]), np.concatenate(pixels[kind])
            offset_M3 = point_N3[pixel_M] - self.centre_P3.astype(np.float32)[owner_M]
            start_M3 = _apply(inverse_P33.reshape(-1, 9)[owner_M], offset_M3)
            t_M = _intersect(kind, start_M3, local_P3[owner_M], self.k_P[owner_M])
            dark_N[pixel_M[t_M < np.inf]] = True
        return dark_N

    def normals(self, *, prim_M: I64, point_M3: F32) -> F32:
        """Unit outward world normals at surface points of the given primitives."""
        offset_M3 = point_M3 - self.centre_P3.astype(np.float32)[prim_M]
        local_M3 = _apply(self.inverse_P33.astype(np.float32).reshape(-1, 9)[prim_M], offset_M3)
        kind_M, k_M = self.kind_P[prim_M], self.k_P[prim_M]
        normal_M3 = local_M3.copy()
        boxes = np.flatnonzero(kind_M == BOX)
        if len(boxes):
            face = np.abs(local_M3[boxes]).argmax(1)
            normal_M3[boxes] = 0.0
            normal_M3[boxes, face] = np.sign(local_M3[boxes, face])
        capsules = np.flatnonzero(kind_M == CAPSULE)
        z, k = local_M3[capsules, 2], k_M[capsules]
        normal_M3[capsules, 2] = z - np.clip(z, -k, k)
        frusta = np.flatnonzero(kind_M == FRUSTUM)
        if len(frusta):
            normal_M3[frusta] = _frustum_normal(local_M3[frusta], k_M[frusta])
        transposed = self.inverse_P33.astype(np.float32).transpose(0, 2, 1).reshape(-1, 9)
        world_M3 = _apply(transposed[prim_M], normal_M3)
        length_M1 = np.sqrt((world_M3 * world_M3).sum(1, keepdims=True))
        return np.asarray(world_M3 / np.maximum(length_M1, 1e-12), dtype=np.float32)


def _apply(matrix_M9: F32, vector_M3: F32) -> F32:
    """Multiply a row of 3x3 matrices with a row of vectors (faster here than einsum)."""
    x, y, z = vector_M3[:, 0], vector_M3[:, 1], vector_M3[:, 2]
    out = np.empty_like(vector_M3)
    for i in range(3):
        out[:, i] = matrix_M9[:, 3 * i] * x + matrix_M9[:, 3 * i + 1] * y + matrix_M9[:, 3 * i + 2] * z
    return out


def _rectangle_pairs(which: I64, boxes_P4: I64, width: int) -> tuple[I64, I64]:
    """List every (primitive, pixel) pair of the rectangles."""
    wide = np.maximum(boxes_P4[:, 2] - boxes_P4[:, 0], 0)
    area = wide * np.maximum(boxes_P4[:, 3] - boxes_P4[:, 1], 0)
    row = np.repeat(np.arange(len(which)), area)
    offset = np.arange(len(row)) - np.repeat(np.cumsum(area) - area, area)
    down, right = np.divmod(offset, wide[row])
    pixel = (boxes_P4[row, 1] + down) * width + boxes_P4[row, 0] + right
    return which[row], pixel


def _intersect(kind: int, start_M3: F32, ray_M3: F32, k_M: F32) -> F32:
    """First positive hit along each local ray, inf for a miss."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        dd = (ray_M3 * ray_M3).sum(1)
        # Moving the start next to the solid keeps float32 exact enough for a thin limb 20 m away.
        shift = -(start_M3 * ray_M3).sum(1) / dd
        near_M3 = start_M3 + shift[:, None] * ray_M3
        if kind == ELLIPSOID:
            t = _sphere(near_M3, dd)
        elif kind == BOX:
            t = _box(near_M3, ray_M3)
        elif kind == FRUSTUM:
            t = _frustum(near_M3, ray_M3, k_M)
        elif kind == CAPSULE:
            t = _capsule(near_M3, ray_M3, k_M)
        else:
            raise AssertionError(f"unknown primitive kind {kind}")
        t = t + shift
        return np.where(t > 0.0, t, np.float32(np.inf))


def _sphere(near_M3: F32, dd_M: F32) -> F32:
    gap = 1.0 - (near_M3 * near_M3).sum(1)
    return np.where(gap >= 0, -np.sqrt(np.maximum(gap, 0) / dd_M), np.float32(np.inf))


def _box(near_M3: F32, ray_M3: F32) -> F32:
    inv = 1.0 / ray_M3
    middle, half = -near_M3 * inv, np.abs(inv)
    enter = (middle - half).max(1)
    leave = (middle + half).min(1)
    return np.where(enter <= leave, enter, np.float32(np.inf))


def _frustum(near_M3: F32, ray_M3: F32, k_M: F32) -> F32:
    ox, oy, oz = near_M3.T
    dx, dy, dz = ray_M3.T
    slope = 0.5 * (k_M - 1.0)
    radius = 0.5 * (k_M + 1.0) + slope * oz
    a = dx * dx + dy * dy - (slope * dz) ** 2
    b = ox * dx + oy * dy - radius * slope * dz
    c = ox * ox + oy * oy - radius * radius
    root = np.sqrt(b * b - a * c)  # NaN where the ray misses; every later comparison is then false
    best = np.full(len(ox), np.inf, dtype=np.float32)
    for t in ((-b - root) / a, (-b + root) / a):
        z = oz + t * dz
        good = (np.abs(z) <= 1.0) & (radius + slope * t * dz >= 0.0) & (t < best)
        best = np.where(good, t, best)
    for side, limit in ((-1.0, 1.0), (1.0, k_M * k_M)):
        t = (side - oz) / dz
        good = ((ox + t * dx) ** 2 + (oy + t * dy) ** 2 <= limit) & (t < best)
        best = np.where(good, t, best)
    return best


def _capsule(near_M3: F32, ray_M3: F32, k_M: F32) -> F32:
    ox, oy, oz = near_M3.T
    dx, dy, dz = ray_M3.T
    a = dx * dx + dy * dy
    b = ox * dx + oy * dy
    t = (-b - np.sqrt(b * b - a * (ox * ox + oy * oy - 1.0))) / a
    best = np.where(np.abs(oz + t * dz) <= k_M, t, np.float32(np.inf))
    dd = a + dz * dz
    for side in (-k_M, k_M):
        z = oz - side
        half = b + z * dz
        gap = half * half - dd * (ox * ox + oy * oy + z * z - 1.0)
        t = (-half - np.sqrt(gap)) / dd
        best = np.where(t < best, t, best)
    return best


def _frustum_normal(local_M3: F32, k_M: F32) -> F32:
    slope = 0.5 * (k_M - 1.0)
    z = local_M3[:, 2]
    radius = 0.5 * (k_M + 1.0) + slope * z
    across = np.sqrt(local_M3[:, 0] ** 2 + local_M3[:, 1] ** 2)
    normal = local_M3.copy()
    normal[:, 2] = -slope * across
    # A point belongs to a cap when it is nearer to the cap's plane than to the mantle.
    cap = 1.0 - np.abs(z) < np.abs(radius - across)
    normal[cap] = 0.0
    normal[cap, 2] = np.sign(z[cap])
    return normal
