"""The ``sak`` command as a user meets it: processes, exit codes, one line for each mistake."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.sak_process import RECIPE, REPOSITORY, Outcome, finished_run, sak, stage_folders, write_recipe

COMMANDS = [
    ["run"],
    ["extract"],
    ["distill"],
    ["finetune"],
    ["eval"],
    ["report"],
    ["export"],
    ["store", "ls"],
    ["store", "info"],
    ["store", "verify"],
    ["data", "scenes"],
    ["teachers", "ls"],
]
PHOTOS = """\
out: out
store: store
threads: 1
data:
  distill:
    source: {name: imagefolder, root: photos, split: all}
    view: {kind: center, size: 32}
    rows_per_shard: 4
  eval:
    source: {name: scenes, split: val, images: 4, size: 32}
    view: {kind: full, size: 32}
    rows_per_shard: 4
teachers:
  first:
    timm: vit_tiny_patch16_224
    random: 1
    overrides: &tiny {patch_size: 8, embed_dim: 24, depth: 4, num_heads: 2}
extract: {workers: 1}
student: {stem: vit_tiny_patch16_224, overrides: *tiny}
distill: {steps: 2, batch: 4}
track: {tensorboard: false}
"""
NO_LABELS = ["--run", "both"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the tiny recipe, shared: never write there."""
    return finished_run(tmp_path_factory)[0]


@pytest.fixture
def copy(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    """A finished run to damage."""
    return finished_run(tmp_path_factory, tmp_path / "copy")[0]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with a recipe over eight photographs."""
    generator = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(8):
        pixels = generator.integers(0, 255, (40, 36, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"image{number}.jpg")
    write_recipe(tmp_path, PHOTOS)
    return tmp_path


def refused(outcome: Outcome, *parts: str) -> str:
    """Assert exit code 2 and one line that ends stderr and holds all parts; returns the line."""
    lines = [line for line in outcome.err.splitlines() if line.startswith("sak: ")]
    assert outcome.code == 2, outcome
    assert "Traceback" not in outcome.err
    assert len(lines) == 1, outcome.err
    assert outcome.err.endswith(lines[0] + "\n"), outcome.err
    for part in parts:
        assert part in lines[0]
    return lines[0]


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def column_shard(folder: Path) -> Path:
    """A shard of a column over the views that stage 1 reads."""
    return sorted(folder.glob("store/columns/scenes-unlabeled-*/first-*/level_1*/c/1/**/*"))[-1]


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


def test_teachers_ls(tmp_path: Path) -> None:
    listed = sak("teachers", "ls", cwd=tmp_path)
    assert listed.code == 0
    assert [line.split(":")[0] for line in listed.out.splitlines()] == [
        "scenes-semantics",
        "scenes-geometry",
        "scenes-boundary",
    ]


def test_exported_stem_is_a_timm_model_and_a_teacher(copy: Path) -> None:
    done = sak("export", "tiny.yaml", "--run", "both", "--what", "stem", "--out", "made/stem.safetensors", cwd=copy)
    assert done.code == 0, done.err
    overrides = yaml.safe_load(RECIPE)["student"]["overrides"]
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0, **overrides)
    state = load_file(copy / "made/stem.safetensors")
    model.load_state_dict(state, strict=True)
    changes = ["store=second", "teachers.first.random=null", "teachers.first.checkpoint=made/stem.safetensors"]
    changes += ["teachers.first.overrides.img_size=32"]
    again = sak("extract", "tiny.yaml", *changes, "student.teachers=[first]", *NO_LABELS, cwd=copy)
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


# --- mistakes in a command or a recipe ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["run"], ["RECIPE", "sak run --help"]),
        (["walk"], ["walk", "sak --help"]),
        (["run", "tiny.yaml", "--fast"], ["--fast", "sak run --help"]),
        (["run", "none.yaml"], ["none.yaml", "no such recipe", "workflows/"]),
        (["run", "."], [".: cannot be read"]),
        (["run", "tiny.yaml", "steps"], ["'steps'", "expected key=value", "distill.steps=100"]),
        (["run", "tiny.yaml", "distill.steps=[1"], ["distill.steps=[1", "not YAML"]),
        (["run", "tiny.yaml", "threads.x=1"], ["threads", "plain value"]),
        (["run", "tiny.yaml", "--run", "saks"], ["saks", "both, labels, split"]),
        (["data", "scenes", "--layout", "coco", "--out", "x"], ["coco", "imagefolder", "pascal-context", "nyud"]),
        (["store", "ls", "."], ["expected a store", "store.json", "sak extract"]),
        (["store", "verify", "missing"], ["missing", "expected a store"]),
        (["report", "tiny.yaml"], ["sak run tiny.yaml"]),
        (["export", "tiny.yaml", "--run", "both", "--out", "x.safetensors"], ["sak run tiny.yaml"]),
        (["export", "tiny.yaml", "--run", "split", "--out", "x.safetensors"], ["split/depth, split/edge"]),
        (["run", "tiny.yaml", "device=tpu"], ["device", "tpu", "auto, cpu or cuda"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistake_is_one_line(arguments: list[str], parts: list[str], tmp_path: Path) -> None:
    write_recipe(tmp_path)
    done = sak(*arguments, cwd=tmp_path)
    line = refused(done, *parts)
    assert done.out == ""
    assert done.err == line + "\n", "nothing else"


def test_recipe_that_is_no_yaml_names_line_and_column(tmp_path: Path) -> None:
    write_recipe(tmp_path, "name: [unclosed\nout: x\n")
    refused(sak("run", "tiny.yaml", cwd=tmp_path), "tiny.yaml", "cannot be read as YAML", "line 2")


def test_all_faults_of_a_recipe_at_once_with_their_paths(tmp_path: Path) -> None:
    text = (
        RECIPE.replace("codec", "codex").replace("distill: {steps", "distill: {stepz").replace("batch: 8", "batch: 0")
    )
    write_recipe(tmp_path, text + "bogus: 1\n")
    done = sak("run", "tiny.yaml", "student.overides={}", cwd=tmp_path)
    assert done.code == 2
    first, *faults = done.err.splitlines()
    assert first.startswith("sak: tiny.yaml: ")
    assert first.rstrip(":").split()[2] == str(len(faults))
    for path in ("distill.stepz: unknown key", "bogus: unknown key", "student.overides: unknown key", "extract"):
        assert len([line for line in faults if line.strip().startswith(path)]) == 1, (path, faults)
    assert not (tmp_path / "out").exists()


def test_override_below_a_yaml_anchor_changes_one_place(tmp_path: Path) -> None:
    write_recipe(tmp_path)
    # The resolved recipe is written before the device is refused.
    refused(sak("extract", "tiny.yaml", "teachers.first.overrides.depth=5", "device=tpu", cwd=tmp_path), "device")
    written = yaml.safe_load((tmp_path / "out/recipe.yaml").read_text())
    assert written["teachers"]["first"]["overrides"]["depth"] == 5
    assert written["teachers"]["second"]["overrides"]["depth"] == 4
    assert written["student"]["overrides"]["depth"] == 4


# --- folders and files --------------------------------------------------------------------------------------------


def test_out_that_is_a_file(tmp_path: Path) -> None:
    write_recipe(tmp_path)
    (tmp_path / "taken").write_text("mine")
    for out in ("taken", "taken/below"):
        refused(sak("run", "tiny.yaml", f"out={out}", cwd=tmp_path), "out", "taken", "out=runs/NAME")
    refused(sak("extract", "tiny.yaml", "store=taken", cwd=tmp_path), "taken", "got a file")
    refused(sak("extract", "tiny.yaml", "store=taken/below", cwd=tmp_path), "taken")
    assert (tmp_path / "taken").read_text() == "mine"


def test_out_that_cannot_be_written(tmp_path: Path) -> None:
    write_recipe(tmp_path)
    # Not even root may make a folder here.
    refused(sak("run", "tiny.yaml", "out=/proc/sak", cwd=tmp_path), "out", "/proc/sak")
    refused(sak("extract", "tiny.yaml", "store=/proc/sak", cwd=tmp_path), "/proc/sak")


def test_store_in_a_folder_of_other_files(tmp_path: Path) -> None:
    write_recipe(tmp_path)
    refused(sak("extract", "tiny.yaml", "store=.", cwd=tmp_path), "expected an empty folder or a store")


def test_scenes_are_not_written_over_other_files(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    arguments = ["data", "scenes", "--layout", "imagefolder", "--out", ".", "--train", "1", "--val", "1"]
    refused(sak(*arguments, cwd=tmp_path), ".: ", "not an empty folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.txt"]


def test_missing_data_folder(photos: Path) -> None:
    shutil.rmtree(photos / "photos")
    refused(sak("run", "tiny.yaml", cwd=photos), "photos", "folder not found")


def test_source_without_a_folder(photos: Path) -> None:
    refused(sak("run", "tiny.yaml", "data.distill.source.root=null", cwd=photos), "imagefolder", "root")


def test_corrupt_image_stops_and_is_named(photos: Path) -> None:
    (photos / "photos/image3.jpg").write_bytes(b"\xff\xd8 no picture")
    refused(sak("run", "tiny.yaml", cwd=photos), "image3.jpg", "on_error: skip")


def test_corrupt_image_in_a_worker_is_named_the_same(photos: Path) -> None:
    (photos / "photos/image3.jpg").write_bytes(b"\xff\xd8 no picture")
    refused(sak("extract", "tiny.yaml", "extract.workers=2", cwd=photos), "image3.jpg", "on_error: skip")


def test_corrupt_image_is_left_out_and_recorded_when_asked(photos: Path) -> None:
    (photos / "photos/image3.jpg").write_bytes(b"\xff\xd8 no picture")
    done = sak("run", "tiny.yaml", "data.distill.on_error=skip", cwd=photos)
    assert done.code == 0, done.err
    assert "1 rows left out" in done.err
    listed = sak("store", "ls", "store", cwd=photos)
    (name,) = re.findall(r"imagefolder\S+", listed.out)
    told = yaml.safe_load(sak("store", "info", "store", name, cwd=photos).out)
    assert [item["key"] for item in told["left_out"]] == ["image3"]
    assert "image3.jpg" in told["left_out"][0]["reason"]
    assert sak("store", "verify", "store", cwd=photos).code == 0


# --- weights ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("owner", "removed"), [("teachers.first", ["teachers.first.random=null"]), ("student", [])], ids=["teacher", "stem"]
)
def test_wrong_checkpoint(owner: str, removed: list[str], photos: Path) -> None:
    other = timm.create_model("resnet18", num_classes=0)
    save_file(other.state_dict(), photos / "other.safetensors")
    (photos / "garbage.safetensors").write_bytes(b"\x00" * 100)
    torch.save({"weights": [1, 2]}, photos / "list.pth")
    cases = {
        "other.safetensors": "missing",
        "garbage.safetensors": "expected a safetensors file",
        "list.pth": "expected names with tensors",
        "absent.safetensors": "expected a ",
        "tiny.yaml": "convert the file",
    }
    for name, part in cases.items():
        done = sak("run", "tiny.yaml", *removed, f"{owner}.checkpoint={name}", cwd=photos)
        line = refused(done, name, part)
        assert len(line) < 1200


def test_teacher_without_weights(photos: Path) -> None:
    done = sak("run", "tiny.yaml", "teachers.first.random=null", cwd=photos)
    assert done.code == 2
    assert "checkpoint" in done.err
    assert "teachers.first" in done.err


@pytest.mark.parametrize(
    "changes",
    [["teachers.first.random=null", "teachers.first.pretrained=true"], ["student.pretrained=true"]],
    ids=["teacher", "stem"],
)
def test_pretrained_without_a_network_says_how_to_give_a_file(changes: list[str], photos: Path) -> None:
    refused(sak("run", "tiny.yaml", *changes, cwd=photos), "vit_tiny_patch16_224", "checkpoint: PATH")


# --- what the store lacks, and what is damaged --------------------------------------------------------------------


def test_distill_before_extract_names_column_and_command(tmp_path: Path) -> None:
    write_recipe(tmp_path)
    done = sak("distill", "tiny.yaml", "distill.loss=cos", cwd=tmp_path)
    refused(done, "first", "scenes-unlabeled-", "sak extract tiny.yaml distill.loss=cos")


def test_column_of_another_codec_is_missing(copy: Path) -> None:
    done = sak("distill", "tiny.yaml", "extract.codec=fp16", cwd=copy)
    refused(done, "fp16 column of teacher first", "is absent", "sak extract tiny.yaml extract.codec=fp16")


def test_incomplete_column_is_named(copy: Path) -> None:
    record = sorted(copy.glob("store/columns/scenes-unlabeled-*/second-*/commits/*.json"))[0]
    record.unlink()
    done = sak("distill", "tiny.yaml", "distill.steps=3", cwd=copy)
    refused(done, "column of teacher second", "incomplete (1 shards missing)", "sak extract tiny.yaml")


def test_finetune_before_distill_names_the_command(copy: Path) -> None:
    shutil.rmtree(copy / "out")
    refused(sak("finetune", "tiny.yaml", "--run", "both", cwd=copy), "distill", "sak run tiny.yaml")


def test_flipped_byte_of_a_column_is_found_and_refused(copy: Path) -> None:
    shard = column_shard(copy)
    flip(shard)
    verdict = sak("store", "verify", "store", cwd=copy)
    relative = shard.relative_to(copy / "store").as_posix()
    assert verdict.code == 1
    errors = [line for line in verdict.out.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert relative in errors[0]
    assert "rows 4-7" in errors[0]
    refused(sak("distill", "tiny.yaml", "seed=0", "distill.steps=20", cwd=copy), relative, "rows 4 to 7")


def test_truncated_shard_is_found_and_refused(copy: Path) -> None:
    shard = column_shard(copy)
    shard.write_bytes(shard.read_bytes()[:-7])
    relative = shard.relative_to(copy / "store").as_posix()
    verdict = sak("store", "verify", "store", cwd=copy)
    assert verdict.code == 1
    assert relative in verdict.out
    refused(sak("distill", "tiny.yaml", "distill.steps=20", cwd=copy), relative, "bytes")


def test_missing_shard_is_found_and_refused(copy: Path) -> None:
    shard = column_shard(copy)
    shard.unlink()
    relative = shard.relative_to(copy / "store").as_posix()
    verdict = sak("store", "verify", "store", cwd=copy)
    assert verdict.code == 1
    assert relative in verdict.out
    refused(sak("distill", "tiny.yaml", "distill.steps=20", cwd=copy), relative)


def test_flipped_byte_of_an_image_shard_is_found_and_refused(copy: Path) -> None:
    tar = sorted(copy.glob("store/views/scenes-unlabeled-*/images/*.tar"))[2]
    flip(tar)
    relative = tar.relative_to(copy / "store").as_posix()
    verdict = sak("store", "verify", "store", cwd=copy)
    assert verdict.code == 1
    assert relative in verdict.out
    refused(sak("distill", "tiny.yaml", "distill.steps=20", cwd=copy), relative, "rows 8 to 11")


def test_damaged_checkpoint_of_a_stage_is_named(copy: Path) -> None:
    stage = stage_folders(copy, "distill")[0]
    (stage / "stage.json").unlink()
    newest = sorted((stage / "checkpoints").iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:200])
    refused(sak("distill", "tiny.yaml", cwd=copy), newest.name, "delete it")


def test_unknown_name_in_a_store(finished: Path) -> None:
    refused(sak("store", "info", "store", "nobody", cwd=finished), "nobody", "scenes-unlabeled-")
