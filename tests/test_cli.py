"""The ``sak`` command as a user meets it: processes, exit codes, one line for each mistake."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file

from tests.sak_process import PHOTOS, RECIPE, REPOSITORY, finished_run, sak, stage_folders, write_recipe

COMMANDS = [
    ["run"],
    ["extract"],
    ["distill"],
    ["finetune"],
    ["eval"],
    ["eval", "boundary"],
    ["report"],
    ["export"],
    ["import"],
    ["store", "ls"],
    ["store", "info"],
    ["store", "verify"],
    ["store", "repair"],
    ["bench", "store"],
    ["data", "scenes"],
    ["teachers", "ls"],
    ["teachers", "info"],
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the tiny recipe, shared: never write there."""
    return finished_run(tmp_path_factory)[0]


@pytest.fixture
def copy(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    """A finished run to damage."""
    return finished_run(tmp_path_factory, tmp_path / "copy")[0]


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


# --- help ---------------------------------------------------------------------------------------------------------


def test_top_help_names_every_command_and_the_first_thing_to_type(tmp_path: Path) -> None:
    shown = sak("--help", cwd=tmp_path)
    assert shown.code == 0
    assert {command[0] for command in COMMANDS} <= set(re.findall(r"│ (\w+) ", shown.out))
    assert "sak run workflows/quickstart.yaml" in shown.out


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_of_a_command_says_what_it_does_and_shows_an_example(command: list[str], tmp_path: Path) -> None:
    shown = sak(*command, "--help", cwd=tmp_path)
    assert shown.code == 0
    assert f"Example:  sak {' '.join(command)}" in shown.out
    options = re.findall(r"--[a-z]+", shown.out.split("Example:")[1])
    assert set(options) <= set(re.findall(r"--[a-z]+", shown.out.split("Example:")[0])), "an option that does not exist"


def test_help_and_a_mistyped_key_load_no_torch(tmp_path: Path) -> None:
    write_recipe(tmp_path)
    for arguments in (["--help"], ["run", "tiny.yaml", "distil.steps=3"]):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "cli", *arguments],
            cwd=tmp_path,
            env={"PYTHONPATH": str(REPOSITORY), "PATH": ""},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == (0 if arguments == ["--help"] else 2)
        assert not re.search(r"\| +(torch|timm|pipeline\.stages\S*)$", done.stderr, flags=re.MULTILINE)


# --- the whole road -----------------------------------------------------------------------------------------------


def test_run_prints_a_row_for_each_run_and_the_report(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder, outcome = finished_run(tmp_path_factory)
    assert re.findall(r"^│ (\w+)", outcome.out, flags=re.MULTILINE) == ["both", "labels", "split"]
    assert "…" not in outcome.out, "a number or name was cut"
    assert outcome.out.endswith("report: out/report.html\n")
    rows = json.loads((folder / "out/results.json").read_text())["runs"]
    for row, line in zip(rows, outcome.out.splitlines()[3:6], strict=True):
        assert f" {row['metrics']['depth']['RMSE']:.2f} " in line


def test_report_needs_no_other_file_or_host(finished: Path) -> None:
    page = (finished / "out/report.html").read_text(encoding="utf-8")
    links = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)""", page) + re.findall(r"url\(([^)]*)\)", page)
    assert [link for link in links if not link.startswith(("data:", "#"))] == []
    assert "@import" not in page
    for name in ("both", "labels", "split"):
        assert f">{name}<" in page


def test_second_run_says_so_and_changes_nothing(finished: Path) -> None:
    before = content(finished)
    stamps = {path: path.stat().st_mtime_ns for stage in ("distill", "finetune", "eval") for path in
              (finished / "out").glob(f"{stage}-*/*")}  # fmt: skip
    stamps |= {path: path.stat().st_mtime_ns for path in (finished / "store").rglob("*") if path.is_file()}
    done = sak("run", "tiny.yaml", cwd=finished)
    assert done.code == 0
    lines = done.err.splitlines()
    assert all(line.endswith("skipped") for line in lines), done.err
    for stage in ("extract", "distill", "finetune", "eval"):
        assert any(stage in line for line in lines), stage
    assert content(finished) == before
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_eval_prints_every_metric_and_class_of_the_runs_asked_for(finished: Path) -> None:
    done = sak("eval", "tiny.yaml", "--run", "both", cwd=finished)
    assert done.code == 0
    assert re.search(r"task +┃ metric +┃ +both ┃", done.out)
    for line in ("depth +│ delta1 ↑", "normals +│ under11.25 ↑", "distill +│ loss ↓", "semseg IoU +│ person"):
        assert re.search(rf"│ {line} +│ +(–|[\d.]+%?) │", done.out), line


def test_one_run_at_a_time_needs_the_others_for_a_table(finished: Path) -> None:
    done = sak("run", "tiny.yaml", "--run", "labels", cwd=finished)
    assert (done.code, done.out) == (0, "finished labels; the table and report need every run of the recipe\n")


def test_report_goes_where_it_is_told(copy: Path) -> None:
    done = sak("report", "tiny.yaml", "--out", "talk.html", cwd=copy)
    assert done.code == 0
    assert (copy / "talk.html").read_bytes() == (copy / "out/report.html").read_bytes()


# --- store, data, teachers, export --------------------------------------------------------------------------------


def test_store_ls_prints_whole_names_that_info_takes(finished: Path) -> None:
    listed = sak("store", "ls", "store", cwd=finished)
    names = re.findall(r"^│ +(\S+)", listed.out, flags=re.MULTILINE)
    assert listed.code == 0
    assert len(names) == 9
    assert len({*names}) == 5, "three view sets, each with the same two columns"
    for name in {*names}:
        told = sak("store", "info", "store", name, cwd=finished)
        assert told.code == 0
        documents = list(yaml.safe_load_all(told.out))
        assert len(documents) == names.count(name)
        for document in documents:
            assert document["committed_rows"] == document["rows"]
            assert ("fidelity" in document) == (names.count(name) > 1)


def test_store_verify_of_a_sound_store(finished: Path) -> None:
    verdict = sak("store", "verify", "store", cwd=finished)
    assert (verdict.code, verdict.out) == (0, "every committed byte is as recorded\n")


@pytest.mark.parametrize(
    ("layout", "source"), [("imagefolder", "imagefolder"), ("pascal-context", "pascalcontext"), ("nyud", "nyud")]
)
def test_scenes_in_each_layout_are_read_back_by_a_recipe(layout: str, source: str, tmp_path: Path) -> None:
    write_recipe(tmp_path, PHOTOS)
    made = ["data", "scenes", "--layout", layout, "--out", "made", "--train", "4", "--val", "4", "--size", "48"]
    assert sak(*made, cwd=tmp_path).code == 0
    read = f"{{name: {source}, root: made, split: train}}"
    done = sak("extract", "tiny.yaml", f"data.distill.source={read}", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "4/4" in sak("store", "ls", "store", cwd=tmp_path).out


def test_teachers_are_listed_and_described(tmp_path: Path) -> None:
    listed = sak("teachers", "ls", "scenes-", "--json", cwd=tmp_path)
    assert listed.code == 0, listed.err
    assert [about["name"] for about in json.loads(listed.out)] == [
        "scenes-semantics",
        "scenes-geometry",
        "scenes-boundary",
    ]
    told = sak("teachers", "info", "sam_vitb", cwd=tmp_path)
    assert told.code == 0, told.err
    assert "482.8 GMAC" in told.out
    refused = sak("teachers", "info", "sam", cwd=tmp_path)
    assert refused.code == 2
    assert len(refused.err.splitlines()) == 1
    assert "sam_vitb" in refused.err


def test_exported_stem_is_a_timm_model_and_a_teacher(copy: Path) -> None:
    done = sak("export", "tiny.yaml", "--run", "both", "--what", "stem", "--out", "made/stem.safetensors", cwd=copy)
    assert done.code == 0, done.err
    overrides = yaml.safe_load(RECIPE)["student"]["overrides"]
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0, **overrides)
    state = load_file(copy / "made/stem.safetensors")
    model.load_state_dict(state, strict=True)
    changes = ["store=second", "teachers.first.random=null", "teachers.first.checkpoint=made/stem.safetensors"]
    changes += ["teachers.first.overrides.img_size=32"]
    again = sak("extract", "tiny.yaml", *changes, "student.teachers=[first]", "--run", "both", cwd=copy)
    assert again.code == 0, again.err


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_exported_student_has_the_trained_weights(dtype: str, copy: Path) -> None:
    done = sak("export", "tiny.yaml", "--run", "split/edge", "--dtype", dtype, "--out", "all.safetensors", cwd=copy)
    assert done.code == 0, done.err
    made = load_file(copy / "all.safetensors")
    trained = [load_file(path / "student.safetensors") for path in stage_folders(copy, "finetune")]
    (own,) = (state for state in trained if set(state) == set(made) and any("edge" in name for name in state))
    wanted = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    for name, tensor in own.items():
        expected = tensor.to(wanted) if tensor.is_floating_point() else tensor
        assert torch.equal(made[name], expected), name
