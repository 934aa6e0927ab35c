"""What happens in one command that extracts: counted for the view, and written to the event log when there is one."""

from __future__ import annotations

import os
import socket
import sys
import threading
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Self

from pipeline.cluster.attempt import software
from pipeline.errors import Interrupted, TooManyBadError
from pipeline.extraction_events import EventFile
from pipeline.part_report import OF_VIEWS, PartReport
from store.errors import one_line

__all__ = ["ExtractionLog", "Tally"]


@dataclass(slots=True, kw_only=True)
class Tally:
    """Totals of a command; ``rows`` are counted once for the views and once for each teacher."""

    parts: int = 0
    rows: int = 0
    bytes: int = 0
    bad_images: int = 0
    tasks_failed: int = 0
    workers_lost: int = 0


class ExtractionLog:
    """Counts and records what happens; to be used in a ``with`` block, by any thread.

    The file is begun with the first thing that happens, so that a command which finds all done leaves it as it is.

    Args:
        path: The event log; None counts alone.
        recipe_digest: Of the recipe as it is run, with overrides.

    Attributes:
        last_reason: Of the last bad image.
        workers: Addresses of the Dask workers there are; None without Dask.
        dashboard: Dask's page about them.
    """

    def __init__(self, path: Path | None, /, *, recipe_digest: str = "") -> None:
        self.tally = Tally()
        self.last_reason = self.dashboard = ""
        self.workers: frozenset[str] | None = None
        self._path, self._recipe_digest = path, recipe_digest
        self._file: EventFile | None = None
        self._lock = threading.RLock()
        self._started = monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        try:
            # A log that cannot be written must not hide why the work itself ended.
            with suppress(*(OSError,) * (error is not None)):
                self._end(error)
        finally:
            if self._file is not None:
                self._file.close()

    def write(self, name: str, fields: Mapping[str, object], /) -> None:
        """Record one of ``EVENTS`` that nothing is counted of."""
        with self._lock:
            if self._path is None:
                return
            if self._file is None:
                self._file = EventFile(self._path, run=uuid.uuid4().hex[:12])
                self._file.write("run_started", self._about())
            self._file.write(name, fields)

    def part(self, view_set: str, report: PartReport, /, *, worker: str | None = None) -> None:
        """A part is done; its bad images are told of with it."""
        with self._lock:
            self.tally.parts += 1
            self.tally.rows += report.rows
            self.tally.bytes += report.bytes
            self.tally.bad_images += len(report.bad)
            for bad in report.bad:
                self.last_reason = bad.reason
                self.write("bad_image", {"view_set": view_set, **bad._asdict()})
            fields = {
                "view_set": view_set,
                "teacher": None if report.teacher == OF_VIEWS else report.teacher,
                "part": report.part,
                "rows": report.rows,
                "bytes": report.bytes,
                "seconds": round(report.spent.total, 6),
                "encode_seconds": round(report.spent.encode, 6),
                "host": report.host,
                "pid": report.pid,
                "worker": worker,
            }
            self.write("part_finished", fields)

    def task_failed(self, task: str, error: BaseException, /, *, retried: bool) -> None:
        """A task of the cluster raised what another attempt may mend."""
        with self._lock:
            self.tally.tasks_failed += 1
            self.write("task_failed", {"task": task, "error": _told(error), "retried": retried})

    def cluster(self, scheduler: str, /, *, dashboard: str) -> None:
        """A cluster is in use."""
        self.dashboard = dashboard
        self.write("cluster_joined", {"scheduler": scheduler, "dashboard": dashboard or None})

    def seen(self, workers: Iterable[str], /) -> None:
        """The workers that there are now."""
        with self._lock:
            before, self.workers = self.workers or frozenset(), frozenset(workers)
            self.tally.workers_lost += len(before - self.workers)
            for name, changed in (("worker_lost", before - self.workers), ("worker_joined", self.workers - before)):
                for worker in sorted(changed):
                    self.write(name, {"worker": worker})

    def _end(self, error: BaseException | None) -> None:
        if error is None and self._file is None:
            return
        totals = asdict(self.tally) | {"seconds": round(monotonic() - self._started, 3)}
        if error is None:
            self.write("run_finished", totals)
        elif isinstance(error, KeyboardInterrupt | Interrupted):
            self.write("run_interrupted", totals)
        else:
            if isinstance(error, TooManyBadError):
                self.write("limit_exceeded", {"error": _told(error)})
            self.write("run_failed", totals | {"error": _told(error)})

    def _about(self) -> dict[str, object]:
        versions = {"python": sys.version.split()[0], **software()}
        host = socket.gethostname()
        return {"recipe_digest": self._recipe_digest, "software": versions, "host": host, "pid": os.getpid()}


def _told(error: BaseException) -> str:
    return one_line(str(error) or type(error).__name__)
