"""The one view of an extraction at work on a view set: its views, each teacher, what failed, the cluster."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import timedelta
from time import monotonic
from types import TracebackType
from typing import NamedTuple, Self

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar as Bar
from rich.table import Table
from rich.text import Text

from pipeline.extraction_log import ExtractionLog
from pipeline.pace import Pace, progress_line
from pipeline.part_report import OF_VIEWS, PartReport, report_of
from pipeline.tracking import CONSOLE, LINE_SECONDS, Advance
from store.codecs.registry import CodecChoice, choice_json, is_fitted
from store.column import Column
from store.commits import PartCommit
from store.spec import ViewSetSpec
from store.viewset import ViewSet

__all__ = ["ExtractionProgress"]

_PER_SECOND = 4
_LONGEST_REASON = 100


class _Line:
    """One thing that grows; its rate is of late, and of this command alone."""

    def __init__(self, *, total: int, done: int, unit: str) -> None:
        self.total, self.unit = total, unit
        self.pace = Pace(monotonic(), count=done)
        self.printed = float(done)


class _Shown(NamedTuple):
    label: str
    done: float
    total: int
    unit: str
    rate: str
    left: float | None


class ExtractionProgress:
    """A live table on a terminal; elsewhere, as in a batch job's log, a plain line for each of its lines now and then.

    To be used in a ``with`` block. It appears with the first line and not before; any thread may tell it.

    Args:
        view_set: The name of the view set that is worked on.
        log: Told of every part, and asked what failed.
    """

    def __init__(self, view_set: str, log: ExtractionLog, /) -> None:
        self.log = log
        self._view_set = view_set
        self._lines: dict[str, _Line] = {}
        self._columns: dict[str, Column] = {}
        self._lock = threading.RLock()
        self._told = ""
        self._plain = not CONSOLE.is_terminal
        self._live: Live | None = None
        self._printed = monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def begin_views(self, view_set: ViewSet, /, *, missing: Collection[int], engine: str) -> None:
        """Show a line for the views, whose other parts are from before."""
        about = {"store": view_set.root.url, "view_set": view_set.name, "engine": engine}
        counts = self._begin(OF_VIEWS, view_set.spec, missing)
        self.log.write("views_started", {**about, **counts})

    def begin_column(self, column: Column, /, *, missing: Collection[int]) -> None:
        """Show a line for a teacher, the other parts of whose column are from before."""
        view_set, teacher = column.view_set, column.spec.teacher
        self._columns[teacher] = column
        if self._label(OF_VIEWS) not in self._lines:  # which were there before
            self._begin(OF_VIEWS, view_set.spec, ())
        about = {"store": view_set.root.url, "view_set": view_set.name, "teacher": teacher, "column": column.name}
        counts = self._begin(teacher, view_set.spec, missing)
        self.log.write("column_started", {**about, **counts})

    @contextmanager
    def fitting(self, teacher: str, codec: CodecChoice, /) -> Iterator[None]:
        """Record how long the fit of a codec takes, where it is one that is fitted."""
        start = monotonic()
        yield
        if is_fitted(codec):
            about = {"view_set": self._view_set, "teacher": teacher, "codec": choice_json(codec)}
            self.log.write("codec_fitted", {**about, "seconds": round(monotonic() - start, 3)})

    @contextmanager
    def step(self, label: str, /, *, total: int, unit: str) -> Iterator[Advance]:
        """As ``pipeline.tracking.progress_step``, in a line of this view."""
        self._add(label, _Line(total=total, done=0, unit=unit))
        try:
            yield lambda count: self._grow(label, count)
        finally:
            with self._lock:
                del self._lines[label]

    def advance(self, teacher: str, rows: int, /) -> None:
        """So many more rows of a teacher's column, or of ``OF_VIEWS``, are made."""
        self._grow(self._label(teacher), rows)

    def finished(self, teacher: str, part: int, commit: PartCommit, /) -> None:
        """A part of a column that was begun is committed, of whose rows ``advance`` has told."""
        spent = self._columns[teacher].commits.spent(part)
        self.log.part(self._view_set, report_of(teacher, part, commit, spent=spent))

    def landed(self, report: PartReport, /, *, worker: str | None = None) -> None:
        """A part is committed by another process, which has told of nothing yet."""
        self.log.part(self._view_set, report, worker=worker)
        self.advance(report.teacher, report.rows)

    def tick(self) -> None:
        """Where lines are printed: print them when it is time, though nothing has happened."""
        with self._lock:
            if self._plain and self._lines and monotonic() - self._printed >= LINE_SECONDS:
                self._printed = monotonic()
                self._print()

    def _begin(self, teacher: str, spec: ViewSetSpec, missing: Collection[int]) -> dict[str, int]:
        left = sum(len(spec.part_rows(part)) for part in missing)
        self._add(self._label(teacher), _Line(total=spec.rows, done=spec.rows - left, unit="rows"))
        return {"rows": spec.rows, "rows_missing": left, "parts_missing": len(missing)}

    def _add(self, label: str, line: _Line) -> None:
        with self._lock:
            if not self._lines and self._live is None:
                self._printed = monotonic()
            self._lines[label] = line
            if not self._plain and self._live is None:
                self._live = Live(get_renderable=self._render, console=CONSOLE, refresh_per_second=_PER_SECOND)
                self._live.start()

    def _grow(self, label: str, count: float) -> None:
        with self._lock:
            pace = self._lines[label].pace
            pace.reach(pace.count + count, now=monotonic())
        self.tick()

    def _label(self, teacher: str) -> str:
        return f"{f'extract {teacher} over' if teacher != OF_VIEWS else 'views'} {self._view_set}"

    def _shown(self) -> list[_Shown]:
        now = monotonic()
        return [
            _Shown(
                label,
                line.pace.count,
                line.total,
                line.unit,
                "done" if line.pace.count >= line.total else f"{line.pace.rate(now):.3g} {line.unit}/s",
                line.pace.left(line.total, now=now) if line.pace.count < line.total else None,
            )
            for label, line in self._lines.items()
        ]

    def _print(self) -> None:
        for shown in self._shown():
            line = self._lines[shown.label]
            # Of what is done one line is enough.
            if shown.done < shown.total or line.printed != shown.done:
                line.printed = shown.done
                label, done, total, unit, rate, left = shown
                CONSOLE.print(progress_line(label, count=done, total=total, unit=unit, note=rate, left=left))
        told = "; ".join(text for text in (self._troubles(), self._cluster()) if text)
        if told and told != self._told:
            self._told = told
            CONSOLE.print(f"extract {self._view_set}: {told}")

    def _render(self) -> RenderableType:
        with self._lock:
            table = Table.grid(padding=(0, 2))
            for shown in self._shown():
                bar = Bar(total=max(shown.total, 1), completed=shown.done, width=24)
                eta = "" if shown.left is None else f"ETA {timedelta(seconds=round(shown.left))}"
                count = f"{shown.done:.0f}/{shown.total}"
                table.add_row(Text(shown.label), bar, Text(f"{count} {shown.unit}"), Text(shown.rate), Text(eta))
            told = [text for text in (self._troubles(), self._cluster()) if text]
        return Group(table, *map(Text, told))

    def _troubles(self) -> str:
        """What failed so far; empty when nothing did."""
        tally, log = self.log.tally, self.log
        reason = log.last_reason
        reason = reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON]} ..."
        counts = {
            f"bad images (last: {reason})": tally.bad_images,
            "failed tasks": tally.tasks_failed,
            "workers lost": tally.workers_lost,
        }
        return ", ".join(f"{count} {what}" for what, count in counts.items() if count)

    def _cluster(self) -> str:
        log = self.log
        if log.workers is None:
            return ""
        return f"{len(log.workers)} Dask workers" + (f", {log.dashboard}" if log.dashboard else "")
