from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sampling import TeacherDraw

NAMES = ("sam", "clip", "dinov2", "effnet")


@given(st.integers(1, 4), st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_draw_is_so_many_teachers_in_their_order(count: int, seed: int, step: int) -> None:
    drawn = TeacherDraw(teachers=NAMES, count=count, seed=seed)(step)
    assert len(set(drawn)) == len(drawn) == count
    assert list(drawn) == [name for name in NAMES if name in drawn]
    assert drawn == TeacherDraw(teachers=NAMES, count=count, seed=seed)(step)
    assert set(drawn) == set(TeacherDraw(teachers=NAMES[::-1], count=count, seed=seed)(step))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_choice_is_drawn_about_as_often(count: int) -> None:
    draw, steps = TeacherDraw(teachers=NAMES, count=count, seed=3), 4000
    seen = Counter(draw(step) for step in range(steps))
    choices = list(combinations(NAMES, count))
    assert set(seen) == set(choices)
    assert all(abs(seen[choice] / steps - 1 / len(choices)) < 0.03 for choice in choices)


def test_seeds_draw_apart_and_the_first_draws_stay_what_they_are() -> None:
    def first(seed: int) -> list[tuple[str, ...]]:
        return [TeacherDraw(teachers=NAMES[:3], count=1, seed=seed)(step) for step in range(8)]

    assert first(0) != first(1)
    # A resumed run, on whatever machine, must draw as the run did that wrote its checkpoint.
    assert [name for (name,) in first(0)] == FIRST


def test_the_scale_makes_a_step_count_for_all_on_average() -> None:
    assert TeacherDraw(teachers=NAMES, count=1, seed=0).scale == 4
    assert TeacherDraw(teachers=NAMES, count=4, seed=0).scale == 1


FIRST = ["dinov2", "clip", "sam", "clip", "clip", "dinov2", "dinov2", "sam"]
