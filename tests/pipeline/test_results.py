from __future__ import annotations

import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.errors import PipelineError
from pipeline.recipes import Recipe
from pipeline.results import (
    RunResult,
    RunStages,
    delta_notes,
    gather,
    main_values,
    results_json,
    results_table,
    shown_tasks,
)
from pipeline.stagedir import StageDir, write_json
from tests.tiny_recipe import tiny_recipe

Scores = dict[str, dict[str, float]]
GOOD: Scores = {
    "semseg": {"mIoU": 60.0},
    "depth": {"RMSE": 0.5},
    "distill": {"loss": 1.5},
}
BASE: Scores = {"semseg": {"mIoU": 50.0}, "depth": {"RMSE": 1.0}}


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return tiny_recipe(tmp_path)


def stages_of(folder: Path, metrics: Scores, *, seconds: float = 2.0, total: int = 100) -> dict[str, StageDir]:
    """Records as a finished run leaves them."""
    found = {}
    for name in ("distill", "finetune", "eval"):
        stage = StageDir.of(folder, name, inputs={"folder": str(folder)})
        counts = {"stem": total - 1, "paths": 1, "norms": 0, "aligners": 0, "total": total}
        record: dict[str, Any] = {"seconds": seconds, "parameters": counts}
        if name == "finetune":
            record["dataset"] = "scenes"
        write_json(stage.path / "stage.json", record)
        found[name] = stage
    write_json(found["eval"].path / "metrics.json", metrics)
    return found


def rows(recipe: Recipe, root: Path, *metrics: Scores) -> list[RunResult]:
    """The first runs of the recipe with these metrics."""
    runs = [
        RunStages(plan=plan, stages=[stages_of(root / plan.name, scores)])
        for plan, scores in zip(recipe.runs, metrics, strict=False)
    ]
    return gather(recipe, runs)


def text_of(results: list[RunResult]) -> list[str]:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(results_table(results))
    return console.export_text(styles=True).splitlines()


def test_delta_is_the_mean_relative_gain_over_the_baseline(recipe: Recipe, tmp_path: Path) -> None:
    ours, base = rows(recipe, tmp_path, GOOD, BASE)
    # +20 % of mIoU, and half the RMSE is +50 %.
    assert ours.delta == {"no-distill": pytest.approx(35.0)}
    assert base.delta == {}
    assert main_values(ours, shown_tasks([ours])) == {"semseg": 60.0, "depth": 0.5}
    assert (ours.parameters, ours.seconds) == (100, {"distill": 2.0, "finetune": 2.0, "eval": 2.0})


@pytest.mark.parametrize(("paths", "kept"), [(20, 100 + 20 + 3), (0, 100)], ids=["paths", "plain"])
def test_parameters_are_those_that_inference_keeps(recipe: Recipe, tmp_path: Path, paths: int, kept: int) -> None:
    stages = stages_of(tmp_path / "x", GOOD)
    counts = {"stem": 100, "paths": paths, "norms": 3, "aligners": 7}
    record = {"seconds": 1.0, "dataset": "scenes", "parameters": counts | {"total": sum(counts.values())}}
    write_json(stages["finetune"].path / "stage.json", record)
    (row, *_) = gather(recipe, [RunStages(plan=recipe.runs[1], stages=[stages])])
    assert row.parameters == kept


@pytest.mark.parametrize(
    "base",
    [
        {"semseg": {"mIoU": 0.0}, "depth": {"RMSE": 1.0}},
        {"semseg": {"mIoU": math.nan}, "depth": {"RMSE": 1.0}},
        {"semseg": {"mIoU": 50.0}},
    ],
    ids=["zero", "unscored", "other tasks"],
)
def test_where_no_relative_change_exists_the_table_still_does(recipe: Recipe, tmp_path: Path, base: Scores) -> None:
    ours, _ = results = rows(recipe, tmp_path, GOOD, base)
    assert ours.delta == {}
    assert any("sak" in line for line in text_of(results))


def test_results_are_finite_or_null(recipe: Recipe, tmp_path: Path) -> None:
    results = rows(recipe, tmp_path, GOOD | {"semseg": {"mIoU": math.nan}}, BASE)
    write_json(tmp_path / "results.json", results_json(results))

    def refuse(word: str) -> None:
        raise AssertionError(word)

    data = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert data["runs"][0]["metrics"]["semseg"] == {"mIoU": None}
    assert data["runs"][1]["metrics"]["semseg"] == {"mIoU": 50.0}
    assert "–" in next(line for line in text_of(results) if "sak" in line)


def test_runs_of_single_tasks_make_one_row(recipe: Recipe, tmp_path: Path) -> None:
    plan = recipe.runs[2]
    split = RunStages(
        plan=plan,
        stages=[
            stages_of(tmp_path / "one", {"semseg": {"mIoU": 55.0}}, seconds=3, total=10),
            stages_of(tmp_path / "two", {"depth": {"RMSE": 0.8}}, seconds=4, total=20),
        ],
    )
    base = RunStages(plan=recipe.runs[1], stages=[stages_of(tmp_path / "base", BASE)])
    row, _ = gather(recipe, [split, base])
    assert main_values(row, shown_tasks([row])) == {"semseg": 55.0, "depth": 0.8}
    assert row.parameters == 30
    assert row.seconds == {"distill": 7, "finetune": 7, "eval": 7}
    assert row.delta == {"no-distill": pytest.approx(15.0)}


def test_the_best_of_each_column_is_bold(recipe: Recipe, tmp_path: Path) -> None:
    lines = text_of(rows(recipe, tmp_path, GOOD, BASE | {"semseg": {"mIoU": 70.0}}))
    bold = "\x1b[1m"
    ours, base = (next(line for line in lines if name in line) for name in ("sak ", "no-distill "))
    assert f"{bold}0.50" in ours
    assert f"{bold}60.00" not in ours
    assert f"{bold}70.00" in base
    assert "+17.86" in ours


def edges(metrics: Scores, **values: float) -> Scores:
    return metrics | {"edge": {"maxF": 20.0, "loss": 0.5} | {name.replace("_", "-"): x for name, x in values.items()}}


def test_odsf_stands_for_boundaries_where_every_run_has_it(recipe: Recipe, tmp_path: Path) -> None:
    ours, base = results = rows(recipe, tmp_path, edges(GOOD, odsF=66.0), edges(BASE, odsF=60.0))
    assert [task.metric for task in shown_tasks(results)] == ["mIoU", "odsF", "RMSE"]
    # +20 %, +10 % and +50 %.
    assert ours.delta == {"no-distill": pytest.approx(80 / 3)}
    text = "\n".join(text_of([ours, base]))
    assert "boundary odsF ↑" in text
    assert "66.00" in text


@pytest.mark.parametrize("other", [{}, {"odsF_invpt": 60.0}], ids=["by pixel", "another protocol"])
def test_numbers_of_other_protocols_do_not_mix(recipe: Recipe, tmp_path: Path, other: dict[str, float]) -> None:
    ours, base = results = rows(recipe, tmp_path, edges(GOOD, odsF=66.0), edges(BASE, **other))
    assert [task.metric for task in shown_tasks(results)] == ["mIoU", "maxF", "RMSE"]
    assert ours.delta == {"no-distill": pytest.approx(70 / 3)}
    assert "boundary maxF ↑" in "\n".join(text_of(results))
    assert [task.metric for task in shown_tasks([ours])][1] == "odsF"
    alone = shown_tasks([base])[1]
    assert (alone.metric, alone.label) == (
        ("odsF-invpt", "boundary odsF-invpt ↑") if other else ("maxF", "boundary maxF ↑")
    )


NYUD: Scores = {
    "semseg": {"mIoU": 51.15},
    "normals": {"mErr": 19.77},
    "edge": {"loss": 0.1, "odsF": 77.35},
    "depth": {"RMSE": 0.2896},
}


def nyud(root: Path, baseline: str, metrics: Scores) -> tuple[Recipe, list[RunResult]]:
    """A recipe of one run on NYUD-v2, with these scores, against one baseline."""
    recipe = dataclasses.replace(tiny_recipe(root, only="sak"), baselines=(baseline,))
    stages = stages_of(root / "x", metrics)
    record = stages["finetune"].record() | {"dataset": "nyud"}
    write_json(stages["finetune"].path / "stage.json", record)
    return recipe, gather(recipe, [RunStages(plan=recipe.runs[0], stages=[stages])])


def test_published_results_are_a_baseline(tmp_path: Path) -> None:
    """Half the published RMSE, everything else as published."""
    recipe, results = nyud(tmp_path, "paper-vitb", NYUD)
    assert results[0].delta == {"paper-vitb": pytest.approx(12.5)}
    (note,) = delta_notes(recipe, results)
    assert note.startswith(
        "Δm vs paper-vitb: the paper's single-task ViT-B networks: semseg mIoU ↑ 51.15, depth RMSE ↓"
    )
    assert "Δm % vs paper-vitb" in "\n".join(text_of(results))


@pytest.mark.parametrize(
    ("baseline", "metrics", "why"),
    [
        ("paper-vitb", NYUD | {"edge": {"loss": 0.1}}, "not on both sides: edge loss; eval.boundary: odsF makes"),
        ("paper-vitb", {"depth": {"RMSE": 0.5}}, "tasks differ, depth against semseg, normals, edge, depth"),
        ("paper-vitb", NYUD | {"depth": {"RMSE": math.nan}}, "not on both sides: depth RMSE."),
        ("paper-vitb-mlore", NYUD, "tasks differ, semseg, normals, edge, depth against none"),
    ],
)
def test_where_a_published_table_does_not_compare_it_is_said(
    tmp_path: Path, baseline: str, metrics: Scores, why: str
) -> None:
    recipe, results = nyud(tmp_path, baseline, metrics)
    assert results[0].delta == {}
    about, reason = delta_notes(recipe, results)
    assert about.startswith(f"Δm vs {baseline}: ")
    assert reason.startswith(f"sak has no Δm vs {baseline}: {why}")
    text_of(results)


def test_an_earlier_evaluation_is_a_baseline(tmp_path: Path) -> None:
    path = tmp_path / "eval-1234" / "metrics.json"
    write_json(path, NYUD | {"depth": {"RMSE": 0.5792, "rel": math.nan}, "distill": {"loss": 1.0}})
    recipe, results = nyud(tmp_path, str(path), NYUD)
    assert results[0].delta == {"eval-1234": pytest.approx(12.5)}
    assert delta_notes(recipe, results) == [f"Δm vs eval-1234: metrics stored in {path}."]
    for text in ("[]", "{", '{"depth": 3}', '{"depth": {"RMSE": "low"}}'):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(PipelineError, match="expected task to metric to value"):
            nyud(tmp_path, str(path), NYUD)


def test_a_table_of_distillation_alone_shows_its_loss(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, ["finetune=null"], only="sak")
    stage = stages_of(tmp_path / "x", {"distill": {"loss": 1.23456}})
    del stage["finetune"]
    (row,) = gather(recipe, [RunStages(plan=recipe.runs[0], stages=[stage])])
    assert (row.dataset, main_values(row, shown_tasks([row]))) == ("", {})
    text = "\n".join(text_of([row]))
    assert "held-out distill loss" in text
    assert "1.2346" in text


def test_a_damaged_record_is_named(recipe: Recipe, tmp_path: Path) -> None:
    stages = stages_of(tmp_path / "x", GOOD)
    write_json(stages["eval"].path / "stage.json", {"seconds": "soon"})
    with pytest.raises(PipelineError, match="'soon' where a number was expected"):
        gather(recipe, [RunStages(plan=recipe.runs[0], stages=[stages])])
    write_json(stages["eval"].path / "stage.json", {"seconds": 1.0})
    write_json(stages["eval"].path / "metrics.json", {"semseg": 3})
    with pytest.raises(PipelineError, match="3 where a mapping was expected"):
        gather(recipe, [RunStages(plan=recipe.runs[0], stages=[stages])])
