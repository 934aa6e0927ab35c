from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import NotDoneError, PipelineError
from pipeline.results import main_values, shown_tasks
from pipeline.runs import collect, select, stage_dirs, substudies
from sak.metrics import delta_m
from tests.conftest import Finished
from tests.tiny_recipe import run_stages, tiny_recipe


def test_select_by_name(finished: Finished) -> None:
    assert [plan.name for plan in select(finished.recipe, ["single-task", "sak"])] == ["single-task", "sak"]
    assert select(finished.recipe, []) == finished.recipe.runs
    with pytest.raises(PipelineError, match="run nobody, noone: not in this recipe; its runs are sak, no-distill"):
        select(finished.recipe, ["sak", "nobody", "noone"])


def test_a_split_run_is_one_study_for_each_task(finished: Finished) -> None:
    labels = [label for label, _ in substudies(finished.recipe.runs[2])]
    assert labels == ["single-task/semseg", "single-task/depth"]
    studies = [study for _, study in substudies(finished.recipe.runs[2])]
    assert [study.finetune.tasks for study in studies if study.finetune] == [("semseg",), ("depth",)]
    assert substudies(finished.recipe.runs[0]) == [("sak", finished.recipe.runs[0].study)]


def test_a_split_run_without_named_tasks_takes_all(finished: Finished, tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, ["runs.single-task.set={distill: null, finetune.alpha: 0.0, student.paths: none}"])
    assert len(substudies(recipe.runs[2])) == 6


def test_collect_compares_runs(finished: Finished, no_teacher: Callable[..., Any]) -> None:
    ours, base, single = collect(finished.recipe)
    assert ours.delta == {
        "no-distill": pytest.approx(
            delta_m(
                {task: ours.metrics[task] for task in main_values(ours, shown_tasks([ours]))},
                {task: base.metrics[task] for task in main_values(base, shown_tasks([base]))},
                "scenes",
            )
        )
    }
    assert list(main_values(single, shown_tasks([single]))) == ["semseg", "depth"]
    assert single.delta == {}, "a mean over other tasks would be no comparison"
    assert len(stage_dirs(finished.recipe.runs[2], finished.recipe.out).stages) == 2
    written = json.loads((finished.recipe.out / "results.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in written["runs"]] == ["sak", "no-distill", "single-task"]
    assert written["runs"][0]["delta"] == pytest.approx(dict(ours.delta))


def test_collecting_before_the_end_names_the_stage(finished: Finished, tmp_path: Path) -> None:
    recipe = finished.fresh(tmp_path)
    with pytest.raises(NotDoneError, match=r"sak: stage distill is not done \(.*\)$"):
        collect(recipe)
    run_stages(recipe, ["distill", "finetune"])
    with pytest.raises(NotDoneError, match="sak: stage eval is not done"):
        collect(recipe)
