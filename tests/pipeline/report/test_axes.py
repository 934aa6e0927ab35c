"""Scales, ticks, thinning, and numbers as text."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.report.axes import finite_runs, make_axis, thinned, tick_text
from pipeline.report.quantities import (
    bytes_text,
    count_text,
    fixed_text,
    gain_symbol,
    gain_text,
    ratio_text,
    seconds_text,
)

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False)


@given(values=st.lists(NUMBERS, max_size=20), log=st.booleans())
def test_axis_holds_every_value_and_its_ticks(values: list[float], log: bool) -> None:
    axis = make_axis([*values, math.nan, math.inf], allow_log=log)
    assert axis.low < axis.high
    assert all(-1e-6 <= axis.place(value) <= 1 + 1e-6 for value in values)
    assert all(-1e-6 <= axis.place(tick) <= 1 + 1e-6 for tick in axis.ticks)
    assert len(axis.ticks) <= 7


@pytest.mark.parametrize(("values", "log"), [([0.1, 10.0], True), ([1.0, 2.0], False), ([-1.0, 100.0], False)])
def test_log_only_for_positive_values_that_span_a_lot(values: list[float], log: bool) -> None:
    assert make_axis(values, allow_log=True).log is log
    assert make_axis(values).log is False


def test_linear_ticks_are_round() -> None:
    assert make_axis([0.0, 10.0]).ticks == (0.0, 2.5, 5.0, 7.5, 10.0)
    assert make_axis([0.13, 0.92]).ticks == (0.2, 0.4, 0.6, 0.8)


@given(length=st.integers(1, 900))
def test_thinning_keeps_order_and_mean(length: int) -> None:
    steps = np.arange(length)
    points = thinned(steps, steps.astype(np.float32))
    assert len(points.x) == min(length, 120)
    assert (np.diff(points.y) > 0).all()
    assert points.per_point == math.ceil(length / 120)


def test_a_line_breaks_where_the_loss_is_not_finite() -> None:
    points = thinned(np.arange(6), np.array([1.0, 2.0, np.nan, 4.0, np.inf, np.nan]))
    assert finite_runs(points) == [[0, 1], [3]]


@pytest.mark.parametrize(("value", "text"), [(0.05, "0.05"), (2000, "2k"), (0, "0"), (-1.5, "−1.5"), (2e-6, "2e−06")])
def test_tick_text(value: float, text: str) -> None:
    assert tick_text(value) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (gain_text(1.234), "+1.23 %"),
        (gain_text(-0.004), "±0.00 %"),
        (gain_text(-4.5), "−4.50 %"),
        (gain_text(math.nan), "–"),
        (gain_symbol(1.0) + gain_symbol(-1.0) + gain_symbol(0.001) + gain_symbol(None), "▲▼●"),
        (bytes_text(999), "999 B"),
        (bytes_text(999_999), "1.00 MB"),
        (bytes_text(1_769_472), "1.77 MB"),
        (count_text(5_717_000), "5.72 M"),
        (ratio_text(4.234) + " " + ratio_text(1.5) + " " + ratio_text(120), "4.2× 1.50× 120×"),
        (seconds_text(8.44), "8.4 s"),
        (seconds_text(59.96), "1 min 00 s"),
        (seconds_text(7620), "2 h 07 min"),
        (fixed_text(-1.005, digits=1), "−1.0"),
        (fixed_text(math.inf, digits=1), "–"),
    ],
)
def test_quantities(text: str, expected: str) -> None:
    assert text == expected
