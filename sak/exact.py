"""Sums of floats without rounding, as arrays of integers that add up in any order.

A float is an integer times a power of two, so a sum of floats is one too. ``exact`` writes it as 32-bit digits in
int64: such arrays are added like any counts, by whichever worker, and ``rounded`` turns the sum into the nearest float.
How the addends were shared out, and in which order they came, hence changes no bit of the result.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["DIGITS", "exact", "rounded"]

_BITS, _MANTISSA = 32, 53
_MASK = (1 << _BITS) - 1
_POINT = 36 * _BITS  # binary places: the smallest float's last bit is at 1074
DIGITS = 70
"""Length of an exact number: 69 digits that hold any float, and how many addends were not finite."""


def exact(values: ArrayLike, /) -> NDArray[np.int64]:
    """Floats as exact numbers. Up to 2^30 of them can be added before a digit overflows.

    Shapes:
        values: any, ``(…)``, to ``(…, DIGITS)``.
    """
    floats = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(floats)
    mantissa, exponent = np.frexp(np.where(finite, floats, 0.0))
    whole = np.ldexp(np.abs(mantissa), _MANTISSA).astype(np.int64)
    first, shift = np.divmod(exponent.astype(np.int64) - _MANTISSA + _POINT, _BITS)
    low, high = (whole & _MASK) << shift, (whole >> _BITS) << shift
    digits = np.stack([low & _MASK, (low >> _BITS) + (high & _MASK), high >> _BITS], axis=-1)
    found = np.zeros((*floats.shape, DIGITS), dtype=np.int64)
    places = first[..., None] + np.arange(3)
    np.put_along_axis(found, places, digits * np.sign(mantissa).astype(np.int64)[..., None], axis=-1)
    found[..., -1] = ~finite
    return found


def rounded(numbers: NDArray[np.int64], /) -> NDArray[np.float64]:
    """The floats nearest to exact numbers; not a number where any addend was not finite.

    Shapes:
        numbers: ``(…, DIGITS)`` to ``(…)``.
    """
    flat = [_float(number) for number in numbers.reshape(-1, DIGITS).tolist()]
    return np.array(flat, dtype=np.float64).reshape(numbers.shape[:-1])


def _float(number: list[int]) -> float:
    *digits, lost = number
    if lost:
        return math.nan
    whole = sum(digit << (_BITS * place) for place, digit in enumerate(digits) if digit)
    try:
        return whole / (1 << _POINT)  # of Python's integers: rounded once, to nearest
    except OverflowError:
        return math.inf if whole > 0 else -math.inf
