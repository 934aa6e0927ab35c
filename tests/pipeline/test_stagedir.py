from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import PipelineError
from pipeline.runtime import device_name
from pipeline.stagedir import StageDir, read_json, write_json

CPU = torch.device("cpu")


def test_equal_inputs_share_a_folder_and_others_do_not(tmp_path: Path) -> None:
    one = StageDir.of(tmp_path, "distill", inputs={"a": 1, "b": [2.5, None]})
    same = StageDir.of(tmp_path, "distill", inputs={"b": [2.5, None], "a": 1})
    assert one.path == same.path
    assert one.path.name == f"distill-{one.fingerprint}"
    assert StageDir.of(tmp_path, "finetune", inputs=one.inputs).path != one.path
    for other in ({"a": 2, "b": [2.5, None]}, {"a": 1, "b": [2.5]}, {"a": 1, "b": [None, 2.5]}, {"a": 1}):
        assert StageDir.of(tmp_path, "distill", inputs=other).path != one.path


def test_done_comes_last_with_a_record(tmp_path: Path) -> None:
    stage = StageDir.of(tmp_path, "eval", inputs={"a": 1})
    with stage.work(device=CPU) as record:
        assert not stage.done()
        record["images"] = 7
        assert not stage.done()
    assert stage.done()
    found = stage.record()
    assert (found["stage"], found["inputs"], found["images"]) == ("eval", {"a": 1}, 7)
    assert found["device"] == device_name(CPU)
    assert isinstance(found["versions"], dict)
    assert {"python", "torch"} <= found["versions"].keys()


def test_a_failed_stage_is_not_done_and_time_adds_up(tmp_path: Path) -> None:
    stage = StageDir.of(tmp_path, "eval", inputs={})
    with pytest.raises(RuntimeError), stage.work(device=CPU):
        raise RuntimeError
    assert not stage.done()
    write_json(stage.path / "seconds.json", {"seconds": 1000.0})
    with stage.work(device=CPU):
        pass
    assert float(str(stage.record()["seconds"])) > 1000


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    path = tmp_path / "stage.json"
    with pytest.raises(PipelineError, match=r"stage\.json: cannot be read"):
        read_json(path)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(PipelineError, match="delete its folder and rerun"):
        read_json(path)
    path.write_text("[1]", encoding="utf-8")
    with pytest.raises(PipelineError, match="expected a JSON mapping, got list"):
        read_json(path)


numbers = st.floats() | st.integers() | st.none() | st.booleans() | st.text()
trees = st.recursive(numbers, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)


def _without_nan(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@settings(max_examples=30, deadline=None)  # each example is flushed to disk
@given(st.dictionaries(st.text(), trees, max_size=4))
def test_json_is_finite_or_null(tmp_path_factory: pytest.TempPathFactory, data: dict[str, object]) -> None:
    path = tmp_path_factory.getbasetemp() / "round.json"
    write_json(path, data)

    def refuse(word: str) -> None:
        raise AssertionError(word)

    assert json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse) == _without_nan(data)
    assert read_json(path) == _without_nan(data)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}


def test_a_folder_at_work_is_nobody_elses(tmp_path: Path) -> None:
    stage = StageDir.of(tmp_path, "distill", inputs={})
    with stage.work(device=CPU):
        with pytest.raises(PipelineError, match=f"{stage.path.name}: process {os.getpid()} is working in it"):  # noqa: SIM117
            with stage.work(device=CPU):
                raise AssertionError
        assert not stage.done()
    assert stage.done()
    assert sorted(path.name for path in stage.path.iterdir()) == ["seconds.json", "stage.json"]


def test_a_lock_goes_with_its_process(tmp_path: Path) -> None:
    stage = StageDir.of(tmp_path, "distill", inputs={})
    with contextlib.suppress(RuntimeError), stage.work(device=CPU):
        raise RuntimeError
    (stage.path / ".lock").write_text("999999")  # as a killed process leaves it
    with stage.work(device=CPU):
        assert (stage.path / ".lock").read_text() == str(os.getpid())
    assert stage.done()


def test_a_lock_file_removed_by_its_holder_is_taken_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = StageDir.of(tmp_path, "distill", inputs={})
    locked, removed = fcntl.flock, []

    def late(descriptor: int, operation: int) -> None:
        if not removed:
            removed.append(descriptor)
            (stage.path / ".lock").unlink()
        locked(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with stage.work(device=CPU), pytest.raises(PipelineError, match="is working in it"), stage.work(device=CPU):
        raise AssertionError


def test_work_that_was_finished_meanwhile_is_not_done_again(tmp_path: Path) -> None:
    stage = StageDir.of(tmp_path, "distill", inputs={})
    write_json(stage.path / "stage.json", {"seconds": 1})
    with pytest.raises(PipelineError, match="has just finished it"), stage.work(device=CPU):
        raise AssertionError
    assert stage.record() == {"seconds": 1}


def test_only_finished_work_loses_its_checkpoints(tmp_path: Path) -> None:
    stage = StageDir.of(tmp_path, "distill", inputs={})
    kept = stage.path / "checkpoints/step-000000001.safetensors"
    write_json(kept, {})
    with pytest.raises(RuntimeError), stage.work(device=CPU):
        raise RuntimeError
    stage.tidy()
    assert kept.exists()
    with stage.work(device=CPU):
        assert kept.exists()
    assert not kept.parent.exists()
    write_json(kept, {})  # as a process leaves it that is killed between the record and the deletion
    stage.tidy()
    assert not kept.parent.exists()
