"""What all data sets with labels share: fingerprints, either published layout, and labels that are derived once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import BadImageError
from pipeline.images import pascal_context
from pipeline.images.derived import derived_map
from pipeline.images.labelled import LabelledFolder
from pipeline.images.nyud import Nyud
from pipeline.images.pascal_context import PascalContext
from pipeline.images.registry import LABELLED
from sak.tasks import DATASETS
from tests.pipeline.images.conftest import FOLDERS

FILES = {
    "nyud": ("images/{}.png", "segmentation/{}.png", "normals/{}.png", "edge/{}.png", "depth/{}.npy"),
    "pascalcontext": (
        "JPEGImages/{}.jpg",
        "semseg/VOC12/{}.png",
        "pascal-context/trainval/{}.mat",
        "human_parts/{}.mat",
        "sal_distill/{}.png",
        "normals_distill/{}.png",
    ),
}
LISTS = {"nyud": "gt_sets", "pascalcontext": "ImageSets/Context"}
# Of view sets that were stored before these readers had anything in common.
FINGERPRINTS = {
    ("nyud", "train", None): "f475742f1f921ccc51c31527a33dab8de508be609d4ebf14cb57d34cd22d7ab8",
    ("nyud", "train", 1): "de7015c39e6a76b84b09e633c393ac320ac7a00563759b9646fb009898b0817b",
    ("pascalcontext", "train", None): "72d07f82598876ae4c008ef25f43ebd43f571f093a87ef2606c51e64b98af683",
    ("pascalcontext", "val", None): "7d9ba9abfdecc7d0ce790da8fef04830bd2699dac0a51530d77e17f666be1c3c",
}


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def made(root: Path, name: str) -> Path:
    """A data set whose files hold their own names: nothing but a fingerprint can be had of it."""
    put(root / LISTS[name] / "train.txt", "b\na\n")
    put(root / LISTS[name] / "val.txt", "c\n")
    for file in FILES[name]:
        for key in "abc":
            put(root / file.format(key), f"{file} {key}".replace("{}", "%s"))
    if name == "pascalcontext":
        (root / "semseg/pascal-context").mkdir()
        (root / "semseg/VOC12/a.png").rename(root / "semseg/pascal-context/a.png")
        put(root / "json/nyu_classes.json", json.dumps({"wall": 21, "unknown": 20, "cat": 1}))
        context = {"wall": 424, "tvmonitor": 427, "sky": 360, "cat": 59, "unknown": 3}
        put(root / "json/context_classes.json", json.dumps(context))
    return root


@pytest.mark.parametrize(("name", "split", "images"), FINGERPRINTS)
def test_fingerprints_are_those_of_stores_written_before(
    tmp_path: Path, name: str, split: str, images: int | None
) -> None:
    source = LABELLED[name](made(tmp_path, name), split=split, images=images, seed=3)
    assert source.fingerprint() == FINGERPRINTS[name, split, images]


@pytest.mark.parametrize("name", LABELLED)
def test_a_data_set_says_what_it_is(name: str, folders: dict[str, Path]) -> None:
    kind = LABELLED[name]
    assert kind.dataset == name
    assert set(kind.tasks) == set(DATASETS[name].tasks)
    assert [other for other in LABELLED if LABELLED[other].is_at(folders[FOLDERS[name]])] == [name]
    source = kind(folders[FOLDERS[name]], split="train")
    for task in kind.tasks:
        assert source.label_file(0, task=task).is_file()


@pytest.mark.parametrize("name", LABELLED)
def test_parts_of_an_image_are_what_is_read_of_it(name: str, folders: dict[str, Path]) -> None:
    source = LABELLED[name](folders[FOLDERS[name]], split="val")
    parts, sample = source.read_parts(1), source.read(1)
    assert parts.faults == ()
    np.testing.assert_array_equal(parts.image, sample.image)
    assert set(parts.labels) == set(sample.labels) == set(source.tasks)
    for task, label in sample.labels.items():
        np.testing.assert_array_equal(parts.labels[task], label)


def test_all_faults_of_an_image_are_found(folders: dict[str, Path], tmp_path: Path) -> None:
    root = Path(shutil.copytree(folders["pascal-context"], tmp_path / "pascal"))
    source: LabelledFolder = PascalContext(root, split="train")
    (root / "JPEGImages/train_000000.jpg").write_bytes(b"")
    (root / "pascal-context/trainval/train_000000.mat").unlink()  # two labels are made of it
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(root / "sal_distill/train_000001.png")
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(root / "normals_distill/train_000001.png")
    faults = source.read_parts(0).faults
    assert [fault.split(": ")[0].rsplit("/", 1)[1] for fault in faults] == ["train_000000.jpg", "train_000000.mat"]
    faults = source.read_parts(1).faults
    assert len(faults) == 2
    assert faults[0].startswith(f"{root}/normals_distill/train_000001.png: normals label has shape (9, 9, 3)")
    assert faults[1].startswith(f"{root}/sal_distill/train_000001.png: sal label has shape (9, 9)")


def test_the_older_nyud_layout_reads_alike(folders: dict[str, Path], tmp_path: Path) -> None:
    new = Nyud(folders["nyud"], split="train")
    root = Path(shutil.copytree(folders["nyud"], tmp_path / "nyud"))
    for key in new.keys():  # noqa: SIM118
        Image.open(root / f"images/{key}.png").save(root / f"images/{key}.jpg", quality=100, subsampling=0)
        normals = np.asarray(Image.open(root / f"normals/{key}.png")).astype(np.float64) * 2 / 255 - 1
        normals[np.abs(normals).sum(-1) < 0.5] = np.nan
        np.save(root / f"normals/{key}.npy", normals)
        np.save(root / f"edge/{key}.npy", np.asarray(Image.open(root / f"edge/{key}.png")) / 255)
        for folder in ("images", "normals", "edge"):
            (root / f"{folder}/{key}.png").unlink()
    old = Nyud(root, split="train")
    for index in range(len(old.keys())):
        ours, theirs = old.read(index), new.read(index)
        assert np.abs(ours.image.astype(int) - theirs.image).mean() < 3
        np.testing.assert_allclose(ours.labels["normals"], theirs.labels["normals"], atol=1e-6)
        for task in ("semseg", "edge", "depth"):
            np.testing.assert_array_equal(ours.labels[task], theirs.labels[task])
    np.save(root / "normals/train_000000.npy", np.zeros((32, 40)))
    with pytest.raises(BadImageError, match=r"train_000000\.npy: expected normals of shape \(H, W, 3\)"):
        old.read(0)


def test_boundaries_coded_as_one_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    root = Path(shutil.copytree(folders["nyud"], tmp_path / "nyud"))
    path = root / "edge/train_000000.png"
    Image.fromarray(np.asarray(Image.open(path)) // 255).save(path)
    with pytest.raises(BadImageError, match=r"train_000000\.png: expected boundaries of 255, got at most 1"):
        Nyud(root, split="train").read(0)


def entries(cache: Path) -> list[Path]:
    return sorted(path for path in (cache / "labels").rglob("*") if path.is_file())


def test_parts_and_boundaries_are_derived_once(
    folders: dict[str, Path], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = PascalContext(folders["pascal-context"], split="train").read(0).labels
    kept = entries(cache)
    assert sorted(path.parts[-3] for path in kept) == ["edges-1", "parts-1-32x40"]

    def again(*_args: object, **_keywords: object) -> None:
        raise AssertionError("derived again")

    monkeypatch.setattr(pascal_context, "map_edges", again)
    monkeypatch.setattr(pascal_context, "person_parts", again)
    # By content, so another copy of the data set finds them too.
    elsewhere = Path(shutil.copytree(folders["pascal-context"], tmp_path / "copy"))
    after = PascalContext(elsewhere, split="train").read(0).labels
    for task, label in before.items():
        np.testing.assert_array_equal(after[task], label)
    assert entries(cache) == kept


def test_a_data_set_is_never_written_to(folders: dict[str, Path], tmp_path: Path) -> None:
    root = Path(shutil.copytree(folders["pascal-context"], tmp_path / "pascal"))
    before = sorted(root.rglob("*"))
    PascalContext(root, split="val").read(0)
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-1], lambda data: b"x" + data[1:]])
def test_a_damaged_entry_is_made_again(cache: Path, damage: Callable[[bytes], bytes]) -> None:
    wanted = np.arange(6, dtype=np.uint8).reshape(2, 3)
    derived_map("test-1", b"annotation", make=lambda: wanted)
    (path,) = entries(cache)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    calls = []

    def make() -> np.ndarray:
        calls.append(1)
        return wanted

    np.testing.assert_array_equal(derived_map("test-1", b"annotation", make=make), wanted)
    np.testing.assert_array_equal(derived_map("test-1", b"annotation", make=make), wanted)
    assert calls == [1]
    assert path.read_bytes() == whole


def test_without_a_cache_labels_are_derived_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("SAK_CACHE", str(tmp_path / "file"))
    for value in (1, 2):
        one = np.full((2, 2), value, dtype=np.uint8)
        np.testing.assert_array_equal(derived_map("test-1", b"annotation", make=lambda one=one: one), one)  # type: ignore[misc]
    assert capfd.readouterr().err.count("cannot be kept") == 1
