"""A pinhole camera: rays, projections and the frame in which normals are given.

The camera frame has x to the right, y up and z towards the viewer; rays have ``z = -1``, so that the distance along a
ray *is* the depth. Axis letters: N pixels, P primitives.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Camera"]

_NEAR = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Camera:
    """Position and orientation; at zero angles it looks along world ``-z`` with y up.

    Units:
        ``height`` in metres, angles in radians, ``fov`` is the angle across the shorter side of the picture.
    """

    height: float
    yaw: float
    pitch: float
    roll: float
    fov: float

    @property
    def position(self) -> NDArray[np.float64]:
        """Position in world coordinates: always above the origin of the ground."""
        return np.array([0.0, self.height, 0.0])

    def rotation(self) -> NDArray[np.float64]:
        """Matrix whose columns are the camera axes in world coordinates."""
        cy, sy = math.cos(self.yaw), math.sin(self.yaw)
        cp, sp = math.cos(self.pitch), math.sin(self.pitch)
        cr, sr = math.cos(self.roll), math.sin(self.roll)
        yaw = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
        pitch = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
        roll = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
        return np.asarray(yaw @ pitch @ roll)

    def focal(self, size: tuple[int, int]) -> float:
        """Focal length in pixels for a picture of (height, width)."""
        return 0.5 * min(size) / math.tan(0.5 * self.fov)

    def rays(self, size: tuple[int, int]) -> NDArray[np.float32]:
        """World directions ``(N, 3)`` through the pixel centres in raster order, one metre deep each."""
        height, width = size
        focal = self.focal(size)
        x_W = (np.arange(width) + 0.5 - 0.5 * width) / focal
        y_H = (0.5 * height - np.arange(height) - 0.5) / focal
        frame = self.rotation()
        ray_HW3 = y_H[:, None, None] * frame[:, 1] + (x_W[None, :, None] * frame[:, 0] - frame[:, 2])
        return np.asarray(ray_HW3.reshape(-1, 3), dtype=np.float32)

    def rectangles(self, corners_P83: NDArray[np.float64], *, size: tuple[int, int]) -> NDArray[np.int64]:
        """Half-open pixel rectangles ``(P, 4)`` (x0, y0, x1, y1) that contain the projected boxes.

        A box that reaches behind the camera gets the whole picture, one entirely behind it gets nothing.
        """
        height, width = size
        focal = self.focal(size)
        view_P83 = (corners_P83 - self.position) @ self.rotation()
        depth_P8 = -view_P83[..., 2]
        safe_P8 = np.maximum(depth_P8, _NEAR)
        x_P8 = view_P83[..., 0] / safe_P8 * focal + 0.5 * width
        y_P8 = 0.5 * height - view_P83[..., 1] / safe_P8 * focal
        low = np.stack([x_P8.min(1), y_P8.min(1)], 1)
        high = np.stack([x_P8.max(1), y_P8.max(1)], 1)
        box = np.concatenate([np.floor(low - 0.5), np.ceil(high + 0.5)], 1)
        box[(depth_P8 < _NEAR).any(1)] = (0, 0, width, height)
        box[(depth_P8 < _NEAR).all(1)] = 0
        limit = np.array([width, height, width, height])
        return np.asarray(np.clip(box, 0, limit), dtype=np.int64)
