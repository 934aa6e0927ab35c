"""Precision, recall and F of a data set from its images' counts.

Legend: N images, T thresholds; the last axis of counts is (cntR, sumR, cntP, sumP): true pixels found and in all,
predicted pixels that are right and in all.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["COUNTS", "Curve", "average_precision", "best_per_image", "f_measure", "pooled_curve"]

COUNTS = ("cntR", "sumR", "cntP", "sumP")
"""Names of the four counts, in order."""

_DECIMALS = 6  # to which the reference writes an image's F before it looks for the best

Counts = NDArray[np.integer]
Floats = NDArray[np.float64]


class Curve(NamedTuple):
    """Quality at each threshold.

    Shapes:
        each ``(T,)``.
    """

    precision: Floats
    recall: Floats
    f: Floats


def pooled_curve(counts_T4: Counts) -> Curve:
    """Precision, recall and F of counts that are summed over images.

    Shapes:
        ``(T, 4)`` or any ``(…, 4)``.
    """
    found, true, right, predicted = np.moveaxis(counts_T4, -1, 0)
    nothing = found == 0
    recall = np.where(true == 0, 1.0, np.where(nothing, 0.0, found / np.maximum(true, 1)))
    precision = np.where((true == 0) | nothing, 0.0, right / np.maximum(predicted, 1))
    recall, precision = np.where(predicted == 0, 0.0, recall), np.where(predicted == 0, 1.0, precision)
    return Curve(precision, recall, f_measure(precision, recall))


def f_measure(precision: Floats, recall: Floats) -> Floats:
    """Harmonic mean, 0 where both are 0."""
    total = precision + recall
    return np.where(total > 0, 2 * precision * recall / np.where(total > 0, total, 1.0), 0.0)


def best_per_image(counts_NT4: Counts) -> NDArray[np.intp]:
    """Index of the first threshold at which each image's F, to six decimals, is largest.

    Shapes:
        ``(N, T, 4)`` to ``(N,)``.
    """
    found, true, right, predicted = np.moveaxis(counts_NT4, -1, 0)
    recall = np.where(true == 0, 1.0, found / np.maximum(true, 1))
    precision = np.where(true == 0, 0.0, np.where(predicted == 0, 1.0, right / np.maximum(predicted, 1)))
    return np.asarray(np.round(f_measure(precision, recall), _DECIMALS).argmax(axis=1))


def average_precision(curve: Curve) -> float:
    """Mean of the precision at recalls 0, 0.01, … 1 that the curve reaches, 0 where it has one recall alone."""
    recall, first = np.unique(curve.recall, return_index=True)
    if len(recall) < 2:
        return 0.0
    at = np.interp(np.arange(101) / 100, recall, curve.precision[first], left=np.nan, right=np.nan)
    return float(np.nansum(at) / 100)
