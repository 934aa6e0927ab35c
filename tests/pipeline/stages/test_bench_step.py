from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from pipeline.bench.contender import BenchError
from pipeline.bench.step import WAYS, StepLine, StepTurn
from pipeline.bench.step_tables import StepResult, step_json, step_notes
from pipeline.stages.bench_step import STUDENTS, bench_step, step_plan
from tests.conftest import Finished
from tests.sak_process import sak
from tests.tiny_recipe import tiny_mapping, tiny_recipe


def test_a_recipe_is_measured_on_its_own_store(finished: Finished, tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(tiny_mapping(finished.root)), encoding="utf-8")
    plan = step_plan(recipe, teachers=[], students=[], overrides=[], size=224)
    assert (plan.students, plan.own_store, plan.rows) == (("vit_tiny_patch16_224",), True, 12 * 4)
    result = bench_step(replace(plan, steps=2, warmup=1, rounds=2, cold=True))
    (line,) = step_json(result)["lines"]
    assert line["ways"].keys() == WAYS.keys()
    for way, found in line["ways"].items():
        assert len(found["rounds"]) == 2
        assert found["images_per_second"] == pytest.approx(4 / found["seconds"])
        assert (found["read_bytes_per_second"] > 0) == (way in ("cached", "online"))
        assert 0 <= found["data_wait"] < 1
    assert line["ways"]["cached"]["read_bytes_per_second"] > line["ways"]["online"]["read_bytes_per_second"]
    assert line["limit"] == (line["teacher_macs"] + 3 * line["macs"]) / (3 * line["macs"])
    # Both teachers are the stem's own network, without its adapters and aligners.
    assert 1 < line["teacher_macs"] / line["macs"] < 2


def test_a_made_store_is_removed(tmp_path: Path) -> None:
    study = tiny_recipe(tmp_path, only="sak").runs[0].study
    plan = replace(step_plan(None, teachers=[], students=["vit_tiny_patch16_224"], overrides=[], size=32), study=study)
    result = bench_step(replace(plan, steps=1, warmup=1, rounds=1, shard=4, folder=tmp_path))
    assert result.conditions["teachers"] == {"second": "fp32", "first": "fp32"}
    assert result.lines[0].turns["cached"][0].read_rate > 0
    assert not list(tmp_path.iterdir())


def test_goals_are_told_met_or_missed() -> None:
    turns = {"cached": 1.0, "encoded": 0.98, "decoded": 0.96, "online": 1.5}
    line = StepLine("s", 10, 30, 5, {way: [StepTurn(seconds, 0.1, 1e6)] for way, seconds in turns.items()})
    slow = StepLine("t", 10, 60, 5, {**line.turns, "decoded": [StepTurn(0.9, 0.0, 0.0)]})
    names = ("device", "machine", "torch", "precision", "rounds", "steps", "files", "threads")
    facts = dict.fromkeys((*names, "load_before", "load_after"), 1.0) | {
        "batch": 8,
        "size": [8, 8],
        "teachers": {"a": "int8"},
    }
    one, other, *_ = step_notes(StepResult(conditions=facts, lines=[line, slow]))
    assert "cached / decoded 1.042 (met" in one
    assert "1.50 of at most 2.00 = 0.75 (missed" in one
    assert "cached / decoded 1.111 (missed" in other
    fast = StepLine("s", 10, 30, 5, {**line.turns, "online": [StepTurn(1.9, 0.0, 0.0)]})
    found = step_json(StepResult(conditions=facts, lines=[fast]))["lines"][0]
    assert (found["gain_met"], found["ways"]["cached"]["images_per_second"]) == (True, 8.0)


def test_teachers_by_name_and_both_students_by_default() -> None:
    plan = step_plan(None, teachers=["dinov2_vits14"], students=[], overrides=["distill.batch=3"], size=96)
    assert (plan.students, plan.own_store, plan.config.batch) == (STUDENTS, False, 3)
    assert plan.study.student_teachers == ("dinov2_vits14",)
    with pytest.raises(BenchError, match="steps: expected at least 1, got 0"):
        replace(plan, steps=0)


def test_the_command_prints_a_table_or_json(tmp_path: Path) -> None:
    short = ["--steps", "1", "--warmup", "1", "--rounds", "1", "--batch", "2", "--size", "32", "--device", "cpu"]
    options = ["--teacher", "scenes-boundary", "--student", "vit_tiny_patch16_224", "--threads", "1", *short]
    done = sak("bench", "step", *options, "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    assert [line["student"] for line in json.loads(done.out)["lines"]] == ["vit_tiny_patch16_224"]
    assert json.loads(done.out)["conditions"]["batch"] == 2


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    for options, problem in (
        (["--teacher", "no_such"], "no_such"),
        (["recipe.yaml", "--teacher", "dinov2_vits14"], "expected a recipe or --teacher NAME, got both"),
        (["--dir", "nowhere"], "nowhere: expected a folder to write to"),
    ):
        done = sak("bench", "step", *options, cwd=tmp_path)
        assert done.code == 2
        assert problem in done.err
        assert done.err.count("\n") == 1
