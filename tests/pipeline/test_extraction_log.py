from __future__ import annotations

import errno
from contextlib import nullcontext
from pathlib import Path

import pytest

from pipeline.errors import Interrupted, PipelineError, TooManyBadError
from pipeline.extraction_events import Event, EventFile, events_path, read_events
from pipeline.extraction_log import ExtractionLog
from pipeline.part_report import OF_VIEWS, BadImage, report_of
from pipeline.recipes import Recipe
from pipeline.stages.run import run_stage
from store.commits import ObjectDigest, PartCommit
from store.costs import UNTIMED, Spent
from tests.tiny_recipe import tiny_recipe

COMMIT = PartCommit(
    owner="t",
    part=2,
    start=20,
    stop=30,
    keys_sha256="0" * 64,
    objects={"shards/x": ObjectDigest(sha256="0" * 64, size=50)},
)


def test_a_command_that_finds_all_done_leaves_no_trace(tmp_path: Path) -> None:
    with ExtractionLog(events_path(tmp_path)):
        pass
    assert not events_path(tmp_path).parent.exists()


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (None, ["run_finished"]),
        (KeyboardInterrupt(), ["run_interrupted"]),
        (Interrupted("asked to stop"), ["run_interrupted"]),
        (TooManyBadError("3 of 4\nrows"), ["limit_exceeded", "run_failed"]),
        (PipelineError("no scheduler"), ["run_failed"]),
        (ZeroDivisionError(), ["run_failed"]),
    ],
)
def test_how_it_ended_comes_last_with_totals(error: BaseException | None, ends: list[str], tmp_path: Path) -> None:
    log = ExtractionLog(events_path(tmp_path), recipe_digest="d")
    with pytest.raises(type(error)) if error else nullcontext(), log:
        log.part("t", report_of(OF_VIEWS, 2, COMMIT, spent=UNTIMED, bad=[BadImage(21, "k", "torn")]))
        log.part("t", report_of("a", 2, COMMIT, spent=Spent(4.0, 1.5)), worker="tcp://h:1")
        log.seen(["one"])
        log.seen([])
        if error is not None:
            raise error
    first, *events = read_events(events_path(tmp_path))
    assert (first.name, first.fields["recipe_digest"]) == ("run_started", "d")
    assert {"python", "torch", "sak-distill"} <= first.fields["software"].keys()
    made = ["bad_image", "part_finished", "part_finished", "worker_joined", "worker_lost"]
    assert [event.name for event in events] == [*made, *ends]
    assert events[0].fields == {"view_set": "t", "row": 21, "key": "k", "reason": "torn"}
    views, teacher = events[1].fields, events[2].fields
    assert (views["teacher"], views["worker"], teacher["teacher"], teacher["worker"]) == (None, None, "a", "tcp://h:1")
    assert (teacher["part"], teacher["rows"], teacher["bytes"], teacher["seconds"]) == (2, 10, 50, 4.0)
    assert teacher["encode_seconds"] == 1.5
    totals = {"parts": 2, "rows": 20, "bytes": 100, "bad_images": 1, "tasks_failed": 0, "workers_lost": 1}
    assert events[-1].fields.items() >= totals.items()
    assert events[-1].fields.get("error", "") == ("" if "run_failed" not in ends else told(error))


def told(error: BaseException | None) -> str:
    return {"3 of 4\nrows": "3 of 4\\nrows", "": "ZeroDivisionError"}.get(str(error), str(error))


def test_a_log_that_cannot_be_written_hides_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = ExtractionLog(events_path(tmp_path))
    with pytest.raises(ZeroDivisionError), log:  # noqa: PT012
        log.seen(["one"])
        monkeypatch.setattr(EventFile, "write", full)
        raise ZeroDivisionError
    with pytest.raises(OSError, match="no room"), ExtractionLog(events_path(tmp_path)) as other:
        other.seen(["one"])


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "no room")


def events_of(recipe: Recipe) -> list[Event]:
    run_stage("extract", recipe, recipe.runs)
    return read_events(events_path(recipe.out))


def test_an_extraction_of_several_view_sets_is_one_run(tmp_path: Path) -> None:
    codec = "extract.codec={name: klt, error: 0.1, rows: 8}"
    recipe = tiny_recipe(tmp_path, [codec], only="sak")
    events = events_of(recipe)
    assert len({event.run for event in events}) == 1
    names = [event.name for event in events]
    assert (names[0], names[-1]) == ("run_started", "run_finished")
    assert len({event.fields["view_set"] for event in events if event.name == "views_started"}) == 3
    fitted = [event.fields for event in events if event.name == "codec_fitted"]
    assert {(field["teacher"], field["codec"]["error"]) for field in fitted} == {("first", 0.1), ("second", 0.1)}
    wanted = [event.fields for event in events if event.name in ("views_started", "column_started")]
    parts = [event.fields for event in events if event.name == "part_finished"]
    assert len(parts) == sum(field["parts_missing"] for field in wanted) == events[-1].fields["parts"]
    assert sum(part["rows"] for part in parts) == sum(field["rows_missing"] for field in wanted)
    assert all(part["seconds"] > 0 and part["bytes"] > 0 for part in parts)
    assert events_of(recipe) == events, "done again, nothing is written"
