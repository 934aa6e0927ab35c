"""Time spent in named steps, on whatever device they run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import torch

__all__ = ["Clock"]

T = TypeVar("T")


class Clock:
    """Adds up the seconds of each step; waits for the device before and after."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._spent: dict[str, float] = {}

    def run(self, step: str, call: Callable[[], T]) -> T:
        """Call and count."""
        self._wait()
        start = time.perf_counter()
        result = call()
        self._wait()
        self._spent[step] = self.seconds(step) + time.perf_counter() - start
        return result

    def seconds(self, step: str, /) -> float:
        """Of one step so far."""
        return self._spent.get(step, 0.0)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
