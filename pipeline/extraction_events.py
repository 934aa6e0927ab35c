"""The event log of extractions: JSON lines, appended to by every command that extracts for a recipe.

``docs/extraction-events.md`` describes it for those who read it.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from store.errors import one_line

__all__ = ["EVENTS", "SCHEMA", "Event", "EventFile", "events_path", "read_events"]

SCHEMA = 1
"""Raise it when a field goes or changes its meaning; a new event or field needs no new number."""

EVENTS: Mapping[str, tuple[str, ...]] = {
    "run_started": ("recipe_digest", "software", "host", "pid"),
    "views_started": ("store", "view_set", "engine", "rows", "rows_missing", "parts_missing"),
    "column_started": ("store", "view_set", "teacher", "column", "rows", "rows_missing", "parts_missing"),
    "codec_fitted": ("view_set", "teacher", "codec", "seconds"),
    "part_finished": (
        *("view_set", "teacher", "part", "rows", "bytes", "seconds", "encode_seconds", "host", "pid", "worker"),
    ),
    "bad_image": ("view_set", "row", "key", "reason"),
    "cluster_joined": ("scheduler", "dashboard"),
    "worker_joined": ("worker",),
    "worker_lost": ("worker",),
    "scheduler_lost": ("scheduler",),
    "scheduler_returned": ("scheduler",),
    "task_failed": ("task", "error", "retried"),
    "task_doubled": ("task", "worker", "seconds"),
    "limit_exceeded": ("error",),
    "run_finished": (),
    "run_failed": ("error",),
    "run_interrupted": (),
}
"""Fields of each event, beside those of all. The last three also have every field of ``TOTALS``."""

TOTALS = ("seconds", "parts", "rows", "bytes", "bad_images", "tasks_failed", "workers_lost")
_ENDS = ("run_finished", "run_failed", "run_interrupted")
_OF_ALL = ("schema", "run", "time", "event")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One line.

    Attributes:
        run: Of the command that wrote it.
        time: When, in UTC.
        name: One of ``EVENTS``, or one of a later version.
        fields: All else, by name.
    """

    schema: int
    run: str
    time: datetime
    name: str
    fields: Mapping[str, Any]


class EventFile:
    """Appends events to a file, each whole or, after a crash, cut and then taken away.

    Args:
        run: Names this command in all its lines.
    """

    def __init__(self, path: Path, /, *, run: str) -> None:
        self._run = run
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        with self._locked():
            self._drop_cut_line()

    def write(self, name: str, fields: Mapping[str, object], /) -> None:
        """Append one event of now."""
        expected = {*EVENTS[name], *(TOTALS if name in _ENDS else ())}
        assert fields.keys() == expected, (name, fields.keys() ^ expected)
        time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = json.dumps({"schema": SCHEMA, "run": self._run, "time": time, "event": name, **fields}) + "\n"
        data = line.encode()
        with self._locked():  # several commands of one recipe may run at once
            while data:
                data = data[os.write(self._descriptor, data) :]

    def close(self) -> None:
        """Write no more."""
        os.close(self._descriptor)

    def _drop_cut_line(self) -> None:
        """Take away what a crash left of a line, which would spoil the next one."""
        end = size = os.fstat(self._descriptor).st_size
        while end:
            start = max(0, end - 65536)
            found = os.pread(self._descriptor, end - start, start).rfind(b"\n")
            end = start + found + 1
            if found >= 0:
                break
        if end < size:
            os.ftruncate(self._descriptor, end)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)


def events_path(out: Path, /) -> Path:
    """The log of a recipe whose results are in this folder."""
    return out / "extract" / "events.jsonl"


def read_events(path: Path, /) -> list[Event]:
    """Events of a log, oldest first; a last line that is cut, or still being written, is left out.

    Raises:
        DataError: A line is none of this or an earlier version.
    """
    if not path.exists():
        return []
    *whole, _ = path.read_bytes().split(b"\n")
    return [_event(line, where=f"{path}:{number}") for number, line in enumerate(whole, start=1)]


def _event(line: bytes, *, where: str) -> Event:
    try:
        found = json.loads(line)
        schema, run, time, name = (found.pop(key) for key in _OF_ALL)
        if type(schema) is not int or schema > SCHEMA:
            raise ValueError(f"schema {schema!r}, known up to {SCHEMA}")
        return Event(schema=schema, run=str(run), time=datetime.fromisoformat(time), name=str(name), fields=found)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        fault = one_line(str(error))
        raise DataError(
            f"{where}: not an event of an extraction ({fault}); remove the line, or read with a newer sak"
        ) from error
