"""Non-maximum suppression of a boundary map: what is left are the ridges, one to two pixels wide.

Source: the evaluation that the paper used (SEISM, ``nms_process``), as measured and written down for this project; the
arithmetic is float32 in its order of operations, so that results are the same to the bit.

Legend: H, W image rows and columns; N pixels that may still be ridges.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["SMALLEST", "suppress_floats"]

SMALLEST = 2
"""Pixels a side that a gradient needs."""

_MARGIN = np.float32(1.01)
_BORDER = 5
_ANGLE_RADIUS = 4
_EPSILON = np.float32(1e-5)

Floats = NDArray[np.float32]


def suppress_floats(prob_HW: Floats, *, smooth: bool, radius: int) -> Floats:
    """Set every pixel to 0 that is smaller than a neighbour across its edge, and fade the border.

    Args:
        smooth: Whether a [1 2 1] filter goes first; the values that survive are then smoothed ones.
        radius: How far across the edge neighbours are looked at, in pixels.

    Shapes:
        ``(H, W)``, at least 2 x 2.
    """
    if smooth:
        prob_HW = _smoothed(_smoothed(prob_HW.T).T)
    width = prob_HW.shape[1]
    prob, angle = prob_HW.ravel(), _angles(prob_HW).ravel()
    at_N = np.flatnonzero(prob)
    # The near neighbours rule most pixels out, which the far ones then need not be asked about.
    for distance in (sign * step for step in range(1, radius + 1) for sign in (-1, 1)):
        y_N, x_N = (part.astype(np.float32) for part in np.divmod(at_N, width))
        y_N += np.float32(distance) * np.sin(angle[at_N])
        x_N += np.float32(distance) * np.cos(angle[at_N])
        at_N = at_N[prob[at_N] * _MARGIN >= _sampled(prob_HW, y=y_N, x=x_N)]
    kept = np.zeros(prob_HW.shape, dtype=np.float32)
    kept.ravel()[at_N] = prob[at_N]
    _fade(kept.T)
    _fade(kept)
    return kept


def _smoothed(map_HW: Floats) -> Floats:
    """[1 2 1] / 4 along the rows' axis; the edge pixel is repeated."""
    padded = np.concatenate([map_HW[:1], map_HW, map_HW[-1:]])
    return np.asarray((padded[:-2] + np.float32(2) * padded[1:-1] + padded[2:]) * np.float32(0.25))


def _angles(map_HW: Floats) -> Floats:
    """Direction across the edge, from the second derivatives of a smoothed map.

    Units: radians in [0, pi).
    """
    wide = _triangle(map_HW.T, scale=1 / (_ANGLE_RADIUS + 1) ** 4).T
    wide = _triangle(wide, scale=1.0)
    along_y, along_x = np.gradient(wide)
    xx = np.gradient(along_x, axis=1)
    yy, yx = np.gradient(along_y)
    return np.asarray(np.mod(np.arctan(yy * np.sign(-yx) / (xx + _EPSILON)), np.float32(np.pi)))


def _triangle(map_HW: Floats, *, scale: float) -> Floats:
    """[1 2 3 4 5 4 3 2 1] times ``scale`` along the rows' axis; ends are mirrored with the edge pixel repeated.

    A running sum of running sums, as the reference has it: its rounding decides the angle where the map is flat.
    """
    radius, height = _ANGLE_RADIUS, len(map_HW)
    padded = np.pad(map_HW, ((radius + 1, radius + 1), (0, 0)), mode="symmetric")
    slope = first = padded[radius + 1].copy()
    for row in padded[radius + 2 : 2 * radius + 2]:
        slope = slope + row
        first = first + slope
    centre = padded[radius + 1 : radius + height]
    bends = padded[: height - 1] + padded[2 * radius + 2 : 2 * radius + 1 + height] - np.float32(2) * centre
    steps = np.cumsum(bends, axis=0, dtype=np.float32)
    start = (np.float32(2) * first - slope)[None]
    return np.cumsum(np.concatenate([start, steps]) * np.float32(scale), axis=0, dtype=np.float32)


def _sampled(map_HW: Floats, *, y: Floats, x: Floats) -> Floats:
    """Bilinear samples at points, which are moved inside the map."""
    height, width = map_HW.shape
    y, x = np.clip(y, np.float32(0), np.float32(height - 1.001)), np.clip(x, np.float32(0), np.float32(width - 1.001))
    top, left = y.astype(np.int32), x.astype(np.int32)
    down, right = y - top.astype(np.float32), x - left.astype(np.float32)
    up, back = np.float32(1) - down, np.float32(1) - right
    flat, corner = map_HW.ravel(), top * width + left
    return np.asarray(
        flat[corner] * back * up
        + flat[corner + 1] * right * up
        + flat[corner + width] * back * down
        + flat[corner + width + 1] * right * down
    )


def _fade(map_HW: Floats) -> None:
    """Scale the outermost rows by 0, 1/5, … 4/5, in place; two opposite rows may be one in a small map."""
    count = min(_BORDER, len(map_HW) // 2)
    for row in range(count):
        factor = np.float32(row) / np.float32(count)
        map_HW[row] *= factor
        map_HW[len(map_HW) - 1 - row] *= factor
