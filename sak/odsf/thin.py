"""Thinning of masks to lines one pixel wide, and boundaries of label maps.

Legend: H, W image rows and columns; N pixels.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["boundary_pixels", "thin", "thin_pixels"]

Mask = NDArray[np.bool_]
Pixels = NDArray[np.int64]


def boundary_pixels(labels_HW: NDArray[np.generic]) -> Mask:
    """Pixels whose label differs from that of their right, lower or lower right neighbour.

    A 0/1 map of boundaries goes the same way: its lines become two pixels wide and are thinned back.

    Shapes:
        ``(H, W)`` of any type that has equality.
    """
    found = np.zeros(labels_HW.shape, dtype=np.bool_)
    found[:, :-1] |= labels_HW[:, :-1] != labels_HW[:, 1:]
    found[:-1] |= labels_HW[:-1] != labels_HW[1:]
    found[:-1, :-1] |= labels_HW[:-1, :-1] != labels_HW[1:, 1:]
    return found


def thin(mask_HW: Mask) -> Mask:
    """Thin a mask until nothing can go without breaking a line.

    Shapes:
        ``(H, W)``.

    Source: the parallel algorithm of two sub-iterations that MATLAB documents for ``bwmorph(…, 'thin', Inf)``.
    """
    thinned = np.zeros(mask_HW.shape, dtype=np.bool_)
    thinned.ravel()[thin_pixels(np.flatnonzero(mask_HW), shape=mask_HW.shape)] = True
    return thinned


def thin_pixels(pixels_N: Pixels, *, shape: tuple[int, ...]) -> Pixels:
    """The same on flat indices of the pixels that are set, ascending.

    Only neighbours of what the last two sub-iterations deleted are looked at again: elsewhere nothing has changed.
    """
    stride = shape[1] + 2
    around = np.array([1, 1 - stride, -stride, -stride - 1, -1, stride - 1, stride, stride + 1])  # E, NE, N, … SE
    is_set = np.zeros((shape[0] + 2) * stride, dtype=np.bool_)
    inside = pixels_N + 2 * (pixels_N // shape[1]) + stride + 1
    is_set[inside] = True
    asked, before, turn = inside, inside[:0], 0
    while len(asked):
        code = np.packbits(is_set[asked[:, None] + around], axis=1, bitorder="little")[:, 0]
        gone = asked[_removable()[turn % 2][code]]
        is_set[gone] = False
        asked = (
            _set_near(np.concatenate([before, gone]), around=around, is_set=is_set) if turn else asked[is_set[asked]]
        )
        before, turn = gone, turn + 1
    return np.asarray(pixels_N[is_set[inside]])


def _set_near(pixels: Pixels, *, around: Pixels, is_set: Mask) -> Pixels:
    near = (pixels[:, None] + around).ravel()
    return np.unique(near[is_set[near]])


@cache
def _removable() -> tuple[Mask, Mask]:
    """For each sub-iteration, whether a pixel goes, by the code of its eight neighbours (bit 0 is E, then NE, N, …)."""
    code = np.arange(256)
    east, north_east, north, north_west, west, south_west, south, south_east = (
        (code >> bit & 1).astype(np.bool_) for bit in range(8)
    )
    ring = (east, north_east, north, north_west, west, south_west, south, south_east, east)
    crossings = sum((~ring[i] & (ring[i + 1] | ring[i + 2])).astype(np.int64) for i in (0, 2, 4, 6))
    first = sum((ring[i] | ring[i + 1]).astype(np.int64) for i in (0, 2, 4, 6))
    second = sum((ring[i + 1] | ring[i + 2]).astype(np.int64) for i in (0, 2, 4, 6))
    fewest = np.minimum(first, second)
    may_go = (crossings == 1) & (fewest >= 2) & (fewest <= 3)
    return (
        may_go & ~((north_east | north | ~south_east) & east),
        may_go & ~((south_west | south | ~north_west) & west),
    )
