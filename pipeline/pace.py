"""How fast a count grows of late, and the plain line that tells of it where there is no terminal."""

from __future__ import annotations

from collections import deque
from datetime import timedelta

__all__ = ["Pace", "progress_line"]

_WINDOW_SECONDS = 60.0
_WINDOW_STEPS = 8
_SPACING_SECONDS = 0.5


class Pace:
    """A count and its rate over the last minute, or its last few steps where those take longer.

    Recent, because the rate since the start hides that work has slowed down, or stands still, and a finishing time
    computed from it is wrong for hours.

    Args:
        now: Seconds by a clock that never goes back.
        count: What was there before: it is no part of the rate.
    """

    def __init__(self, now: float, /, *, count: float = 0.0) -> None:
        self.count = count
        self._first = now, count
        self._steps: deque[tuple[float, float]] = deque([self._first])

    def reach(self, count: float, /, *, now: float) -> None:
        """Note the count as it is now."""
        self.count = count
        if len(self._steps) > 2 and now - self._steps[-2][0] < _SPACING_SECONDS:
            self._steps.pop()
        self._steps.append((now, count))
        while len(self._steps) > _WINDOW_STEPS and self._steps[1][0] <= now - _WINDOW_SECONDS:
            self._steps.popleft()

    def rate(self, now: float, /) -> float:
        """Per second; it falls while nothing comes."""
        then, count = self._steps[0]
        return (self.count - count) / max(now - then, 1e-9)

    def left(self, total: float | None, /, *, now: float) -> float | None:
        """Seconds until ``total`` at this rate; None where that cannot be told."""
        rate = self.rate(now)
        return max(0.0, total - self.count) / rate if total and rate > 0 else None


def progress_line(label: str, /, *, count: float, total: float | None, unit: str, note: str, left: float | None) -> str:
    """One line of a batch job's log."""
    of = f"/{total:.0f}" if total else ""
    eta = "" if left is None else f", ETA {timedelta(seconds=round(left))}"
    return f"{label}: {count:.0f}{of} {unit}, {note}{eta}"
