"""odsF, the boundary metric of the field, without MATLAB: suppression, thinning, matching and scores.

Deterministic. The published tool (SEISM) matches with random links and loses about 0.05 % of the pairs by them, so that
the odsF here is 0.03 to 0.04 points above its; the definition is otherwise the same to the bit.

Legend: H, W image rows and columns; N images; T thresholds, 99 of protocol ``sak``; the last axis of counts is
(cntR, sumR, cntP, sumP).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sak.errors import SakError, UnknownNameError
from sak.odsf.match import Matcher
from sak.odsf.nms import SMALLEST, suppress_floats
from sak.odsf.score import COUNTS, Curve, average_precision, best_per_image, pooled_curve
from sak.odsf.thin import boundary_pixels, thin, thin_pixels

__all__ = [
    "COUNTS",
    "MAX_DIST",
    "PROTOCOLS",
    "Curve",
    "Protocol",
    "Scores",
    "image_counts",
    "label_edges",
    "match_counts",
    "pr_curve",
    "protocol_named",
    "scores",
    "suppress",
]

Bytes = NDArray[np.uint8]
Counts = NDArray[np.int64]

MAX_DIST: Mapping[str, float] = MappingProxyType({"pascalcontext": 0.0075, "nyud": 0.011, "scenes": 0.0075})
"""Longest distance of a matched pair by data set, as a share of the image's diagonal, as published."""

_LARGEST_DIST = 0.1
_HUNDREDTHS = tuple(step / 100 for step in range(1, 100))


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """How a prediction becomes masks; everything after that is the same in all protocols, and their numbers do not mix.

    Attributes:
        smooth: Whether a [1 2 1] filter goes before suppression.
        radius: Reach of the suppression in pixels; 0 for none.
        rounded: Whether the suppressed map is stored in 8 bits before it is compared with thresholds.
        inclusive: Whether a pixel that equals the threshold counts.
        thresholds: Ascending, in (0, 1).
    """

    name: str
    smooth: bool
    radius: int
    rounded: bool
    inclusive: bool
    thresholds: tuple[float, ...] = _HUNDREDTHS


PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {
        protocol.name: protocol
        for protocol in (
            Protocol(name="sak", smooth=True, radius=4, rounded=True, inclusive=True),
            Protocol(
                name="invpt",
                smooth=False,
                radius=1,
                rounded=False,
                inclusive=False,
                thresholds=(0.001, *_HUNDREDTHS, 0.999),
            ),
            Protocol(name="mtinet", smooth=False, radius=0, rounded=True, inclusive=True),
        )
    }
)
"""The three in use: of SAK and MTDP_Lib; of ATRC, InvPT and TaskPrompter; of MTI-Net.

Source: the evaluation code that each of them published, as measured for this project.
"""


class Scores(NamedTuple):
    """Scores of a set of images.

    Units: fractions from 0 to 1 (``AP`` at most 1.01); tables show per cent.

    Attributes:
        odsF: F at the one threshold that is best for the set.
        oisF: F with each image at the threshold that is best for it. An image without a true boundary enters at the
            lowest threshold, so that oisF can be below odsF.
        AP: Average precision.
        threshold: That of odsF; the lowest of several.
        protocol: Name in ``PROTOCOLS``.
    """

    odsF: float
    oisF: float
    AP: float
    threshold: float
    protocol: str


def protocol_named(name: str, /) -> Protocol:
    """The named protocol.

    Raises:
        UnknownNameError: There is none; the message lists those there are.
    """
    if name not in PROTOCOLS:
        raise UnknownNameError(f"unknown boundary protocol {name!r}: expected one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def suppress(prediction_HW: Bytes) -> Bytes:
    """Non-maximum suppression of protocol ``sak``: smoothed, radius 4, stored in 8 bits.

    Args:
        prediction_HW: ``uint8(255 sigmoid(logit))``, truncated.

    Shapes:
        ``(H, W)``, at least 2 x 2.

    Raises:
        SakError: Another shape or type.
    """
    return _rounded(_suppressed(_checked_prediction(prediction_HW), PROTOCOLS["sak"]))


def label_edges(labels_HW: NDArray[np.generic]) -> NDArray[np.bool_]:
    """The true boundary that predictions are matched with: where a label map changes, thinned.

    Args:
        labels_HW: A label map (PASCAL-Context's ``LabelMap``), or a 0/1 boundary map (NYUD's), which is treated alike.

    Shapes:
        ``(H, W)``.

    Raises:
        SakError: Another shape, or no numbers.
    """
    if labels_HW.ndim != 2 or labels_HW.dtype.kind not in "biuf":
        raise SakError(
            f"boundary labels: expected numbers (H, W), got {labels_HW.dtype} {labels_HW.shape}; give one label map"
        )
    return thin(boundary_pixels(labels_HW))


def match_counts(suppressed_HW: Bytes, edges_HW: NDArray[np.bool_], max_dist: float) -> Counts:
    """The four counts at each threshold of protocol ``sak``.

    Args:
        suppressed_HW: What ``suppress`` returns.
        edges_HW: What ``label_edges`` returns.
        max_dist: Longest distance of a matched pair, as a share of the image's diagonal; see ``MAX_DIST``.

    Shapes:
        ``(H, W)`` both; returns ``(99, 4)``.

    Raises:
        SakError: The two differ in size, are of another type, or ``max_dist`` is out of range.

    Source:
        The published matching minimises the pairs' distances plus 100 times the tolerance for every pixel left over.
        Here the number of pairs is maximised: the same number wherever the two were compared, and at most 1 % apart.
    """
    protocol = PROTOCOLS["sak"]
    ranks_HW = _byte_ranks(_checked_prediction(suppressed_HW), protocol)
    return _counts(ranks_HW, edges_HW, protocol, max_dist=max_dist)


def image_counts(
    prediction_HW: Bytes, labels_HW: NDArray[np.generic], *, max_dist: float, protocol: str = "sak"
) -> Counts:
    """All of one image: a raw prediction and a label map to counts by any protocol.

    Shapes:
        ``(H, W)`` both; returns ``(T, 4)``.

    Raises:
        SakError: As ``suppress``, ``label_edges`` and ``match_counts``.
        UnknownNameError: There is no such protocol.
    """
    rules = protocol_named(protocol)
    kept_HW = _suppressed(_checked_prediction(prediction_HW), rules)
    ranks_HW = _byte_ranks(_rounded(kept_HW), rules) if rules.rounded else _ranks(kept_HW.astype(np.float64), rules)
    return _counts(ranks_HW, label_edges(labels_HW), rules, max_dist=max_dist)


def scores(counts: NDArray[np.integer], *, protocol: str = "sak") -> Scores:
    """Scores of a set of images from their counts.

    Shapes:
        ``(N, T, 4)``, or ``(T, 4)`` for one image.

    Raises:
        SakError: Another shape, or no image.
        UnknownNameError: There is no such protocol.
    """
    rules = protocol_named(protocol)
    counts_NT4 = _checked_counts(counts, rules)
    curve = pooled_curve(counts_NT4.sum(axis=0))
    best = int(curve.f.argmax())
    chosen_N4 = counts_NT4[np.arange(len(counts_NT4)), best_per_image(counts_NT4)]
    return Scores(
        odsF=float(curve.f[best]),
        oisF=float(pooled_curve(chosen_N4.sum(axis=0)).f),
        AP=average_precision(curve),
        threshold=rules.thresholds[best],
        protocol=protocol,
    )


def pr_curve(counts: NDArray[np.integer], *, protocol: str = "sak") -> Curve:
    """Precision, recall and F of a set of images at each threshold.

    Shapes:
        As ``scores``; returns ``(T,)`` each.

    Raises:
        SakError, UnknownNameError: As ``scores``.
    """
    return pooled_curve(_checked_counts(counts, protocol_named(protocol)).sum(axis=0))


def _checked_prediction(prediction_HW: Bytes) -> Bytes:
    if prediction_HW.dtype != np.uint8 or prediction_HW.ndim != 2 or min(prediction_HW.shape) < SMALLEST:
        raise SakError(
            f"boundary prediction: expected uint8 (H, W) of at least {SMALLEST} x {SMALLEST}, got"
            f" {prediction_HW.dtype} {prediction_HW.shape}; store uint8(255 * sigmoid(logit)) in one channel"
        )
    return prediction_HW


def _suppressed(prediction_HW: Bytes, rules: Protocol) -> NDArray[np.float32]:
    prob_HW = prediction_HW.astype(np.float32) / np.float32(255)
    return suppress_floats(prob_HW, smooth=rules.smooth, radius=rules.radius) if rules.radius else prob_HW


def _rounded(map_HW: NDArray[np.float32]) -> Bytes:
    return np.asarray(np.floor(map_HW * np.float32(255) + np.float32(0.5)), dtype=np.uint8)


def _ranks(values: NDArray[np.float64], rules: Protocol) -> Bytes:
    """How many thresholds each value passes; at most 101."""
    side: Literal["right", "left"] = "right" if rules.inclusive else "left"
    return np.asarray(np.searchsorted(rules.thresholds, values, side=side), dtype=np.uint8)


def _byte_ranks(map_HW: Bytes, rules: Protocol) -> Bytes:
    return np.asarray(_ranks(np.arange(256) / 255, rules)[map_HW])


def _counts(ranks_HW: Bytes, edges_HW: NDArray[np.bool_], rules: Protocol, *, max_dist: float) -> Counts:
    if edges_HW.dtype != np.bool_ or edges_HW.shape != ranks_HW.shape:
        raise SakError(
            f"boundary: expected bool edges of the prediction's size {ranks_HW.shape}, got {edges_HW.dtype}"
            f" {edges_HW.shape}; crop padding off the prediction, and never resize it"
        )
    if not 0 < max_dist <= _LARGEST_DIST:
        raise SakError(
            f"boundary: expected a tolerance in (0, {_LARGEST_DIST}] of the diagonal, got {max_dist};"
            " 0.0075 is PASCAL-Context's and 0.011 NYUD's"
        )
    matcher, true = Matcher(edges_HW, max_dist=max_dist), int(edges_HW.sum())
    pixels = np.flatnonzero(ranks_HW)
    ranks = ranks_HW.ravel()[pixels]
    rows: list[tuple[int, int, int, int]] = []
    for index in range(len(rules.thresholds)):
        passed = ranks > index
        if rows and passed.all():  # the same mask as before
            rows.append(rows[-1])
            continue
        pixels, ranks = pixels[passed], ranks[passed]
        thinned = thin_pixels(pixels, shape=ranks_HW.shape)
        pairs = matcher.count(thinned)
        rows.append((pairs, true, pairs, len(thinned)))
    return np.array(rows, dtype=np.int64)


def _checked_counts(counts: NDArray[np.integer], rules: Protocol) -> Counts:
    wanted = (len(rules.thresholds), len(COUNTS))
    counts_NT4 = counts[None] if counts.ndim == 2 else counts
    if counts_NT4.ndim != 3 or counts_NT4.shape[1:] != wanted or not len(counts_NT4) or counts.dtype.kind not in "iu":
        raise SakError(
            f"boundary counts: expected integers (N, {wanted[0]}, {wanted[1]}) of protocol {rules.name!r} and at least"
            f" one image, got {counts.dtype} {counts.shape}; score each protocol's counts by its own name"
        )
    return counts_NT4.astype(np.int64)
