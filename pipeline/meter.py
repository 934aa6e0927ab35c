"""Speeds of training: images and bytes a second, the share of time that data is waited for, a GPU's memory."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from pipeline.distributed import ALONE, Ranks
from pipeline.loader import Batch

__all__ = ["STORAGE_LIMITS", "Meter"]

STORAGE_LIMITS = 0.1
"""Share of time waited for data from which on reading, not the step, is said to limit."""


@dataclass(slots=True)
class _Wait:
    """Seconds that the device had nothing to do because no batch was there.

    A GPU still works while the host already waits for the next batch, so there it is the time between two marks in the
    queue of its work: one put there when a batch is asked for, one when it has come, its copy to the device included.
    On a CPU it is the time of the call.
    """

    device: torch.device
    _seconds: float = 0.0
    _asked: float = 0.0
    _marks: deque[torch.cuda.Event] = field(default_factory=deque)

    def asked(self) -> None:
        """The next batch is asked for."""
        self._asked = time.perf_counter()
        self._mark()

    def arrived(self) -> None:
        """It is there."""
        self._mark()
        if self.device.type != "cuda":
            self._seconds += time.perf_counter() - self._asked

    def seconds(self) -> float:
        """Of all batches that the device has come to."""
        while len(self._marks) > 1 and self._marks[1].query():  # type: ignore[no-untyped-call]
            asked, arrived = self._marks.popleft(), self._marks.popleft()
            self._seconds += asked.elapsed_time(arrived) / 1000
        return self._seconds

    def _mark(self) -> None:
        if self.device.type == "cuda":
            mark = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            mark.record(torch.cuda.current_stream(self.device))
            self._marks.append(mark)


class Meter:
    """What goes through since the last reading, on this rank and, when it is read, on all of them.

    Args:
        read_bytes: Bytes that this process has read so far.
    """

    def __init__(self, device: torch.device, /, *, read_bytes: Callable[[], int], ranks: Ranks = ALONE) -> None:
        self._device, self._read_bytes, self._ranks = device, read_bytes, ranks
        self._wait = _Wait(device)
        self._elsewhere = 0.0
        self._restart()

    def timed(self, batches: Iterator[Batch], /) -> Iterator[Batch]:
        """Pass batches through, timing the wait for each."""
        while True:
            self._wait.asked()
            batch = next(batches, None)
            if batch is None:
                return
            self._wait.arrived()
            yield batch

    def count(self, images: int, /) -> None:
        """A step of so many images, of all ranks together, is done."""
        self._images += images

    def note(self) -> str:
        """Speed since the last reading in words, and what limits it; the wait is the longest of all ranks'."""
        spent = self._spent()
        wait = max(self._waited() / spent, self._elsewhere)
        limit = "storage" if wait >= STORAGE_LIMITS else "compute"
        return f"{self._images / spent:.0f} images/s, data wait {100 * wait:.0f} % ({limit} limits)"

    def read(self) -> dict[str, float]:
        """Speeds since the last reading; every rank must come here at the same step.

        Units:
            ``speed/images_per_s`` and ``speed/read_bytes_per_s`` of all ranks together, ``speed/data_wait`` of 1 and on
            the rank that waited most; ``memory/...`` in bytes, on the GPU that holds most.
        """
        spent = self._spent()
        memory = self._memory()
        # In the first readings, reading ahead may have taken longer than the time since then.
        most = self._ranks.largest(torch.tensor([self._waited() / spent, *memory.values()], dtype=torch.float64))
        read = self._ranks.total(torch.tensor(float(self._read_bytes() - self._bytes), dtype=torch.float64))
        wait, *held = most.tolist()
        rates = {"images_per_s": self._images / spent, "data_wait": wait, "read_bytes_per_s": float(read) / spent}
        self._elsewhere = wait if self._ranks.world > 1 else 0.0
        self._restart()
        return {f"speed/{name}": value for name, value in rates.items()} | dict(zip(memory, held, strict=True))

    def _restart(self) -> None:
        self._images, self._since = 0, time.perf_counter()
        self._bytes, self._before = self._read_bytes(), self._wait.seconds()

    def _spent(self) -> float:
        return max(time.perf_counter() - self._since, 1e-9)

    def _waited(self) -> float:
        return self._wait.seconds() - self._before

    def _memory(self) -> dict[str, float]:
        if self._device.type != "cuda":
            return {}
        return {
            "memory/allocated": float(torch.cuda.memory_allocated(self._device)),
            "memory/peak": float(torch.cuda.max_memory_allocated(self._device)),
        }
