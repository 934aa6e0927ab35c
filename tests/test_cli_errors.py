"""What ``sak`` says of mistakes: one line that names what, where and how, and exit code 2."""

from __future__ import annotations

import errno
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

import cli
from tests.sak_process import PHOTOS, RECIPE, Outcome, finished_run, sak, stage_folders, write_recipe


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


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def column_shard(folder: Path) -> Path:
    """A shard of a column over the views that stage 1 reads."""
    return sorted(folder.glob("store/columns/scenes-unlabeled-*/first-*/level_1*/c/1/**/*"))[-1]


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
        (["run", "tiny.yaml", "student.stem=vit_nope"], ["no model 'vit_nope'"]),
        (["run", "tiny.yaml", "student.overrides.num_heads=0"], ["num_heads", "correct the overrides"]),
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
    skip = ["data.distill.on_error=skip", "data.distill.max_bad=0.2"]
    done = sak("run", "tiny.yaml", *skip, cwd=photos)
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
    line = refused(done, "first", "scenes-unlabeled-")
    assert line.endswith(" are absent; make it with: sak extract tiny.yaml distill.loss=cos")


def test_column_of_another_codec_is_missing(copy: Path) -> None:
    done = sak("distill", "tiny.yaml", "extract.codec=fp16", cwd=copy)
    refused(done, "fp16 column of teacher first", "is absent", "sak extract tiny.yaml extract.codec=fp16")


def test_the_command_that_makes_it_is_quoted_for_the_shell(copy: Path) -> None:
    done = sak("distill", "tiny.yaml", "extract.codec={name: fp16, clip: true}", cwd=copy)
    remedy = "make it with: sak extract tiny.yaml 'extract.codec={name: fp16, clip: true}'"
    refused(done, "is absent; ", f"is of another codec; {remedy}")


def test_incomplete_views_are_named_with_the_command(copy: Path) -> None:
    sorted(copy.glob("store/views/scenes-val-*/commits/*.json"))[0].unlink()
    done = sak("eval", "tiny.yaml", "eval.gallery=1", "--run", "labels", cwd=copy)
    refused(done, "view set scenes-val-", " lacks 1 of ", "; make it with: sak run tiny.yaml eval.gallery=1")


def test_what_no_recipe_makes_names_no_command(finished: Path) -> None:
    line = refused(sak("store", "info", "store", "nobody", cwd=finished))
    assert "make it with" not in line


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
    newest = stage / "checkpoints/step-000000020.safetensors"
    newest.parent.mkdir()
    newest.write_bytes((stage / "student.safetensors").read_bytes()[:200])
    refused(sak("distill", "tiny.yaml", cwd=copy), newest.name, "delete it")


def test_unknown_name_in_a_store(finished: Path) -> None:
    refused(sak("store", "info", "store", "nobody", cwd=finished), "nobody", "scenes-unlabeled-")


def test_a_damaged_part_is_discarded_and_made_again(copy: Path) -> None:
    shard = column_shard(copy)
    before = shard.read_bytes()
    flip(shard)
    verdict = sak("store", "verify", "store", cwd=copy)
    assert verdict.code == 1
    (remedy,) = [line for line in verdict.out.splitlines() if line.startswith("remedy: ")]
    command = remedy.removeprefix("remedy: sak ").split(",")[0].split()
    assert command[:3] == ["store", "discard", "store"]
    record = shard.parents[len(shard.relative_to(copy).parts) - 5] / "commits" / "part-00001.json"
    planned = sak(*command, "--dry-run", cwd=copy)
    assert (planned.code, planned.err) == (0, "")
    assert planned.out.startswith("would discard part 1 of columns/scenes-unlabeled-")
    assert record.exists()
    assert sak(*command, cwd=copy).out.startswith("discarded part 1 of columns/scenes-unlabeled-")
    assert not record.exists()
    refused(sak(*command, cwd=copy), "expected a committed part, got 1")
    assert sak("extract", "tiny.yaml", cwd=copy).code == 0
    again = sak("store", "verify", "store", cwd=copy)
    assert (again.code, again.out) == (0, "every committed byte is as recorded\n")
    assert shard.read_bytes() == before


def test_a_full_disk_is_one_line_even_without_a_file_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli._explain(OSError(errno.ENOSPC, "No space left on device")) == 2
    assert capsys.readouterr().err.startswith("sak: No space left on device; make room")
    with pytest.raises(OSError, match="Bad file"):
        cli._explain(OSError(errno.EBADF, "Bad file descriptor"))


def test_faults_of_several_runs_are_told_before_any_work(tmp_path: Path) -> None:
    write_recipe(tmp_path)
    changes = ["finetune.tasks=[flow]", "data.eval.view.size=24", "runs.labels.set={student.stem: vit_nope}"]
    done = sak("run", "tiny.yaml", *changes, cwd=tmp_path)
    head, *faults = done.err.splitlines()
    assert (done.code, head) == (2, "sak: 3 faults, found before any work:")
    assert [line.split(":")[0].strip() for line in faults] == ["both, labels", "data.eval.view.size", "labels"]
    assert not (tmp_path / "store").exists()


def test_a_recipe_that_scores_or_trains_nothing_has_no_report_and_no_weights(finished: Path) -> None:
    refused(sak("report", "tiny.yaml", "data.eval=null", cwd=finished), "eval needs data.eval")
    nothing = ("distill=null", "finetune=null", "runs=null", "baselines=null")
    refused(sak("report", "tiny.yaml", *nothing, cwd=finished), "eval needs a trained student")
    export = ("export", "tiny.yaml", *nothing, "--run", "main", "--out", "x.safetensors")
    refused(sak(*export, cwd=finished), "export needs a trained student")
