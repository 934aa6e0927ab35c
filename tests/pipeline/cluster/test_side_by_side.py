"""A worker reads a part while it makes another and writes a third; nothing else changes, whatever dies meanwhile."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import column_engine
from pipeline.cluster.work import make_columns
from pipeline.column_engine import Overlap
from pipeline.extraction_events import events_path, read_events
from pipeline.extraction_log import ExtractionLog
from pipeline.maps import LiveMaps
from pipeline.stages.extract import extract
from store.column import Column
from store.viewset import ViewSet
from tests.pipeline.cluster.conftest import SMALL, client_of, local_cluster, over, study_of
from tests.tiny_recipe import stored_bytes

PARTS, PART_ROWS = 11, 2
IN_TURN = 30.0  # seconds to wait for what never comes where parts are made one after the other


class Witness:
    """Steps of parts, one of which waits for a step of some later part."""

    def __init__(self) -> None:
        self.parts: dict[str, set[int]] = {"read": set(), "made": set(), "written": set()}
        self.alone: list[tuple[str, int]] = []
        self._change = threading.Condition()

    def step(self, name: str, part: int) -> None:
        with self._change:
            self.parts[name].add(part)
            self._change.notify_all()

    def await_more(self, name: str, than: str, part: int) -> None:
        """Wait until a step was begun of more parts than another; there is none after the last."""

        def more() -> bool:
            return len(self.parts[name]) > len(self.parts[than]) or len(self.parts[name]) == PARTS

        with self._change:
            if not self._change.wait_for(more, timeout=IN_TURN):
                self.alone.append((than, part))


def before(call: Callable[..., Any], note: Callable[..., object]) -> Callable[..., Any]:
    """The call, and before it a note of its arguments."""

    def noted(*arguments: Any, **options: Any) -> Any:
        note(*arguments)
        return call(*arguments, **options)

    return noted


@pytest.mark.parametrize(
    ("overlap", "resources"),
    [(Overlap(1, behind=1), {}), (Overlap(1, ahead=2, behind=2), {}), (Overlap(1, ahead=2, behind=2), {"GPU": 1})],
    ids=["CPU", "GPU", "GPU as a resource"],
)
def test_parts_are_read_made_and_written_side_by_side(
    overlap: Overlap,
    resources: dict[str, float],
    expected_small: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One worker of one thread: what waits here for a later part would wait in vain if that were not begun."""
    seen = Witness()

    def made(_: LiveMaps, rows: range, *__: object) -> None:
        part = rows[0] // PART_ROWS
        seen.step("made", part)
        if overlap.ahead:
            seen.await_more("read", "made", part)

    def written(_: Column, part: int, *__: object) -> None:
        seen.step("written", part)
        seen.await_more("made", "written", part)

    monkeypatch.setattr(column_engine, "overlap_of", lambda *_, **__: overlap)
    read = before(ViewSet.read_rows, lambda _, rows: seen.step("read", int(rows[0]) // PART_ROWS))
    monkeypatch.setattr(ViewSet, "read_rows", read)
    monkeypatch.setattr(LiveMaps, "maps", before(LiveMaps.maps, made))
    monkeypatch.setattr(Column, "write_part", before(Column.write_part, written))
    with local_cluster(1, processes=False, resources=resources) as made_cluster:
        extract([study_of(tmp_path, [*SMALL, *over(made_cluster.scheduler_address)])])
    assert seen.parts["written"] == set(range(PARTS))
    assert seen.alone == []
    assert stored_bytes(tmp_path / "store") == expected_small


def _dying_columns(place: Any, *arguments: Any) -> object:
    """In one worker, once some parts are done: die while a part is written and the next one is made."""
    folder = Path(place.store).parent
    if len(list(folder.glob("store/columns/*/*/commits/*.json"))) >= 2:
        _die_between(folder)
    return make_columns(place, *arguments)


def _die_between(folder: Path) -> None:
    try:
        (folder / "chosen").touch(exist_ok=False)
    except FileExistsError:
        return
    writing, making = threading.Event(), threading.Event()

    def made(*_: object) -> None:
        if writing.is_set():
            making.set()

    def written(_: Column, part: int, *__: object) -> None:
        writing.set()
        if making.wait(IN_TURN):
            (folder / "died").write_text(str(part), encoding="utf-8")
            os._exit(1)

    LiveMaps.maps = before(LiveMaps.maps, made)  # type: ignore[method-assign]
    Column.write_part = before(Column.write_part, written)  # type: ignore[method-assign]


@pytest.mark.slow
def test_a_worker_that_dies_between_two_parts_costs_nothing_but_time(
    address: str, expected_small: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are made again, the rest is not, and each part is told of once."""
    monkeypatch.setattr("pipeline.cluster.extraction.make_columns", _dying_columns)
    with client_of(address) as client:
        client.wait_for_workers(2, timeout=60)
    extract([study_of(tmp_path, [*SMALL, *over(address)])], log=ExtractionLog(events_path(tmp_path)))
    assert (tmp_path / "died").exists()
    assert stored_bytes(tmp_path / "store") == expected_small
    events = read_events(events_path(tmp_path))
    told = Counter((e.fields["teacher"], e.fields["part"]) for e in events if e.name == "part_finished")
    assert told == Counter((teacher, part) for teacher in ("first", None) for part in range(PARTS))
    assert events[-1].name == "run_finished"
