"""SIGINT and SIGTERM end a training between two steps, on all ranks at the same one."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline.distributed import Ranks
from pipeline.errors import Interrupted, Preempted

__all__ = ["Stop"]


class Stop:
    """Whether training is to stop; a second SIGINT interrupts one process at once.

    With several ranks, a signal that reached any of them before it asked stops all of them at the step after: the
    answer of one step is waited for in the next, so that nobody waits for it. There a second SIGINT is only torchrun
    handing on the terminal's, and no reason to leave a step half done.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._number = 0
        self._answer: Callable[[], int] | None = None

    @contextmanager
    def listen(self) -> Iterator[Stop]:
        """Note signals instead of dying of them."""
        try:
            before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # signals belong to the main thread; elsewhere there is nothing to listen to
            before = {}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def asked(self, *, last: bool = False) -> int:
        """The signal to stop for after this step, the same on every rank, or 0; to be called once a step.

        Args:
            last: Nothing is asked after it, so that no answer is left for later.
        """
        if self._ranks.world == 1:
            return self._number
        before, self._answer = self._answer, self._ranks.largest_later(self._number)
        found = before() if before is not None else 0
        return max(found, self._answer()) if last else found

    def error(self, number: int, message: str, /) -> Interrupted:
        """What a stage that stops for this signal raises."""
        return Preempted(message) if number == signal.SIGTERM else Interrupted(message)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._number and number == signal.SIGINT and self._ranks.world == 1:
            raise KeyboardInterrupt
        self._number = max(self._number, number)
