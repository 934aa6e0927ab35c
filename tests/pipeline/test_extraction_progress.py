from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import NamedTuple

import pytest
from rich.console import Console

from pipeline import extraction_progress
from pipeline.extraction_events import events_path
from pipeline.extraction_log import ExtractionLog
from pipeline.extraction_progress import ExtractionProgress
from pipeline.part_report import OF_VIEWS, BadImage, report_of
from store.column import Column
from store.commits import ObjectDigest, PartCommit
from store.costs import UNTIMED
from store.store import Store
from store.viewset import ViewSet
from tests.store.tiny_store import column_spec, view_spec


class Work(NamedTuple):
    """A view set of 1000 rows in 10 parts, two columns over it, and the log."""

    views: ViewSet
    a: Column
    b: Column
    log: ExtractionLog

    def view(self) -> ExtractionProgress:
        return ExtractionProgress(self.views.name, self.log)


@pytest.fixture
def work(tmp_path: Path) -> Work:
    store = Store.create(str(tmp_path / "store"))
    views = store.create_view_set(view_spec(images=1000, rows_per_shard=100))
    a, b = (store.create_column(column_spec(teacher)) for teacher in "ab")
    return Work(views, a, b, ExtractionLog(events_path(tmp_path)))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the view takes for the time."""
    now = [1000.0]
    monkeypatch.setattr(extraction_progress, "monotonic", lambda: now[0])
    return now


def commit(part: int) -> PartCommit:
    start, objects = 100 * part, {"shards/x": ObjectDigest(sha256="0" * 64, size=50)}
    return PartCommit(owner="t", part=part, start=start, stop=start + 100, keys_sha256="0" * 64, objects=objects)


def test_a_batch_log_gets_a_line_for_each_now_and_then(
    work: Work, clock: list[float], capfd: pytest.CaptureFixture[str]
) -> None:
    with work.view() as progress:
        progress.begin_views(work.views, missing=range(10), engine="process")
        progress.begin_column(work.a, missing=range(5, 10))
        progress.begin_column(work.b, missing=[])
        for _ in range(7):
            clock[0] += 5
            progress.advance(OF_VIEWS, 100)
            progress.advance("a", 10)
    assert capfd.readouterr().err.splitlines() == [
        "views t: 600/1000 rows, 20 rows/s, ETA 0:00:20",
        "extract a over t: 550/1000 rows, 1.67 rows/s, ETA 0:04:30",
    ]


def test_what_is_done_gets_one_more_line(work: Work, clock: list[float], capfd: pytest.CaptureFixture[str]) -> None:
    with work.view() as progress:
        progress.begin_column(work.a, missing=range(9, 10))
        progress.begin_column(work.b, missing=range(10))
        progress.advance("a", 100)
        for _ in range(3):
            clock[0] += 31
            progress.advance("b", 10)
    lines = capfd.readouterr().err.splitlines()
    assert [line for line in lines if " a " in line] == ["extract a over t: 1000/1000 rows, done"]
    assert len(lines) == 4


def test_nothing_happening_is_told_too(work: Work, clock: list[float], capfd: pytest.CaptureFixture[str]) -> None:
    with work.view() as progress:
        progress.tick()
        progress.begin_column(work.a, missing=range(10))
        for _ in range(70):
            clock[0] += 1
            progress.tick()
    assert capfd.readouterr().err.splitlines() == ["extract a over t: 0/1000 rows, 0 rows/s"] * 2


def test_failures_are_told_once_until_there_are_more(
    work: Work, clock: list[float], capfd: pytest.CaptureFixture[str]
) -> None:
    with work.view() as progress:
        progress.begin_views(work.views, missing=range(10), engine="dask")
        bad = [BadImage(3, "a.jpg", "a.jpg: cannot be decoded"), BadImage(4, "b.jpg", "b.jpg: is empty")]
        progress.landed(report_of(OF_VIEWS, 0, commit(0), spent=UNTIMED, bad=bad))
        work.log.seen(["one", "two"])
        for _ in range(2):
            clock[0] += 31
            progress.tick()
        work.log.seen(["two", "three"])
        work.log.task_failed("views", OSError("no space"), retried=True)
        clock[0] += 31
        progress.tick()
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("extract t: ")]
    assert told == [
        "extract t: 2 bad images (last: b.jpg: is empty); 2 Dask workers",
        "extract t: 2 bad images (last: b.jpg: is empty), 1 failed tasks, 1 workers lost; 2 Dask workers",
    ]


def test_a_terminal_gets_one_table(work: Work, clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(extraction_progress, "CONSOLE", Console(file=shown, force_terminal=True, width=140))
    with work.view() as progress:
        assert shown.getvalue() == "", "nothing before there is work"
        progress.begin_column(work.a, missing=range(5, 10))
        work.log.cluster("tcp://h:1", dashboard="http://h:8787/status")
        work.log.seen(["one", "two"])
        with progress.step("fit codec of b", total=9, unit="shares") as advance:
            advance(2)
            clock[0] += 10
            progress.advance("a", 50)
            progress.landed(report_of("a", 7, commit(7), spent=UNTIMED))
            assert "fit codec of b" in "".join(str(line) for line in lines_of(progress))
    lines = lines_of(progress)
    assert [" ".join(line.replace("━", "").split()) for line in lines] == [
        "views t 1000/1000 rows done",
        "extract a over t 650/1000 rows 15 rows/s ETA 0:00:23",
        "2 Dask workers, http://h:8787/status",
    ]
    assert "650/1000 rows" in shown.getvalue()


def lines_of(progress: ExtractionProgress) -> list[str]:
    console = Console(file=io.StringIO(), width=140, color_system=None)
    with console.capture() as capture:
        console.print(progress._render())
    return capture.get().replace("╸", "").replace("╺", "").splitlines()


def test_threads_may_tell_it(work: Work) -> None:
    def tell() -> None:
        for _ in range(1000):
            progress.advance("a", 1)
        progress.finished("a", 1, commit(1))

    with work.log, work.view() as progress:
        progress.begin_column(work.a, missing=range(10))
        threads = [threading.Thread(target=tell) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert progress._lines["extract a over t"].pace.count == 4000
    assert (work.log.tally.parts, work.log.tally.rows, work.log.tally.bytes) == (4, 400, 200)
