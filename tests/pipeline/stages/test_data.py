"""Scenes in published layouts, and the check of a data set: every fault named, whatever the number of processes."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from pipeline.commands.data import Layout, data_app
from pipeline.errors import DataError
from pipeline.images.registry import SourceRequest, open_source
from pipeline.stages.data import LAYOUTS, check_data, label_table, report_json, split_table, write_scenes


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAK_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A data set of 4 + 2 scenes in every layout; treat it as read-only."""
    base = tmp_path_factory.mktemp("written")
    for layout in LAYOUTS:
        write_scenes(layout, out=base / layout, train=4, val=2, size=24, seed=0)
    return {layout: base / layout for layout in LAYOUTS}


@pytest.fixture
def nyud(written: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(written["nyud"], tmp_path / "nyud"))


def test_scenes_are_written_for_the_loader_of_the_layout(written: dict[str, Path]) -> None:
    counts = {}
    for split in ("train", "val"):
        request = SourceRequest(name="nyud", root=str(written["nyud"]), split=split, size=None, images=None, seed=0)
        counts[split] = len(open_source(request).keys())
    assert counts == {"train": 4, "val": 2}


def test_an_unknown_layout_lists_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="imagefolder"):
        write_scenes("cube", out=tmp_path / "data", train=1, val=1, size=32, seed=0)


def test_the_command_offers_every_layout() -> None:
    assert {layout.value for layout in Layout} == set(LAYOUTS)


@pytest.mark.parametrize(
    ("layout", "kind", "published", "tasks"),
    [
        ("nyud", "nyud", (795, 654), 4),
        ("pascal-context", "pascalcontext", (4998, 5105), 5),
        ("cityscapes", "cityscapes", (2975, 500), 2),
        ("imagefolder", "imagefolder", (None, None), 0),
    ],
)
def test_a_whole_data_set_is_known_by_its_folders_and_has_no_fault(
    written: dict[str, Path], layout: str, kind: str, published: tuple[int | None, ...], tasks: int
) -> None:
    report = check_data(str(written[layout]), workers=1)
    assert report.kind == kind
    assert report.faults == ()
    assert [(split.name, split.images, split.published) for split in report.splits] == [
        ("train", 4, published[0]),
        ("val", 2, published[1]),
    ]
    for split in report.splits:
        assert split.found.sizes == {(24, 24): split.images}
        assert len(split.found.tasks) == tasks
        assert all(0 < found.known <= found.pixels == split.images * 576 for found in split.found.tasks.values())
    differs = [f"train has 4 images, {published[0]:,} were published"] if published[0] else []
    assert [note for note in report.notes if note.startswith("train has 4")] == differs


def test_an_undivided_folder_is_one_split(written: dict[str, Path]) -> None:
    report = check_data(str(written["imagefolder"] / "val"), workers=1)
    assert [(split.name, split.images) for split in report.splits] == [("all", 2)]
    assert label_table(report) is None


def damage(root: Path) -> list[str]:
    """Faults of every kind, and how the line of each begins, in their order."""
    (root / "edge/train_000001.png").unlink()
    (root / "depth/train_000001.npy").write_bytes(b"\x93")
    labels = np.asarray(Image.open(root / "segmentation/train_000003.png")).copy()
    labels[0, :3] = (41, 60, 61)
    Image.fromarray(labels).save(root / "segmentation/train_000003.png")
    depth = np.load(root / "depth/val_000000.npy")
    np.save(root / "depth/val_000000.npy", np.where(depth == 255, 0, depth * 1000))
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(root / "normals/val_000001.png")
    with (root / "gt_sets/val.txt").open("a") as file:
        file.write("train_000000\n")
    return [
        f"{root}/edge/train_000001.png: file not found",
        f"{root}/depth/train_000001.npy: cannot be read",
        f"{root}/segmentation/train_000003.png: expected what reads as semseg classes 0 to 39, got 40 to 60",
        f"{root}/depth/val_000000.npy: expected depth of at most 80 m, got ",
        f"{root}/normals/val_000001.png: normals label has shape (5, 5, 3)",
        "1 of the images of val are in train too: train_000000",
    ]


def test_every_fault_is_listed_in_order(nyud: Path) -> None:
    wanted = sorted(damage(nyud)[:5])
    report = check_data(str(nyud), workers=1)
    assert [fault[: len(line)] for fault, line in zip(sorted(report.faults[:5]), wanted, strict=True)] == wanted
    assert len(report.faults) == 6
    assert report.faults[5].startswith("1 of the images of val are in train too: train_000000")
    assert [len(split.found.faults) for split in report.splits] == [3, 2]
    assert json.loads(json.dumps(report_json(report)))["faults"] == list(report.faults)
    assert split_table(report).row_count == 2


def test_processes_find_what_one_finds(nyud: Path) -> None:
    damage(nyud)
    assert report_json(check_data(str(nyud), workers=2)) == report_json(check_data(str(nyud), workers=1))


def test_a_missing_list_is_a_fault_of_its_split(nyud: Path) -> None:
    (nyud / "gt_sets/val.txt").unlink()
    report = check_data(str(nyud), workers=1)
    assert [split.name for split in report.splits] == ["train"]
    assert len(report.faults) == 1
    assert f"{nyud}/gt_sets/val.txt: split list cannot be read" in report.faults[0]
    assert not check_data(str(nyud), splits=("train",), workers=1).faults
    report = check_data(str(nyud), splits=("val",), workers=1)
    assert report.splits == ()
    assert len(report.faults) == 1
    with pytest.raises(DataError, match="unknown split 'testing'; choose one of train, val"):
        check_data(str(nyud), splits=("testing",), workers=1)


def test_what_every_split_needs_is_one_fault(written: dict[str, Path], tmp_path: Path) -> None:
    root = Path(shutil.copytree(written["pascal-context"], tmp_path / "pascal"))
    shutil.rmtree(root / "json")
    faults = check_data(str(root), workers=1).faults
    assert len(faults) == 1
    assert f"{root}/json/nyu_classes.json: class table cannot be read" in faults[0]


def test_images_in_a_tar_are_checked_too(written: dict[str, Path], tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        tar.add(written["imagefolder"], arcname=".")
    report = check_data(str(tmp_path / "all.tar"), kind="tar", workers=1)
    assert [(split.name, split.images) for split in report.splits] == [("train", 4), ("val", 2)]
    assert not report.faults


def test_a_task_without_labels_is_noted(nyud: Path) -> None:
    for path in (nyud / "edge").glob("val_*.png"):
        Image.fromarray(np.zeros((24, 24), np.uint8)).save(path)
    report = check_data(str(nyud), splits=("val",), workers=1)
    assert report.notes[-1] == "val has no boundary label in any image"
    assert not report.faults


def test_what_is_no_data_set_lists_those_there_are(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"is like no data set known \(cityscapes: .*name one with --as"):
        check_data(str(tmp_path / "empty"))
    with pytest.raises(DataError, match="folder not found"):
        check_data(str(tmp_path / "absent"))
    with pytest.raises(DataError, match="unknown kind of data set 'scenes'; choose one of cityscapes, nyud"):
        check_data(str(tmp_path / "empty"), kind="scenes")


def test_the_command_bounds_what_it_prints_and_exits_1(nyud: Path) -> None:
    run = CliRunner().invoke
    done = run(data_app, ["check", str(nyud), "--workers", "1"])
    assert done.exit_code == 0
    assert "every file is as it should be" in done.output
    damage(nyud)
    done = run(data_app, ["check", str(nyud), "--workers", "1", "--show", "2"])
    assert done.exit_code == 1
    assert done.output.count("fault: ") == 2
    assert "4 more faults; --json prints all" in done.output
    done = run(data_app, ["check", str(nyud), "--workers", "1", "--json"])
    assert done.exit_code == 1
    assert len(json.loads(done.stdout)["faults"]) == 6
