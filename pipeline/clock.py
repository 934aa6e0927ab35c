"""Time spent in named steps, on whatever device they run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import torch

__all__ = ["Clock"]

T = TypeVar("T")


class Clock:
    """Adds up the seconds of each step: this thread's on a CPU, the current stream's on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._spent: dict[str, float] = {}
        self._running: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    def run(self, step: str, call: Callable[[], T]) -> T:
        """Call and count."""
        if self._device.type != "cuda":
            start = time.perf_counter()
            result = call()
            self._add(step, time.perf_counter() - start)
            return result
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        result = call()
        end.record()
        self._running.append((step, begin, end))
        return result

    def seconds(self, step: str, /) -> float:
        """Of one step so far; waits for what a GPU has yet to do."""
        running, self._running = self._running, []
        for name, begin, end in running:
            end.synchronize()
            self._add(name, begin.elapsed_time(end) / 1e3)
        return self._spent.get(step, 0.0)

    def _add(self, step: str, seconds: float) -> None:
        self._spent[step] = self._spent.get(step, 0.0) + seconds
