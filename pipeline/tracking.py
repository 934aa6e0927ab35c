"""What a stage leaves for people to read: JSON lines, and a progress bar or progress lines.

``metrics.jsonl`` holds only what the recipe determines, so that a resumed run's file equals an uninterrupted one's;
speeds go to ``speeds.jsonl`` and to the progress shown, and both go to what ``pipeline.trackers`` knows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import IO, Protocol, Self, TypeAlias

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from pipeline.pace import Pace, progress_line

__all__ = [
    "CONSOLE",
    "LINE_SECONDS",
    "METRICS",
    "SPEEDS",
    "Advance",
    "MetricsLog",
    "ProgressBar",
    "ShowStep",
    "Tracker",
    "progress_bar",
    "progress_step",
    "read_metrics",
]

Advance: TypeAlias = Callable[[int], object]

METRICS, SPEEDS = "metrics.jsonl", "speeds.jsonl"

LINE_SECONDS = 30.0
"""Least time between two plain lines about one thing."""

# No markup: paths and names may hold brackets. Lines are not folded: what a log is searched for must stay on one line.
CONSOLE = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


class ProgressBar:
    """Progress of one task: a bar on a terminal; elsewhere, as in a batch job's log, a plain line now and then.

    The first line comes after 30 s, so that short work prints none, and later ones no more often than that.

    Args:
        unit: What is counted; named after the count, and in the rate where no other note is given.
    """

    def __init__(self, unit: str, /) -> None:
        self._unit = unit
        self._plain = not CONSOLE.is_terminal
        self._printed = monotonic()
        self._pace = Pace(self._printed)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit + " {task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=CONSOLE,
            disable=self._plain,
        )

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._bar.stop()

    def add_task(self, label: str, *, total: int | None, completed: int = 0, note: str = "") -> TaskID:
        """Begin the task; rate and ETA count from here, not from what a run before this one did."""
        self._printed = monotonic()
        self._pace = Pace(self._printed, count=completed)
        return self._bar.add_task(label, total=total, completed=completed, note=note)

    def advance(self, task: TaskID, count: float = 1, *, note: str = "") -> None:
        """Count further; ``note`` takes the place of the rate."""
        self.update(task, completed=self._task(task).completed + count, note=note)

    def update(self, task: TaskID, *, completed: float, total: int | None = None, note: str = "") -> None:
        """Set the count; ``note`` takes the place of the rate."""
        now = monotonic()
        self._pace.reach(completed, now=now)
        note = note or f"{self._pace.rate(now):.3g} {self._unit}/s"
        self._bar.update(task, completed=completed, total=total, note=note)
        if self._plain and now - self._printed >= LINE_SECONDS:
            self._printed = now
            about = self._task(task)
            left = self._pace.left(about.total, now=now)
            label, unit = about.description, self._unit
            CONSOLE.print(progress_line(label, count=completed, total=about.total, unit=unit, note=note, left=left))

    def _task(self, task: TaskID) -> Task:
        return self._bar.tasks[self._bar.task_ids.index(task)]


def progress_bar(unit: str, /) -> ProgressBar:
    """A ``ProgressBar``: count, rate and ETA on standard error."""
    return ProgressBar(unit)


@contextmanager
def progress_step(label: str, /, *, total: int, unit: str) -> Iterator[Advance]:
    """One task on a bar of its own; what it gives is told how many more are done."""
    with progress_bar(unit) as bar:
        shown = bar.add_task(label, total=total)
        yield lambda count: bar.advance(shown, count)


class ShowStep(Protocol):
    """How a step of some work is shown: as ``progress_step`` does, or inside a larger view."""

    def __call__(self, label: str, /, *, total: int, unit: str) -> AbstractContextManager[Advance]:
        """Show it while the context lasts."""


class Tracker(Protocol):
    """Where numbers of a run go besides its own files."""

    def write(self, step: int, values: Mapping[str, float], /) -> None:
        """Record the numbers of a step."""

    def close(self, *, ok: bool) -> None:
        """The run ends; ``ok`` unless by an error."""


class MetricsLog:
    """Appends to ``metrics.jsonl`` and ``speeds.jsonl`` of a folder, and to what else there is.

    On resume at ``start`` the lines of later steps, which the killed run wrote after its last checkpoint, are dropped.
    """

    def __init__(self, folder: Path, /, *, start: int, trackers: Sequence[Tracker] = ()) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._trackers = trackers
        self._values, self._speeds = (_appended(folder / name, start=start) for name in (METRICS, SPEEDS))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._values.close()
        self._speeds.close()
        for tracker in self._trackers:
            tracker.close(ok=kind is None)

    def write(self, step: int, values: Mapping[str, float], /, *, speeds: Mapping[str, float]) -> None:
        """Record a step: ``values``, which the recipe determines, apart from ``speeds``, which no two runs share."""
        for file, numbers in ((self._values, values), (self._speeds, speeds)):
            file.write(json.dumps({"step": step, **numbers}) + "\n")
            file.flush()
        for tracker in self._trackers:
            tracker.write(step, {**values, **speeds})


def _appended(path: Path, *, start: int) -> IO[str]:
    if path.exists():
        kept = [line for line in read_metrics(path) if line["step"] <= start]
        # By rename: a kill in the middle must not lose lines that no later step writes again.
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        temporary.replace(path)
    return path.open("a", encoding="utf-8")


def read_metrics(path: Path, /) -> list[dict[str, float]]:
    """Lines of a ``metrics.jsonl``; a last line cut by a kill is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
