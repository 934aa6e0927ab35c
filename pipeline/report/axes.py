"""Axes of the report's charts: scale, ticks, and long series made short."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Axis", "finite_runs", "make_axis", "thinned", "tick_text"]

MOST_POINTS = 120
LOG_FROM_RATIO = 8.0


class Axis(NamedTuple):
    """A linear or logarithmic scale from ``low`` to ``high`` with its tick values."""

    low: float
    high: float
    log: bool
    ticks: tuple[float, ...]

    def place(self, value: float) -> float:
        """Position of a value, 0 at ``low`` and 1 at ``high``."""
        if self.log:
            return (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return (value - self.low) / (self.high - self.low)


def _steps_125() -> Iterator[float]:
    for power in range(-12, 13):
        yield from (factor * 10.0**power for factor in (1.0, 2.0, 2.5, 5.0))


def _linear(low: float, high: float, *, most: int) -> tuple[float, ...]:
    step = next((s for s in _steps_125() if (high - low) / s <= most), high - low)
    first = math.ceil(low / step - 1e-9)
    return tuple(round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1))


def _logarithmic(low: float, high: float, *, most: int) -> tuple[float, ...]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,)):
        ticks = [f * 10.0**p for p in powers for f in factors]
        ticks = [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
        if len(ticks) <= most:
            return tuple(ticks)
    return tuple(ticks[:: math.ceil(len(ticks) / most)])


def make_axis(values: Sequence[float], *, allow_log: bool = False, most: int = 5, margin: float = 0.04) -> Axis:
    """Scale over finite values; logarithmic when allowed, all are positive and they span a factor of eight."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    if allow_log and low > 0.0 and LOG_FROM_RATIO < high / low < math.inf:
        stretch = (high / low) ** margin
        low, high = low / stretch, high * stretch
        return Axis(low, high, True, _logarithmic(low, high, most=most + 1))
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-12):
        pad = max(abs(low) * 0.1, 0.5 if low == 0 else 1e-9)
        low, high = low - pad, high + pad
    pad = (high - low) * margin
    low, high = low - pad, high + pad
    return Axis(low, high, False, _linear(low, high, most=most))


def tick_text(value: float) -> str:
    """A tick's number, short: ``0.05``, ``12``, ``2k``, ``1e-06``."""
    if value != 0 and (abs(value) >= 1e6 or abs(value) < 1e-4):
        return f"{value:.3g}".replace("-", "\u2212")
    if abs(value) >= 1000:
        return f"{value / 1000:g}k".replace("-", "\u2212")
    return f"{value:.6g}".replace("-", "\u2212")


class Points(NamedTuple):
    """A series short enough to draw; ``per_point`` is the most steps that one point is the mean of."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    per_point: int


def thinned(x: NDArray[np.generic], y: NDArray[np.generic], *, most: int = MOST_POINTS) -> Points:
    """Average neighbouring steps so that at most ``most`` points stay; NaN stays NaN, it is not averaged away.

    Shapes:
        x, y: ``(S,)``; returns ``(P,)`` each with P <= ``most``.
    """
    bins = np.array_split(np.arange(len(x)), min(most, max(1, len(x)))) if len(x) else []
    xs = np.array([x[i].astype(np.float64).mean() for i in bins])
    ys = np.array([y[i].astype(np.float64).mean() for i in bins])
    return Points(xs, ys, max((len(i) for i in bins), default=1))


def finite_runs(points: Points) -> list[list[int]]:
    """Indices of consecutive finite points: a line is broken where a loss was not finite."""
    runs: list[list[int]] = [[]]
    for index, value in enumerate(points.y):
        if math.isfinite(value):
            runs[-1].append(index)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]
