from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline import meter as module
from pipeline.meter import Meter

CPU = torch.device("cpu")


class _Clock:
    """Time that only passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


class _Ranks:
    """This rank of two, of which the other waited 0.75 and read as much."""

    world = 2

    def largest(self, value: Tensor) -> Tensor:
        return torch.maximum(value, torch.tensor(0.75))

    def total(self, value: Tensor) -> Tensor:
        return 2 * value


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    found = _Clock()
    monkeypatch.setattr(module, "time", found)
    return found


def go(meter: Meter, clock: _Clock, *, steps: int, wait: float, work: float) -> None:
    def batches() -> Iterator[Any]:
        for _ in range(steps):
            clock.now += wait
            yield None

    def some() -> Iterator[Any]:
        yield from (object() for _ in batches())

    for _ in meter.timed(some()):
        clock.now += work
        meter.count(8)


def test_speeds_are_of_the_time_since_the_last_reading(clock: _Clock) -> None:
    read = [500]
    meter = Meter(CPU, read_bytes=lambda: read[0])
    go(meter, clock, steps=4, wait=3.0, work=1.0)
    read[0] = 1300
    assert meter.note() == "2 images/s, data wait 75 % (storage limits)"
    assert meter.read() == {"speed/images_per_s": 2.0, "speed/data_wait": 0.75, "speed/read_bytes_per_s": 50.0}
    go(meter, clock, steps=2, wait=0.0, work=0.5)
    assert meter.note() == "16 images/s, data wait 0 % (compute limits)"
    assert meter.read() == {"speed/images_per_s": 16.0, "speed/data_wait": 0.0, "speed/read_bytes_per_s": 0.0}


def test_the_rank_that_waits_most_is_told_of(clock: _Clock) -> None:
    ranks: Any = _Ranks()
    read = [0]
    meter = Meter(CPU, read_bytes=lambda: read[0], ranks=ranks)
    go(meter, clock, steps=4, wait=0.0, work=1.0)
    read[0] = 100
    assert meter.note().endswith("data wait 0 % (compute limits)")
    assert meter.read() == {"speed/images_per_s": 8.0, "speed/data_wait": 0.75, "speed/read_bytes_per_s": 50.0}
    go(meter, clock, steps=1, wait=0.0, work=1.0)
    assert meter.note().endswith("data wait 75 % (storage limits)")


@pytest.mark.gpu
def test_a_gpu_that_works_while_the_host_waits_is_not_said_to_wait() -> None:
    """Each batch keeps the host about as long as the step keeps the GPU: only the first finds it idle."""
    device = torch.device("cuda")
    torch.ones(1, device=device).sum().item()
    meter = Meter(device, read_bytes=lambda: 0)

    def batches() -> Iterator[Any]:
        for _ in range(20):
            time.sleep(0.03)
            yield object()

    for _ in meter.timed(batches()):
        torch.cuda._sleep(100_000_000)  # cycles, some 50 ms
    torch.cuda.synchronize()
    found = meter.read()
    assert found["speed/data_wait"] < 0.2
    assert found["memory/peak"] >= found["memory/allocated"] >= 0
