"""Exact sums: one addend comes back, and any order and grouping gives the same, correctly rounded float."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from sak.exact import DIGITS, exact, rounded

FLOATS = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(FLOATS, max_size=20))
@example([5e-324, -5e-324, 2.2250738585072014e-308, 1.7976931348623157e308, 0.0, -1.0])
def test_a_float_is_itself(values: list[float]) -> None:
    assert rounded(exact(values)).tolist() == values


@given(st.lists(FLOATS.filter(lambda value: abs(value) < 1e300), max_size=40), st.randoms())
def test_a_sum_is_the_rounded_true_one_in_any_grouping(values: list[float], draw: object) -> None:
    shuffled = list(values)
    draw.shuffle(shuffled)  # type: ignore[attr-defined]
    cut = len(values) // 3
    parts = exact(shuffled[:cut]).sum(axis=0) + exact(shuffled[cut:]).sum(axis=0)
    assert float(rounded(parts)) == math.fsum(values)


def test_what_is_not_finite_spoils_its_own_sum_alone() -> None:
    values = np.array([[1.0, math.nan, math.inf], [2.0, 1.0, 1.0]])
    numbers = exact(values)
    assert numbers.shape == (2, 3, DIGITS)
    assert rounded(numbers.sum(axis=0))[0] == 3.0
    assert np.isnan(rounded(numbers.sum(axis=0))[1:]).all()


def test_a_sum_beyond_all_floats_is_infinite() -> None:
    for sign in (1, -1):
        assert float(rounded(exact([sign * 1.7e308] * 2).sum(axis=0))) == sign * math.inf
