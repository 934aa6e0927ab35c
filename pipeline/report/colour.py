"""Label maps, predictions and features as RGB pictures in the field's usual colours.

Legend: H, W rows and columns; C channels; h, w feature rows and columns; N tokens; K components.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.report.data import ReportError
from pipeline.report.palettes import IGNORE, class_palette
from sak.dense.registry import LABELS

__all__ = [
    "CLASS_TASKS",
    "DepthRange",
    "colour_classes",
    "colour_depth",
    "colour_normals",
    "colour_probability",
    "colour_task",
    "depth_range",
    "pca_colours",
]

CLASS_TASKS = tuple(name for name, label in LABELS.items() if label.shown == "classes")
INVALID_DEPTH = 255.0
GREY = np.array([128, 128, 128], dtype=np.uint8)

# Nine evenly spaced colours of the magma map; interpolating between them is off by at most 9 of 255.
MAGMA = (
    (0, 0, 4),
    (29, 17, 71),
    (81, 18, 124),
    (131, 38, 129),
    (183, 55, 121),
    (231, 82, 99),
    (252, 137, 97),
    (254, 196, 136),
    (252, 253, 191),
)

Picture = NDArray[np.uint8]


class DepthRange(NamedTuple):
    """The depths, in metres, that get the brightest and the darkest colour."""

    near: float
    far: float


def _refuse_stacks(array: NDArray[np.generic], *, task: str) -> None:
    if array.ndim != 2:
        raise ReportError(f"{task} map: expected shape (H, W), got {array.shape}; decode the prediction first")


def colour_classes(classes: NDArray[np.generic], *, dataset: str, task: str) -> Picture:
    """Look class indices up in the palette of a data set's task.

    Shapes:
        classes: ``(H, W)`` integers 0..255; returns ``(H, W, 3)``.

    Raises:
        ReportError: The map is not one plane of integers.
    """
    if classes.dtype.kind not in "ui":
        raise ReportError(f"{task} map: expected integer classes, got {classes.dtype}; take the arg max first")
    _refuse_stacks(classes, task=task)
    return np.asarray(class_palette(dataset, task=task)[classes.astype(np.uint8)], dtype=np.uint8)


def colour_normals(normals: NDArray[np.generic]) -> Picture:
    """Show unit vectors as (n + 1) / 2; vectors of any length are normalised and zeros become mid grey.

    Shapes:
        normals: ``(H, W, 3)``; returns ``(H, W, 3)``.

    Raises:
        ReportError: The last axis is not three.
    """
    if normals.ndim != 3 or normals.shape[2] != 3:
        raise ReportError(f"normals map: expected shape (H, W, 3), got {normals.shape}; move channels last")
    vector = np.nan_to_num(normals.astype(np.float64), posinf=0.0, neginf=0.0)
    length = np.linalg.norm(vector, axis=2, keepdims=True)
    unit = np.divide(vector, length, out=np.zeros_like(vector), where=length > 1e-8)
    return np.asarray(np.round((unit + 1.0) * 127.5), dtype=np.uint8)


def _valid_depth(depth: NDArray[np.generic]) -> NDArray[np.bool_]:
    value = depth.astype(np.float64)
    return np.asarray(np.isfinite(value) & (value > 0.0) & (value != INVALID_DEPTH))


def depth_range(maps: Sequence[NDArray[np.generic]]) -> DepthRange:
    """Range of the first map with a valid pixel, meant to be the label, so that every map of a sample shares it."""
    for depth in maps:
        valid = _valid_depth(depth)
        if valid.any():
            low, high = np.quantile(depth[valid].astype(np.float64), [0.01, 0.99])
            return DepthRange(float(low), float(max(high, low + 1e-3)))
    return DepthRange(0.0, 1.0)


def colour_depth(depth: NDArray[np.generic], *, limits: DepthRange) -> Picture:
    """Reversed magma: near is bright, far is dark, invalid is grey; outside the range it is clipped.

    Shapes:
        depth: ``(H, W)`` metres; returns ``(H, W, 3)``.
    """
    _refuse_stacks(depth, task="depth")
    value = depth.astype(np.float64)
    valid = _valid_depth(depth)
    share = np.clip((np.where(valid, value, limits.far) - limits.near) / (limits.far - limits.near), 0.0, 1.0)
    anchors = np.array(MAGMA, dtype=np.float64)
    at = np.linspace(0.0, 1.0, len(anchors))
    picture = np.stack([np.interp(1.0 - share, at, anchors[:, channel]) for channel in range(3)], axis=-1)
    return np.where(valid[..., None], np.round(picture).astype(np.uint8), GREY)


def colour_probability(heat: NDArray[np.generic], *, task: str) -> Picture:
    """Grey from black (0) to white (1); integer maps are 0/1 labels whose 255 becomes mid grey.

    Shapes:
        heat: ``(H, W)``; returns ``(H, W, 3)``.
    """
    _refuse_stacks(heat, task=task)
    value = heat.astype(np.float64)
    unknown = (value == IGNORE) if heat.dtype.kind in "ui" else ~np.isfinite(value)
    grey = np.round(np.clip(np.where(unknown, 0.0, value), 0.0, 1.0) * 255.0)
    return np.where(unknown[..., None], GREY, grey[..., None].astype(np.uint8).repeat(3, axis=-1))


def colour_task(task: str, array: NDArray[np.generic], *, dataset: str, limits: DepthRange) -> Picture:
    """Colour one label map or decoded prediction.

    Shapes:
        array: ``(H, W)``, or ``(H, W, 3)`` for ``normals``; returns ``(H, W, 3)``.

    Raises:
        ReportError: The task is unknown, or the array is not what the task's maps look like.
    """
    if task not in LABELS:
        raise ReportError(f"task {task!r}: expected one of {', '.join(LABELS)} to colour")
    shown = LABELS[task].shown
    if shown == "classes":
        return colour_classes(array, dataset=dataset, task=task)
    if shown == "directions":
        return colour_normals(array)
    if shown == "range":
        return colour_depth(array, limits=limits)
    return colour_probability(array, task=task)


class _Basis(NamedTuple):
    mean_C: NDArray[np.float64]
    axes_CK: NDArray[np.float64]
    low_K: NDArray[np.float64]
    high_K: NDArray[np.float64]


def _fit(tokens_NC: NDArray[np.float64]) -> _Basis:
    mean_C = tokens_NC.mean(axis=0)
    centred_NC = tokens_NC - mean_C
    _, vectors_CC = np.linalg.eigh(centred_NC.T @ centred_NC / len(tokens_NC))
    axes_CK = vectors_CC[:, ::-1][:, :3]
    # An eigenvector's sign is arbitrary: make its largest entry positive, or colours would flip between machines.
    largest = np.argmax(np.round(np.abs(axes_CK), 9), axis=0)
    axes_CK = axes_CK * np.where(axes_CK[largest, np.arange(axes_CK.shape[1])] < 0, -1.0, 1.0)
    scores_NK = centred_NC @ axes_CK
    low_K, high_K = np.quantile(scores_NK, [0.01, 0.99], axis=0)
    return _Basis(mean_C, axes_CK, low_K, high_K)


def _check_features(features: Sequence[NDArray[np.generic]], *, fitted: int) -> None:
    if not 1 <= fitted <= len(features):
        raise ReportError(f"PCA colours: expected 1 <= fitted <= {len(features)} maps, got {fitted}")
    shapes = [np.shape(feature) for feature in features]
    if any(len(shape) != 3 or shape[0] != shapes[0][0] for shape in shapes):
        raise ReportError(f"PCA colours: expected (C, h, w) maps of one C, got {shapes}; align the student's map first")
    if not all(np.isfinite(feature).all() for feature in features):
        raise ReportError("PCA colours: expected finite features, got NaN or infinity; check the map's source")


def pca_colours(features: Sequence[NDArray[np.generic]], *, fitted: int = 1) -> list[Picture]:
    """Colour maps by three principal components that they share.

    Mean, components and colour range come from the first ``fitted`` maps alone, so a student's map placed after its
    teacher's shows the teacher's colours exactly where it says the same.

    Shapes:
        features: each ``(C, h, w)`` with one C; h and w may differ. Returns ``(h, w, 3)`` each. A component that
        does not vary (or a C below three) is mid grey.

    Raises:
        ReportError: C differs, a value is not finite, or ``fitted`` is not in 1..len(features).
    """
    _check_features(features, fitted=fitted)
    tokens = [np.asarray(f, dtype=np.float64).reshape(np.shape(f)[0], -1).T for f in features]
    basis = _fit(np.concatenate(tokens[:fitted]))
    span_K = basis.high_K - basis.low_K
    varies_K = span_K > 1e-9 * max(1.0, float(np.abs(basis.mean_C).max()))
    pictures = []
    for feature, tokens_NC in zip(features, tokens, strict=True):
        scores_NK = (tokens_NC - basis.mean_C) @ basis.axes_CK
        shares_NK = np.divide(scores_NK - basis.low_K, span_K, out=np.full_like(scores_NK, 0.5), where=varies_K)
        picture = np.full((len(tokens_NC), 3), GREY[0], dtype=np.uint8)
        picture[:, : shares_NK.shape[1]] = np.round(np.clip(shares_NK, 0.0, 1.0) * 255.0)
        pictures.append(picture.reshape(*np.shape(feature)[1:], 3))
    return pictures
