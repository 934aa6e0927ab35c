"""How a trial chooses the rows of its batches, on a clock that is told what each call takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.trials import Terms, _trial_rows


class FakeClock:
    """A call takes ``row`` seconds a row, but for the first ``slow`` calls of all, which take ten seconds more."""

    def __init__(self, row: float, *, slow: int = 0) -> None:
        self.row, self.slow = row, slow
        self.sizes: list[int] = []
        self.spent: dict[str, float] = {}

    def run(self, count: int) -> None:
        extra = 10.0 if len(self.sizes) < self.slow else 0.0
        self.sizes.append(count)
        step = f"{count} rows"
        self.spent[step] = self.spent.get(step, 0.0) + extra + count * self.row

    def seconds(self, step: str) -> float:
        return self.spent.get(step, 0.0)


@pytest.mark.parametrize(
    ("clock", "most", "size"),
    [
        (FakeClock(0.01), 24, 24),
        (FakeClock(0.01), 1, 1),
        (FakeClock(0.1), 32, 8),  # three of 8 take 2.4 s, and of 16 would take 4.8
        (FakeClock(2.0), 32, 1),
        (FakeClock(20.0), 32, 1),
    ],
)
def test_batches_grow_while_there_is_time(clock: Any, most: int, size: int) -> None:
    assert _trial_rows(clock, clock.run, most=most, terms=Terms(torch.device("cpu"), None, 4.0)) == size
    assert sum(clock.spent.values()) <= max(2 * 4.0, 20.0)


def test_one_slow_call_decides_nothing() -> None:
    clock: Any = FakeClock(0.001, slow=1)
    terms = Terms(torch.device("cpu"), None, 12.0)
    assert _trial_rows(clock, clock.run, most=32, terms=terms) == 32
    assert clock.sizes[:4] == [1, 1, 2, 2]
