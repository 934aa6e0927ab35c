"""Published checkpoints of both stages, and exported students, as recipes take them."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import cli
from pipeline.errors import PipelineError, RecipeError
from pipeline.identity import distill_dir, evaluate_dir, finetune_dir
from pipeline.preflight import preflight
from pipeline.runs import collect
from pipeline.stagedir import read_json
from pipeline.stages.export import export
from pipeline.stages.import_student import known_of
from pipeline.trained import trained_to_score
from sak.reference import reference_state
from sak.spec import StudentSpec
from sak.student.file import read_student
from sak.student.model import Student, build_student
from sak.tasks import dataset_spec
from sak.weights import load_weights, save_weights
from tests.conftest import Finished
from tests.tiny_recipe import run_stages

STEM = "vit_tiny_patch16_384"
STAGE1 = StudentSpec(
    stem=STEM, image_size=(64, 64), teacher_widths={"second": 24, "first": 24}, aligners=True, down_ratio=8
)
TASKS = {name: task.channels for name, task in dataset_spec("scenes").tasks.items()}
STAGE2 = replace(STAGE1, image_size=(32, 32), tasks=TASKS)
RECIPE = ("distill=null", f"student.stem={STEM}", "student.overrides={}", "student.down_ratio=8")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """What the published code would have saved: weights under its names beside the state of a training."""
    folder = tmp_path_factory.mktemp("published")
    for stage in (1, 2):
        beside = {"optimizer": {"state": {0: torch.zeros(2)}}, "scheduler": {"last_epoch": 3}, "epoch": 29}
        torch.save({"model": reference_state(student_of(stage)), **beside}, folder / f"stage{stage}.pth")
    return {stage: folder / f"stage{stage}.pth" for stage in (1, 2)}


@pytest.fixture(scope="module")
def students(checkpoints: dict[int, Path]) -> dict[int, Path]:
    """The same as ``sak import`` writes them."""
    paths = {stage: path.with_suffix(".safetensors") for stage, path in checkpoints.items()}
    for stage, path in paths.items():
        imported(checkpoints[stage], "--out", path)
    return paths


@cache
def student_of(stage: int) -> Student:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_student(STAGE1 if stage == 1 else STAGE2)


def imported(*arguments: str | Path) -> str:
    done = CliRunner().invoke(cli.app, ["import", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done.output


def test_stage_1_is_told_and_starts_stage_2_at_another_size(
    checkpoints: dict[int, Path], finished: Finished, tmp_path: Path
) -> None:
    path = tmp_path / "student.safetensors"
    said = imported(checkpoints[1], "--out", path)
    for fact in (
        "stage: 1",
        f"{STEM} at 64x64",
        "second (24), first (24)",
        "optimizer, scheduler, epoch",
        "ts_aligners",
    ):
        assert fact in said
    hub = "student.pretrained=true"  # as shipped recipes say; the file takes its place
    recipe = finished.fresh(tmp_path, *RECIPE, hub, f"student.trained={path}", "finetune.alpha=0", "finetune.steps=1")
    run_stages(recipe, ["finetune"])
    start: Any = read_json(finetune_dir(recipe.runs[0].study, tmp_path).path / "start.json")
    names = student_of(1).state_dict().keys()
    assert start["from"] == path.name
    assert start["resized"] == ["stem.pos_embed"]
    assert {*start["left_out"]} == {name for name in names if name.startswith("aligners.")}
    assert {*start["loaded"]} == names - {*start["left_out"]}
    assert {name.split(".")[0] for name in start["new"]} == {"routers", "heads"}


def test_a_recipes_own_stage_1_is_told_as_well(finished: Finished) -> None:
    study = finished.recipe.runs[0].study
    start: Any = read_json(finetune_dir(study, finished.recipe.out).path / "start.json")
    assert start["from"] == distill_dir(study, finished.recipe.out).path.name
    assert start["resized"] == start["left_out"] == []
    assert not {*start["loaded"]} & {*start["new"]}
    assert len(start["loaded"]) + len(start["new"]) == len(
        load_weights(finetune_dir(study, finished.recipe.out).path / "student.safetensors")
    )


def test_stage_2_is_scored_as_it_is_and_stands_in_the_table(
    checkpoints: dict[int, Path], finished: Finished, tmp_path: Path
) -> None:
    path = tmp_path / "student.safetensors"
    said = imported(checkpoints[2], "--out", path)
    assert "tasks of scenes: semseg (12)" in said
    recipe = finished.fresh(tmp_path, "distill=null", "finetune=null", f"student.trained={path}")
    study = recipe.runs[0].study
    student, dataset, stage = trained_to_score(study, tmp_path, device=torch.device("cpu"))
    assert (dataset, stage) == ("scenes", None)
    for name, tensor in student_of(2).state_dict().items():
        assert torch.equal(student.state_dict()[name], tensor), name
    run_stages(recipe, ["eval"])
    (row,) = collect(recipe)
    assert {*row.metrics} == {*TASKS}
    assert row.parameters == sum(p.numel() for n, p in student.named_parameters() if not n.startswith("aligners."))
    # Other bytes are another student, and have a folder of their own; the same ones elsewhere are the same.
    shutil.copy(path, tmp_path / "copy.safetensors")
    copied = finished.fresh(tmp_path, "distill=null", "finetune=null", f"student.trained={tmp_path}/copy.safetensors")
    assert evaluate_dir(copied.runs[0].study, tmp_path) == evaluate_dir(study, tmp_path)


def test_an_exported_student_is_scored_like_the_run(finished: Finished, tmp_path: Path) -> None:
    path, study = tmp_path / "student.safetensors", finished.recipe.runs[1].study
    export(study, finished.recipe.out, path, what="student", dtype="fp32")
    assert read_student(path).origin.dataset == "scenes"
    recipe = finished.fresh(tmp_path, "distill=null", "finetune=null", f"student.trained={path}")
    run_stages(recipe, ["eval"])
    found = read_json(evaluate_dir(recipe.runs[0].study, tmp_path).path / "metrics.json")
    assert found == read_json(evaluate_dir(study, finished.recipe.out).path / "metrics.json")


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (["distill={steps: 1}"], "takes the place of stage 1; set distill to null"),
        (["finetune=null"], "is of stage 1 and has no tasks to score"),
        (["student.mean=[0.5, 0.5, 0.5]"], r"student\.mean: .* was trained with \[0\.485"),
        (["student.teachers=[first]"], "adapter paths of second, first, expected first"),
        (["student.trained=nowhere.safetensors"], "expected a file, found none at nowhere"),
    ],
)
def test_what_does_not_go_together_is_told_before_any_work(
    students: dict[int, Path], finished: Finished, tmp_path: Path, overrides: list[str], match: str
) -> None:
    path = students[1]
    with pytest.raises(RecipeError, match=match):
        check(finished, tmp_path, *RECIPE, f"student.trained={path}", "finetune.alpha=0", *overrides)


def check(finished: Finished, out: Path, *overrides: str) -> None:
    study = finished.fresh(out, *overrides).runs[0].study
    preflight([("sak", study)], out, stages=["finetune", "eval"])


def test_views_of_another_size_cannot_be_scored(students: dict[int, Path], finished: Finished, tmp_path: Path) -> None:
    path = students[2]
    with pytest.raises(RecipeError, match=r"data\.eval\.view\.size: expected 32x32, at which"):
        check(finished, tmp_path, "distill=null", "finetune=null", f"student.trained={path}", "data.eval.view.size=48")


def test_a_run_that_trains_nothing_has_nothing_to_export(
    students: dict[int, Path], finished: Finished, tmp_path: Path
) -> None:
    path = students[2]
    study = finished.fresh(tmp_path, "distill=null", "finetune=null", f"student.trained={path}").runs[0].study
    with pytest.raises(PipelineError, match="this run trains nothing"):
        export(study, tmp_path, tmp_path / "x.safetensors", what="student", dtype="fp32")


def test_without_out_nothing_is_written(checkpoints: dict[int, Path], tmp_path: Path) -> None:
    path = tmp_path / "alone" / "stage1.pth"
    path.parent.mkdir()
    shutil.copy(checkpoints[1], path)
    assert "nothing written" in imported(path)
    assert [*path.parent.iterdir()] == [path]


def test_weights_alone_are_no_student(checkpoints: dict[int, Path], finished: Finished, tmp_path: Path) -> None:
    path = tmp_path / "bare.safetensors"
    save_weights(path, {"w": torch.zeros(1)})
    with pytest.raises(RecipeError, match="expected a student with its description, got weights alone"):
        check(finished, tmp_path, *RECIPE, f"student.trained={path}", "finetune.alpha=0")


def test_refusals_are_one_line(
    checkpoints: dict[int, Path],
    students: dict[int, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sorted_file = tmp_path / "stage2.safetensors"
    save_weights(sorted_file, load_weights(checkpoints[2]))
    cut = tmp_path / "cut.pth"
    cut.write_bytes(checkpoints[1].read_bytes()[:1000])
    for arguments, match in (
        ([sorted_file], "keeps none; tell it, as in --teachers"),
        ([sorted_file, "--teachers", "second,first", "--out", sorted_file], "another file than the one"),
        ([students[1]], "is a student of this project already; use it as student.trained="),
        ([cut], "expected tensors only (torch weights-only)"),
        ([tmp_path / "none.pth"], "found none at"),
        ([checkpoints[1], "--size", "64x64x3"], "--size: expected pixels as 512 or 448x576"),
        ([checkpoints[1], "--size", "96"], "(1, 37, 192), got (1, 17, 192)"),
        ([checkpoints[1], "--out", tmp_path / "x.pth"], "expected the suffix .safetensors"),
    ):
        monkeypatch.setattr(sys, "argv", ["sak", "import", *map(str, arguments)])
        with pytest.raises(SystemExit) as done:
            cli.main()
        assert done.value.code == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert match in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.pth", "stage2.safetensors"]


def test_a_size_is_a_side_or_two() -> None:
    assert known_of(size="512").image_size == (512, 512)
    assert known_of(size="448x576", teachers="a, b").teachers == ("a", "b")
    assert known_of().image_size is None
