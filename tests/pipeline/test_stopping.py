from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.distributed import ALONE
from pipeline.errors import Interrupted, Preempted
from pipeline.stopping import Stop


class Others:
    """As ``Ranks``, of which another one is asked to stop at step ``at``."""

    world = 2

    def __init__(self, at: int) -> None:
        self.step, self.at = 0, at

    def largest_later(self, value: int, /) -> Callable[[], int]:
        other = signal.SIGTERM if self.step >= self.at else 0
        self.step += 1
        return lambda: max(value, other)


def test_alone_a_signal_counts_at_once() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Stop(ALONE).listen() as stop:
        assert stop.asked() == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked() == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_all_stop_one_step_after_any_of_them_was_asked() -> None:
    others: Any = Others(at=3)
    with Stop(others).listen() as stop:
        assert [stop.asked() for _ in range(5)] == [0, 0, 0, 0, signal.SIGTERM]


@pytest.mark.parametrize("at", [0, 2, 3])
def test_at_the_end_no_answer_is_left_unread(at: int) -> None:
    others: Any = Others(at=at)
    with Stop(others).listen() as stop:
        for _ in range(3):
            stop.asked()
        assert stop.asked(last=True) == signal.SIGTERM


def test_torchrun_sends_ctrl_c_twice_and_means_it_once() -> None:
    others: Any = Others(at=99)
    with Stop(others).listen() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert [stop.asked(), stop.asked()] == [0, signal.SIGINT]


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGINT, Interrupted), (signal.SIGTERM, Preempted)])
def test_only_sigterm_is_no_failure(number: int, kind: type) -> None:
    assert type(Stop(ALONE).error(number, "stopped")) is kind
