"""Definitions of the two labels that are conventions rather than geometry: boundaries and saliency."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.scenes.builder import CLASSES

__all__ = ["instance_edges", "salient_mask"]

_PERSON = CLASSES.index("person")
_MIN_SHARE = 0.006  # of the picture; smaller objects are never salient
_JOIN = 0.6  # objects that score at least this share of the best are salient too


def instance_edges(instance_HW: NDArray[np.int64], *, depth_HW: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Boundaries between instances, one pixel wide.

    Where two 4-neighbours belong to different instances (objects, single walls, ground, sky), the nearer pixel of the
    two is marked: the contour lies on the object that owns it. Creases inside one object are not boundaries.
    """
    edge_HW = np.zeros(instance_HW.shape, dtype=np.uint8)
    across = instance_HW[:, 1:] != instance_HW[:, :-1]
    left = depth_HW[:, :-1] <= depth_HW[:, 1:]
    edge_HW[:, :-1][across & left] = 1
    edge_HW[:, 1:][across & ~left] = 1
    down = instance_HW[1:] != instance_HW[:-1]
    upper = depth_HW[:-1] <= depth_HW[1:]
    edge_HW[:-1][down & upper] = 1
    edge_HW[1:][down & ~upper] = 1
    return edge_HW


def salient_mask(
    instance_HW: NDArray[np.int64], *, image: NDArray[np.uint8], class_I: NDArray[np.uint8], objects_from: int
) -> NDArray[np.uint8]:
    """Mask of the salient objects.

    An object (never ground, wall or sky) scores ``area^0.7 * centrality * contrast``, with a bonus of 1.6 for persons:
    ``area`` is its visible share of the picture, ``centrality`` falls from 1 in the middle to 0.3 in the corners at
    its centre of mass, and ``contrast`` is 0.35 plus the distance of its mean colour from the picture's mean. The best
    object and all that score at least 60 % of it are salient; objects below 0.6 % of the picture never are.
    """
    height, width = instance_HW.shape
    flat_N = instance_HW.reshape(-1)
    count = len(class_I)
    area_I = np.bincount(flat_N, minlength=count).astype(np.float64)
    safe_I = np.maximum(area_I, 1)
    y_N, x_N = np.divmod(np.arange(flat_N.size), width)
    y_I = np.bincount(flat_N, y_N, count) / safe_I / height - 0.5
    x_I = np.bincount(flat_N, x_N, count) / safe_I / width - 0.5
    central_I = 1.0 - 0.99 * np.sqrt(x_I**2 + y_I**2)
    pixels_N3 = image.reshape(-1, 3) / 255.0
    mean_I3 = np.stack([np.bincount(flat_N, pixels_N3[:, c], count) / safe_I for c in range(3)], 1)
    contrast_I = 0.35 + np.sqrt(((mean_I3 - pixels_N3.mean(0)) ** 2).sum(1))
    score_I = (area_I / flat_N.size) ** 0.7 * central_I * contrast_I
    score_I *= np.where(class_I == _PERSON, 1.6, 1.0)
    score_I[:objects_from] = 0.0
    score_I[area_I < _MIN_SHARE * flat_N.size] = 0.0
    best = score_I.max()
    chosen_I = (score_I >= _JOIN * best) & (score_I > 0)
    return np.asarray(chosen_I[instance_HW], dtype=np.uint8)
