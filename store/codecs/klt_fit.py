"""Fits codec ``klt`` to a sample of rows, shown four times and never held.

Every pass adds plain float64 sums, so that sums of several workers can be added too. Pass 1 takes moments, which give
prediction and basis; pass 2 variances of the coefficients, which give a first step; pass 3 quantises for real at steps
around it and finds the one with the asked error, and which coefficients are worth their bits; pass 4 how wide the
integers are.

Legend: N rows, T tokens, C components, H W the token grid, K kept components, D coefficients, M blocks, F factors.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from array_api_compat import array_namespace, device, to_device
from numpy.typing import NDArray

from store.codecs.base import Array, LevelSpec, require_finite
from store.codecs.blocks import Blocks, block_sides, from_blocks, to_blocks
from store.codecs.klt import Klt, KltSettings, apply_matrix, quantise
from store.codecs.packing import GROUPS
from store.errors import StoreError

__all__ = ["KltFitter"]

_FACTORS = (0.05, 0.08, 0.13, 0.22, 0.36, 0.55, 0.7, 0.85, 1.0, 1.2, 1.45)
"""Steps to try, as shares of the first guess, which knows neither the dead zone nor what dropping adds."""

_LEAST_ERROR = 1e-3
_CLIPPED = 0.02
"""Error that clipping may add to a coefficient, against that of rounding it."""

Floats = NDArray[np.float64]


@dataclass(slots=True)
class _Fit:
    """What is known of one level so far."""

    spec: LevelSpec
    blocks: Blocks
    chained: bool
    energy: float = 0.0  # asked error energy of a value
    mean: Floats = field(default_factory=lambda: np.empty(0))  # (C, T)
    offset: Floats = field(default_factory=lambda: np.empty(0))  # (C, T)
    predict: Floats | None = None
    basis: Floats = field(default_factory=lambda: np.empty(0))
    error: Floats = field(default_factory=lambda: np.empty(0))  # covariance that a decoder's error should have, (C, C)
    noise: Floats = field(default_factory=lambda: np.empty(0))  # what the error of the level before adds, per component
    variance: Floats = field(default_factory=lambda: np.empty(0))
    step: float = 0.0
    kept: NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, dtype=bool))


class KltFitter:
    """A ``store.codecs.base.Fitter``.

    Args:
        settings: Of the recipe.
        levels: Shapes of the levels to come.
    """

    passes = 4

    def __init__(self, settings: KltSettings, levels: Sequence[LevelSpec]) -> None:
        self._settings = settings
        self._fits = [
            _Fit(
                spec,
                block_sides(spec.height, spec.width, side=settings.block),
                settings.chain and index > 0 and levels[index - 1].shape[1:] == spec.shape[1:],
            )
            for index, spec in enumerate(levels)
        ]
        self._pass = 0
        self._codec: Klt | None = None
        self.sums: dict[str, Floats] = {}

    @property
    def rows(self) -> int:
        """Calibration rows wanted."""
        return self._settings.rows

    def add(self, feats: Sequence[Array], /) -> None:
        """Take one batch: for each level float ``(N, C, H, W)``.

        Raises:
            StoreError: The shapes are not the levels', or a value is not finite.
        """
        expected = [fit.spec.shape for fit in self._fits]
        if [tuple(feat.shape[1:]) for feat in feats] != expected:
            raise StoreError(f"codec klt: expected maps of {expected}, got {[tuple(feat.shape) for feat in feats]}")
        for index, feat in enumerate(feats):
            require_finite(feat, level=index)
        steps = (self._add_moments, self._add_variances, self._add_errors, self._add_widths)
        steps[self._pass](feats)

    def part(self) -> KltFitter:
        """A fitter in the same pass that has seen nothing of it."""
        found = copy.copy(self)  # what is known so far changes only between passes, so it is shared
        found.sums = {}
        return found

    def merge(self, sums: Mapping[str, Floats], /) -> None:
        """Add the ``sums`` of another fitter in the same pass, which has seen other rows."""
        for name, values in sums.items():
            self.sums[name] = self.sums.get(name, np.zeros(())) + values

    def end_pass(self) -> None:
        """Draw the pass's conclusions.

        Raises:
            StoreError: No row was shown.
        """
        if not self.sums:
            raise StoreError("codec klt: expected rows to fit to, got none; check that the view set has usable images")
        ends = (self._end_moments, self._end_variances, self._end_errors, self._end_widths)
        ends[self._pass]()
        self._pass, self.sums = self._pass + 1, {}

    def codec(self) -> Klt:
        """The fitted codec.

        Raises:
            StoreError: A pass is missing.
        """
        if self._codec is None:
            raise StoreError(f"codec klt: expected {self.passes} passes over the sample, got {self._pass}")
        return self._codec

    # Pass 1: moments

    def _add_moments(self, feats: Sequence[Array]) -> None:
        below_TC: Array = None
        for index, feat in enumerate(feats):
            xp = array_namespace(feat)
            components = feat.shape[1]
            feat_CT = xp.reshape(xp.permute_dims(xp.astype(feat, xp.float64), (1, 0, 2, 3)), (components, -1))
            self._sum(f"rows_{index}", np.array(float(feat.shape[0])))
            self._sum(f"map_{index}", xp.reshape(xp.sum(xp.astype(feat, xp.float64), axis=0), (components, -1)))
            self._sum(f"gram_{index}", xp.matmul(feat_CT, feat_CT.T))
            if self._fits[index].chained:
                self._sum(f"cross_{index}", xp.matmul(feat_CT, below_TC.T))
            below_TC = feat_CT

    def _end_moments(self) -> None:
        for index, fit in enumerate(self._fits):
            rows, components = float(self.sums[f"rows_{index}"]), fit.spec.components
            places_CT = self.sums[f"map_{index}"] / rows
            raw = self.sums[f"gram_{index}"] / (rows * places_CT.shape[1])
            fit.energy = self._settings.error**2 * float(np.trace(raw)) / components
            if fit.energy <= 0:
                raise StoreError(f"codec klt: level {index}: all features are zero; check the teacher and its images")
            fit.mean = fit.offset = _mean_map(places_CT, power=float(np.trace(raw)), rows=rows)
            rest = raw - _moved(places_CT, fit.mean, places_CT, fit.mean)
            fit.noise = np.zeros(components)
            if fit.chained:
                below, below_CT = self._fits[index - 1], self.sums[f"map_{index - 1}"] / rows
                gram = self.sums[f"gram_{index - 1}"] / (rows * places_CT.shape[1])
                gram = gram - _moved(below_CT, below.mean, below_CT, below.mean)
                gram += below.error  # a decoder predicts from a map with that error
                cross = self.sums[f"cross_{index}"] / (rows * places_CT.shape[1])
                cross = cross - _moved(places_CT, fit.mean, below_CT, below.mean)
                predict = np.asarray(np.linalg.solve(gram, cross.T).T, dtype=np.float64)
                rest = rest - predict @ cross.T
                fit.predict, fit.offset = predict, fit.mean - predict @ below.mean
            fit.basis = _principal(rest)
            fit.error = _left_over(rest, fit.basis, energy=fit.energy)
            if fit.predict is not None:
                spread = fit.basis.T @ fit.predict
                fit.noise = np.einsum("kc,cd,kd->k", spread, self._fits[index - 1].error, spread)

    # Pass 2: variances of coefficients, predicted from clean maps

    def _add_variances(self, feats: Sequence[Array]) -> None:
        for index, feat in enumerate(feats):
            xp = array_namespace(feat)
            coefficients = self._analyse(index, feat, feats[index - 1] if index else None)
            self._sum(f"count_{index}", np.array(float(coefficients.shape[0] * coefficients.shape[2])))
            self._sum(f"power_{index}", xp.sum(xp.astype(coefficients, xp.float64) ** 2, axis=(0, 2)))

    def _end_variances(self) -> None:
        for index, fit in enumerate(self._fits):
            noise = np.repeat(fit.noise, fit.blocks.height * fit.blocks.width)
            fit.variance = self.sums[f"power_{index}"] / self.sums[f"count_{index}"] + noise
            fit.step = float(np.sqrt(12 * _water_level(fit.variance, energy=fit.energy)))

    # Pass 3: real errors at several steps, predicted from maps as a decoder has them

    def _add_errors(self, feats: Sequence[Array]) -> None:
        below = None
        for index, feat in enumerate(feats):
            xp, fit = array_namespace(feat), self._fits[index]
            coefficients = self._analyse(index, feat, below)
            power = xp.sum(xp.astype(coefficients, xp.float64) ** 2, axis=(0, 2))
            self._sum(f"power_{index}", power)
            self._sum(f"count_{index}", np.array(float(coefficients.shape[0] * coefficients.shape[2])))
            for place, factor in enumerate(_FACTORS):
                integers = quantise(coefficients, step=fit.step * factor)
                magnitude = xp.astype(xp.abs(integers), xp.float32)
                error = coefficients - xp.astype(integers, xp.float32) * (fit.step * factor)
                self._sum(f"error_{index}_{place}", xp.sum(error**2, axis=(0, 2)))
                self._sum(f"size_{index}_{place}", xp.sum(magnitude, axis=(0, 2)))
                self._sum(f"used_{index}_{place}", xp.sum(xp.clip(magnitude, 0.0, 1.0), axis=(0, 2)))
            below = self._decoded(index, coefficients, feat, below)

    def _end_errors(self) -> None:
        for index, fit in enumerate(self._fits):
            count, power = self.sums[f"count_{index}"], self.sums[f"power_{index}"]
            errors = [self._with_dropped(index, place)[1].sum() / count / len(power) for place in range(len(_FACTORS))]
            # Errors grow with the step nearly as a power of it, so the asked one is found between logarithms.
            logs = np.log(np.maximum.accumulate(np.maximum(errors, 1e-30)) * (1 + 1e-9 * np.arange(len(errors))))
            factor = float(np.exp(np.interp(np.log(fit.energy), logs, np.log(_FACTORS))))
            nearest = int(np.argmin(np.abs(np.log(_FACTORS) - np.log(factor))))
            fit.kept, _ = self._with_dropped(index, nearest)
            if not fit.kept.any():
                fit.kept[int(np.argmax(power))] = True
            fit.step *= factor
            fit.variance = power / count

    def _with_dropped(self, index: int, place: int) -> tuple[NDArray[np.bool_], Floats]:
        """Coefficients worth their bits at one step, and the error energy of all when the others are dropped."""
        count, power = self.sums[f"count_{index}"], self.sums[f"power_{index}"]
        error = self.sums[f"error_{index}_{place}"]
        bits = count * _bits(
            self.sums[f"used_{index}_{place}"] / count,
            self.sums[f"size_{index}_{place}"] / np.maximum(self.sums[f"used_{index}_{place}"], 1),
        )
        # A bit more everywhere quarters the error, step^2 / 12: what a bit buys elsewhere, a coefficient must match.
        price = 2 * np.log(2) * (self._fits[index].step * _FACTORS[place]) ** 2 / 12
        kept = power - error > price * bits
        return kept, np.where(kept, error, power)

    # Pass 4: how wide the integers are

    def _add_widths(self, feats: Sequence[Array]) -> None:
        below = None
        for index, feat in enumerate(feats):
            xp, fit = array_namespace(feat), self._fits[index]
            coefficients = self._analyse(index, feat, below)
            scaled = xp.abs(coefficients) * (1 / fit.step)
            magnitude = xp.astype(xp.abs(quantise(coefficients, step=fit.step)), xp.float32)
            used = xp.clip(magnitude, 0.0, 1.0)
            self._sum(f"count_{index}", np.array(float(scaled.shape[0] * scaled.shape[2])))
            self._sum(f"used_{index}", xp.sum(used, axis=(0, 2)))
            self._sum(f"nearer_{index}", xp.sum((magnitude - scaled) * used, axis=(0, 2)))
            for place, group in enumerate(GROUPS):
                beyond = (scaled - xp.clip(magnitude, 0.0, float(group.largest))) ** 2 - (scaled - magnitude) ** 2
                self._sum(f"clipped_{index}_{place}", xp.sum(beyond, axis=(0, 2)))
            below = self._decoded(index, coefficients, feat, below)

    def _end_widths(self) -> None:
        fitted: dict[str, NDArray[np.generic]] = {}
        for index, fit in enumerate(self._fits):
            fits = np.array([self.sums[f"clipped_{index}_{place}"] for place in range(len(GROUPS))])
            fits = fits <= _CLIPPED / 12 * self.sums[f"count_{index}"]
            fits[0] = True  # what even two bytes cannot hold is clipped
            group = len(GROUPS) - 1 - np.argmax(fits[::-1], axis=0)
            order = np.lexsort((np.arange(len(group)), -fit.variance, group))
            order = order[fit.kept[order]]
            area = fit.blocks.height * fit.blocks.width
            components = np.unique(order // area)
            place_of = np.zeros(fit.basis.shape[1], dtype=np.int64)
            place_of[components] = np.arange(len(components))
            groups = np.bincount(group[order], minlength=len(GROUPS))
            nearer = [self._nearer(index, order[group[order] == place]) for place in range(len(GROUPS))]
            arrays: dict[str, NDArray[np.generic]] = {
                "grid": np.array(fit.spec.shape[1:], np.int32),
                "offset": fit.offset.astype(np.float32).reshape(fit.spec.shape),
                "basis": np.ascontiguousarray(fit.basis[:, components], dtype=np.float32),
                "order": (place_of[order // area] * area + order % area).astype(np.int32),
                "groups": groups.astype(np.int32),
                "steps": np.array([fit.step, *nearer], np.float32),
            }
            if fit.predict is not None:
                arrays["predict"] = fit.predict.astype(np.float32)
            fitted |= {f"{name}_{index}": values for name, values in arrays.items()}
        settings = self._settings
        self._codec = Klt(
            error=settings.error, rows=settings.rows, block=settings.block, chain=settings.chain, fitted=fitted
        )

    def _nearer(self, index: int, members: NDArray[np.int64]) -> float:
        """How much nearer to zero than their multiples of the step the values of a group lie on average, in steps."""
        used = float(self.sums[f"used_{index}"][members].sum())
        return float(self.sums[f"nearer_{index}"][members].sum()) / used if used else 0.0

    # Shared by passes

    def _analyse(self, index: int, feat_NCHW: Array, below_NCHW: Array | None) -> Array:
        """All coefficients ``(N, D, M)`` of what a prediction leaves."""
        xp, fit = array_namespace(feat_NCHW), self._fits[index]
        rest = xp.astype(feat_NCHW, xp.float32) - self._guess(index, feat_NCHW, below_NCHW)
        return to_blocks(apply_matrix(_like(fit.basis.T, feat_NCHW), rest), fit.blocks)

    def _guess(self, index: int, like: Array, below_NCHW: Array | None) -> Array:
        xp, fit = array_namespace(like), self._fits[index]
        offset = xp.reshape(_like(fit.offset, like), (1, *fit.spec.shape))
        if fit.predict is None:
            return offset
        return apply_matrix(_like(fit.predict, like), xp.astype(below_NCHW, xp.float32)) + offset

    def _decoded(self, index: int, coefficients: Array, feat_NCHW: Array, below_NCHW: Array | None) -> Array:
        """The map that a decoder would have, were all coefficients kept and none clipped; None where none asks."""
        fit = self._fits[index]
        if index + 1 == len(self._fits) or not self._fits[index + 1].chained:
            return None
        xp = array_namespace(coefficients)
        values = xp.astype(quantise(coefficients, step=fit.step), xp.float32) * fit.step
        if fit.kept.size:
            values = values * _like(fit.kept[:, None].astype(np.float64), coefficients)
        rest = apply_matrix(_like(fit.basis, feat_NCHW), from_blocks(values, fit.blocks, fit.spec.shape[1:]))
        return rest + self._guess(index, feat_NCHW, below_NCHW)

    def _sum(self, name: str, values: Array) -> None:
        plain = np.asarray(values if isinstance(values, np.ndarray) else to_device(values, "cpu"), dtype=np.float64)
        self.sums[name] = self.sums.get(name, np.zeros(())) + plain


def _water_level(variances: Floats, *, energy: float) -> float:
    """The error of every coefficient that has more variance, when the others are dropped and the mean is as asked."""
    low, high = 0.0, 12 * float(variances.max()) + energy
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(variances, middle).mean() < energy else (low, middle)
    return high


def _left_over(covariance_CC: Floats, basis_CK: Floats, *, energy: float) -> Floats:
    """Covariance of the error that reverse water-filling leaves: most of it where most of the variance is."""
    variances_K = np.einsum("ck,cd,dk->k", basis_CK, covariance_CC, basis_CK)
    errors_K = np.minimum(variances_K, _water_level(variances_K, energy=energy))
    # Where the sample has no variance at all a decoder's error is not zero, nor may a prediction rely on it.
    errors_K = np.maximum(errors_K, _LEAST_ERROR * energy)
    return np.asarray((basis_CK * errors_K) @ basis_CK.T)


def _like(values: NDArray[np.float64], like: Array) -> Array:
    xp = array_namespace(like)
    return xp.asarray(np.ascontiguousarray(values, dtype=np.float32), device=device(like))


def _mean_map(places_CT: Floats, *, power: float, rows: float) -> Floats:
    """Mean of every position, drawn towards the mean of all as far as the sample is too small to tell them apart.

    Networks with a position embedding have one; on SAM 2's maps it explains up to 40 % of the variance.
    """
    mean_C1 = places_CT.mean(axis=1, keepdims=True)
    between = float(((places_CT - mean_C1) ** 2).sum(axis=0).mean())
    within = max(0.0, power - float((mean_C1**2).sum()) - between)
    sure = max(0.0, 1 - within / rows / between) if between > 0 else 0.0
    return np.asarray(mean_C1 + sure * (places_CT - mean_C1))


def _moved(one_CT: Floats, one_mean_CT: Floats, other_CT: Floats, other_mean_CT: Floats) -> Floats:
    """What a second moment about zero exceeds the one about mean maps by, from the averages of every position."""
    moved = one_CT @ other_mean_CT.T + one_mean_CT @ other_CT.T - one_mean_CT @ other_mean_CT.T
    return np.asarray(moved / one_CT.shape[1])


def _principal(covariance: Floats) -> Floats:
    """Eigenvectors by falling eigenvalue, each with its largest entry positive so that the sign is defined."""
    _, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    vectors = vectors[:, ::-1]
    largest = np.abs(vectors).argmax(axis=0)
    return np.asarray(vectors * np.sign(vectors[largest, np.arange(vectors.shape[1])]))


def _bits(used: Floats, size: Floats) -> Floats:
    """Bits a value: is it zero, its sign, and a magnitude of geometric distribution with that mean."""
    share = np.clip(used, 1e-12, 1 - 1e-12)
    whether = -share * np.log2(share) - (1 - share) * np.log2(1 - share)
    stop = 1 / np.maximum(size, 1 + 1e-9)
    magnitude = (-(1 - stop) * np.log2(1 - stop) - stop * np.log2(stop)) / stop
    return np.asarray(whether + share * (1 + magnitude))
