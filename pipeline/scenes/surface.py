"""What each pixel sees: the nearest of primitives, ground, room and sky.

Axis letters: N pixels in raster order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.scenes.world import Room, World

__all__ = ["FAR", "Surface", "cast"]

F32 = NDArray[np.float32]
FAR = 75.0  # metres; beyond it everything is sky, so that every valid depth stays below the metrics' limit of 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Surface:
    """Per-pixel geometry; ``pixel`` is the width of one pixel at one metre, normals are in world coordinates."""

    ray_N3: F32
    t_N: F32
    point_N3: F32
    normal_N3: F32
    instance_N: NDArray[np.int64]
    material_N: NDArray[np.int64]
    part_N: NDArray[np.uint8]
    pixel: float


def cast(world: World, *, size: tuple[int, int]) -> Surface:
    """Cast the central ray of every pixel of a (height, width) picture."""
    camera = world.camera
    ray_N3 = camera.rays(size)
    boxes = camera.rectangles(world.prims.corners(), size=size)
    t_N, prim_N = world.prims.trace(origin_3=camera.position, ray_N3=ray_N3, boxes_P4=boxes, width=size[1])
    back_t, face_N = _background(world, ray_N3)
    solid = (t_N < back_t) & (t_N < FAR)
    t_N = np.where(solid, t_N, back_t)
    open_N = ~(t_N < FAR)
    t_N = np.where(open_N, np.float32(FAR), t_N)
    point_N3 = camera.position.astype(np.float32) + t_N[:, None] * ray_N3
    normal_N3, instance_N, material_N = _dress_background(world, face_N, point_N3)
    part_N = np.zeros(len(t_N), dtype=np.uint8)
    front = np.flatnonzero(solid)
    prim = prim_N[front]
    normal = world.prims.normals(prim_M=prim, point_M3=point_N3[front])
    facing = (normal * ray_N3[front]).sum(1, keepdims=True) > 0
    normal_N3[front] = np.where(facing, -normal, normal)
    instance_N[front] = world.prims.instance_P[prim]
    material_N[front] = world.prims.material_P[prim]
    part_N[front] = world.prims.part_P[prim]
    instance_N[open_N] = 0
    return Surface(
        ray_N3=ray_N3,
        t_N=t_N,
        point_N3=point_N3,
        normal_N3=normal_N3,
        instance_N=instance_N,
        material_N=material_N,
        part_N=part_N,
        pixel=1.0 / camera.focal(size),
    )


def _background(world: World, ray_N3: F32) -> tuple[F32, NDArray[np.int64]]:
    """Distance to the ground or the inside of the room, and the face (2 is the ground)."""
    if world.room is None:
        down = ray_N3[:, 1]
        with np.errstate(divide="ignore"):
            t = np.where(down < 0, -np.float32(world.camera.height) / down, np.float32(np.inf))
        return t.astype(np.float32), np.full(len(t), 2, dtype=np.int64)
    origin = world.camera.position
    low, high = np.subtract(world.room.low, origin), np.subtract(world.room.high, origin)
    with np.errstate(divide="ignore"):
        t_N3 = np.where(ray_N3 > 0, high.astype(np.float32), low.astype(np.float32)) / ray_N3
    t_N3 = np.where(ray_N3 == 0, np.float32(np.inf), t_N3)
    axis_N = t_N3.argmin(1)
    row = np.arange(len(axis_N))
    return t_N3[row, axis_N], 2 * axis_N + (ray_N3[row, axis_N] > 0)


def _dress_background(
    world: World, face_N: NDArray[np.int64], point_N3: F32
) -> tuple[F32, NDArray[np.int64], NDArray[np.int64]]:
    normal_N3 = np.zeros((len(face_N), 3), dtype=np.float32)
    room = world.room or _open_room(world.ground)
    row = np.arange(len(face_N))
    normal_N3[row, face_N // 2] = 1.0 - 2.0 * (face_N % 2)
    instance_N = np.asarray(room.instances, dtype=np.int64)[face_N]
    material_N = np.asarray(room.materials, dtype=np.int64)[face_N]
    if world.path is not None:
        material, half, slope = world.path
        wave = 0.3 * np.sin(0.35 * point_N3[:, 2])
        on = np.abs(point_N3[:, 0] - slope * (point_N3[:, 2] + 4.0) * 0.4 - wave) < half
        material_N[on & (face_N == 2)] = material
    return normal_N3, instance_N, material_N


def _open_room(ground: int) -> Room:
    """The outdoors as a room of which only the floor is ever hit."""
    return Room(low=(0, 0, 0), high=(0, 0, 0), materials=(ground,) * 6, instances=(1,) * 6)
