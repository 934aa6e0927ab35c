from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.pace import Pace, progress_line


def test_the_rate_is_that_of_late() -> None:
    pace = Pace(0.0, count=100.0)
    for second in range(1, 601):
        pace.reach(100.0 + 10 * second, now=float(second))
    assert pace.rate(600.0) == pytest.approx(10.0)
    for second in range(601, 721):
        pace.reach(6100.0 + 2 * (second - 600), now=float(second))
    assert pace.rate(720.0) == pytest.approx(2.0, rel=0.01)
    assert pace.left(7340.0, now=720.0) == pytest.approx(500.0, rel=0.01)


def test_what_stands_still_takes_ever_longer() -> None:
    pace = Pace(0.0)
    pace.reach(50.0, now=5.0)
    assert pace.left(100.0, now=5.0) == pytest.approx(5.0)
    assert pace.left(100.0, now=500.0) == pytest.approx(500.0)


def test_rare_steps_have_a_rate_all_the_same() -> None:
    pace = Pace(0.0)
    for step in range(1, 21):
        pace.reach(1024.0 * step, now=300.0 * step)
    assert pace.rate(6000.0) == pytest.approx(1024 / 300)


@given(st.lists(st.floats(0.001, 20.0), min_size=1, max_size=400))
def test_steady_work_has_one_rate_however_it_is_told(gaps: list[float]) -> None:
    pace, now = Pace(0.0), 0.0
    for gap in gaps:
        now += gap
        pace.reach(3 * now, now=now)
    assert pace.rate(now) == pytest.approx(3.0)
    assert len(pace._steps) < 150, "of hours of work a minute is kept"


def test_nothing_done_has_no_end() -> None:
    assert Pace(0.0, count=7.0).left(10.0, now=60.0) is None
    assert Pace(0.0).left(None, now=60.0) is None


def test_a_line_holds_what_is_known() -> None:
    line = progress_line("views a", count=3, total=12, unit="rows", note="1 rows/s", left=9.4)
    assert line == "views a: 3/12 rows, 1 rows/s, ETA 0:00:09"
    assert progress_line("verify", count=62, total=None, unit="objects", note="?", left=None) == "verify: 62 objects, ?"
