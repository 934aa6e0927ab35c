from __future__ import annotations

import json
import multiprocessing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.extraction_events import EVENTS, TOTALS, EventFile, events_path, read_events

ROOT = Path(__file__).resolve().parents[2]
WORKER = {"worker": "tcp://a:1"}


def write(path: Path, run: str, workers: list[str]) -> None:
    file = EventFile(path, run=run)
    for worker in workers:
        file.write("worker_lost", {"worker": worker})
    file.close()


def test_events_come_back_in_order_with_run_and_time(tmp_path: Path) -> None:
    path = events_path(tmp_path / "out")
    write(path, "one", ["a", "b\nc"])
    write(path, "two", ["ü"])
    events = read_events(path)
    assert [(event.run, event.name, event.fields["worker"]) for event in events] == [
        ("one", "worker_lost", "a"),
        ("one", "worker_lost", "b\nc"),
        ("two", "worker_lost", "ü"),
    ]
    for event in events:
        assert abs(event.time - datetime.now(UTC)) < timedelta(minutes=5)
        assert event.fields.keys() == {"worker"}
    for line in path.read_text(encoding="utf-8").splitlines():
        assert {"schema", "run", "time", "event", "worker"} == json.loads(line).keys()


@given(st.data())
def test_a_crash_costs_the_line_it_cut(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("cut") / "events.jsonl"
    write(path, "one", ["a", "b", "c"])
    whole = path.read_bytes()
    kept = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:kept])
    left = whole[:kept].count(b"\n")
    assert [event.fields["worker"] for event in read_events(path)] == ["a", "b", "c"][:left]
    write(path, "two", ["d"])
    assert [event.fields["worker"] for event in read_events(path)] == [*["a", "b", "c"][:left], "d"]
    assert path.read_bytes().startswith(whole[:kept][: whole[:kept].rfind(b"\n") + 1])


def test_commands_at_once_do_not_mix_lines(tmp_path: Path) -> None:
    path, workers = tmp_path / "events.jsonl", [f"{number}" * 300 for number in range(200)]
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write, args=(path, run, workers)) for run in ("one", "two")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    events = read_events(path)
    for run in ("one", "two"):
        assert [event.fields["worker"] for event in events if event.run == run] == workers


def test_no_log_has_no_events(tmp_path: Path) -> None:
    assert read_events(tmp_path / "events.jsonl") == []


@pytest.mark.parametrize(
    "line",
    [b"{", b"[]", b"\xff", b'{"schema": 1}', b'{"schema": 2, "run": "a", "time": "2026-01-01", "event": "x"}', b""],
)
def test_another_line_is_refused_by_its_number(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    write(path, "one", ["a"])
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(
        DataError, match=r"events\.jsonl:2: not an event of an extraction \(.*remove the line"
    ) as caught:
        read_events(path)
    assert len(str(caught.value).splitlines()) == 1


def test_events_of_later_versions_are_read(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(
        '{"schema": 1, "run": "a", "time": "2026-01-01T00:00:00Z", "event": "new", "x": 1}\n', encoding="utf-8"
    )
    (event,) = read_events(path)
    assert (event.name, event.fields) == ("new", {"x": 1})


@pytest.mark.parametrize("name", EVENTS)
def test_the_page_tells_of_every_event_and_field(name: str) -> None:
    page = (ROOT / "docs/extraction-events.md").read_text(encoding="utf-8")
    (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
    fields = [*EVENTS[name], *(TOTALS if name in ("run_finished", "run_failed", "run_interrupted") else ())]
    assert [field for field in fields if f"`{field}`" not in row and field not in TOTALS] == []
    assert [field for field in TOTALS if f"`{field}`" not in page] == []
