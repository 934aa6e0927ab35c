from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import PipelineError
from pipeline.stagedir import StageDir, read_json, write_json


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
    with stage.work() as record:
        assert not stage.done()
        record["images"] = 7
        assert not stage.done()
    assert stage.done()
    found = stage.record()
    assert (found["stage"], found["inputs"], found["images"]) == ("eval", {"a": 1}, 7)
    assert isinstance(found["versions"], dict)
    assert {"python", "torch"} <= found["versions"].keys()


def test_a_failed_stage_is_not_done_and_time_adds_up(tmp_path: Path) -> None:
    stage = StageDir.of(tmp_path, "eval", inputs={})
    with pytest.raises(RuntimeError), stage.work():
        raise RuntimeError
    assert not stage.done()
    write_json(stage.path / "seconds.json", {"seconds": 1000.0})
    with stage.work():
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
