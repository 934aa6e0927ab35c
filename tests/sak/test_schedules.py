"""Learning-rate curves hit the paper's numbers at their corners and never rise where they should fall."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sak.errors import SakError
from sak.schedules import poly, reference_step, warmup_cosine


def test_stage_one_corners() -> None:
    total, warmup = 300_270, 20_018
    rates = {
        s: warmup_cosine(s, total=total, warmup=warmup, peak=1e-3) for s in (0, warmup // 2, warmup, total, total + 9)
    }
    assert rates[0] == 1.25e-7
    assert rates[warmup // 2] == pytest.approx((1e-3 + 1.25e-7) / 2)
    assert rates[warmup] == 1e-3
    assert rates[total] == pytest.approx(1e-5)
    assert rates[total + 9] == rates[total]
    half = warmup_cosine(warmup + (total - warmup) // 2, total=total, warmup=warmup, peak=1e-3)
    assert half == pytest.approx((1e-3 + 1e-5) / 2)


def test_no_warmup_starts_at_the_peak() -> None:
    assert warmup_cosine(0, total=10, warmup=0, peak=1e-3) == 1e-3


def test_stage_two_corners() -> None:
    assert poly(0, total=40_000, peak=2e-5) == 2e-5
    assert poly(20_000, total=40_000, peak=2e-5) == pytest.approx(2e-5 * 0.5**0.9)
    assert poly(40_000, total=40_000, peak=2e-5) == 0.0
    assert poly(50_000, total=40_000, peak=2e-5) == 0.0


@given(st.integers(2, 500), st.data())
def test_cosine_rises_then_falls(total: int, data: st.DataObject) -> None:
    warmup = data.draw(st.integers(0, total - 1))
    rates = [warmup_cosine(step, total=total, warmup=warmup, peak=1e-3) for step in range(total + 1)]
    assert rates[: warmup + 1] == sorted(rates[: warmup + 1])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert max(rates) == rates[warmup]


def test_reference_runs_two_steps_at_the_start() -> None:
    rates = [warmup_cosine(reference_step(step), total=10, warmup=4, peak=1.0, start=0.0) for step in range(7)]
    assert rates[0] == rates[1] == 0.0
    assert rates.index(max(rates)) == 5


@pytest.mark.parametrize(("step", "total", "warmup"), [(-1, 10, 2), (0, 10, 10), (0, 10, -1), (0, 0, 0)])
def test_impossible_schedules_are_refused(step: int, total: int, warmup: int) -> None:
    with pytest.raises(SakError, match="schedule: expected"):
        warmup_cosine(step, total=total, warmup=warmup, peak=1e-3)
