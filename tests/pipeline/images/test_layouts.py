"""Round trips: what a reader returns from a written layout is what was rendered."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat
from scipy.ndimage import binary_dilation

from pipeline.errors import DataError
from pipeline.images.cityscapes import CLASS_IDS
from pipeline.images.layouts import (
    CITYSCAPES_IDS,
    LAYOUTS,
    NYUD_CLASSES,
    PASCAL_CLASSES,
    region_map,
    write_layout,
)
from pipeline.images.pascal_context import map_edges
from pipeline.images.sample import ImageSample, ImageSource
from pipeline.images.scenes import scene_seed
from pipeline.scenes.render import CLASSES, render_layers
from tests.pipeline.images.conftest import SEED, SIZE

Opener = Callable[..., ImageSource]
SPLITS = [("train", 6), ("val", 3)]


def pairs(opener: Opener, name: str) -> list[tuple[ImageSample, ImageSample]]:
    """(read back, rendered) of every image."""
    found = []
    for split, count in SPLITS:
        read, made = opener(name, split), opener("scenes", split, images=count)
        for index in range(count):
            found.append((read.read(index), made.read(int(read.keys()[index].rsplit("_", 1)[1]))))
    return found


def as_classes(semseg: np.ndarray, table: dict[str, int]) -> np.ndarray:
    return np.array([table[name] for name in CLASSES])[semseg]


@pytest.mark.parametrize("name", ["nyud", "pascalcontext"])
def test_normals_come_back_within_quantisation_and_sky_stays_invalid(opener: Opener, name: str) -> None:
    for read, made in pairs(opener, name):
        np.testing.assert_allclose(read.labels["normals"], made.labels["normals"], atol=0.006)
        sky = made.labels["depth"] == 255
        assert (read.labels["normals"][sky] == 0).all()


def test_nyud_images_and_labels_come_back_exactly(opener: Opener) -> None:
    for read, made in pairs(opener, "nyud"):
        np.testing.assert_array_equal(read.image, made.image)
        np.testing.assert_array_equal(read.labels["semseg"], as_classes(made.labels["semseg"], NYUD_CLASSES))
        for task in ("edge", "depth"):
            np.testing.assert_array_equal(read.labels[task], made.labels[task])


def test_pascal_labels_come_back_exactly(opener: Opener) -> None:
    for read, made in pairs(opener, "pascalcontext"):
        assert np.abs(read.image.astype(int) - made.image).mean() < 6  # JPEG
        np.testing.assert_array_equal(read.labels["semseg"], as_classes(made.labels["semseg"], PASCAL_CLASSES))
        for task in ("human_parts", "sal"):
            np.testing.assert_array_equal(read.labels[task], made.labels[task])


def test_cityscapes_labels_come_back(opener: Opener) -> None:
    classes = {name: CLASS_IDS.index(number) for name, number in CITYSCAPES_IDS.items()}
    for read, made in pairs(opener, "cityscapes"):
        np.testing.assert_array_equal(read.image, made.image)
        np.testing.assert_array_equal(read.labels["semseg"], as_classes(made.labels["semseg"], classes))
        depth, disparity = made.labels["depth"], read.labels["disparity"]
        sky = depth == 255
        assert (disparity[sky] == 255).all()
        known = disparity != 255
        assert known[~sky].mean() > 0.9
        np.testing.assert_allclose(disparity[known], 0.22 * 1.1 * SIZE[1] / depth[known], atol=1 / 512 + 1e-4)


def test_pascal_edges_follow_the_instances(opener: Opener) -> None:
    read = opener("pascalcontext")
    near = np.ones((3, 3), dtype=bool)
    for index in range(6):
        scene = render_layers(seed=scene_seed(SEED, split="train"), index=index, size=SIZE)
        ours, theirs = scene.sample.labels["edge"] > 0, read.read(index).labels["edge"] > 0
        np.testing.assert_array_equal(theirs, map_edges(region_map(scene)) > 0)
        assert binary_dilation(ours, near, iterations=1)[theirs].all()
        assert binary_dilation(theirs, near, iterations=2)[ours].mean() > 0.97


def test_imagefolder_has_the_scene_images_by_class(opener: Opener) -> None:
    for read, made in pairs(opener, "imagefolder"):
        assert np.abs(read.image.astype(int) - made.image).mean() < 6
        assert read.key.split("/")[0] in (*CLASSES, "nothing")
        assert read.label is not None


def test_pascal_annotation_has_the_published_structure(folders: dict[str, Path]) -> None:
    """Published loaders index by position: anno -> objects -> (class, class_ind, mask, parts) -> (name, mask)."""
    root = folders["pascal-context"]
    listed = json.loads((root / "ImageSets/Parts/train.txt").read_text())
    assert sorted(listed) == (root / "ImageSets/Context/train.txt").read_text().split()
    people = 0
    for name, kinds in listed.items():
        objects = loadmat(root / "human_parts" / f"{name}.mat")["anno"][0][0][1][0]
        assert [int(thing[1][0][0]) for thing in objects] == kinds
        for thing in objects:
            assert np.shape(thing[2]) == SIZE
            if thing[1][0][0] != 15:
                assert len(thing[3]) == 0
                continue
            people += 1
            for part in thing[3][0]:
                assert str(part[0][0]) in ("head", "torso", "luarm", "llarm", "luleg", "llleg")
                assert part[1].shape == SIZE
    assert people > 0


def test_pascal_normals_are_masked_by_region_class(folders: dict[str, Path]) -> None:
    tables = folders["pascal-context"] / "json"
    context = json.loads((tables / "context_classes.json").read_text())
    indoor = json.loads((tables / "nyu_classes.json").read_text())
    assert len(set(context.values())) == len(context)
    assert max(context.values()) <= 459
    assert "sky" not in indoor
    assert set(indoor) < set(context)


def test_class_tables_cover_the_scenes_and_keep_objects_apart() -> None:
    for table, limit, shared in ((PASCAL_CLASSES, 21, 2), (NYUD_CLASSES, 40, 0), (CITYSCAPES_IDS, 34, 0)):
        assert tuple(table) == CLASSES
        assert all(0 <= number < limit for number in table.values())
        assert len(set(table.values())) == len(CLASSES) - shared


def test_writing_twice_gives_the_same_bytes_and_reports_progress(tmp_path: Path) -> None:
    seen: list[int] = []
    for name in ("one", "two"):
        write_layout("nyud", out=tmp_path / name, train=2, val=1, size=(16, 20), seed=1, progress=seen.append)
    assert seen == [1, 2, 3, 1, 2, 3]
    first = {path.relative_to(tmp_path / "one"): path.read_bytes() for path in (tmp_path / "one").rglob("*.*")}
    second = {path.relative_to(tmp_path / "two"): path.read_bytes() for path in (tmp_path / "two").rglob("*.*")}
    assert first == second
    assert len(first) == 3 * 5 + 2


def test_an_interrupted_write_leaves_no_folder_and_can_be_repeated(tmp_path: Path) -> None:
    def stop(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_layout("nyud", out=tmp_path / "data", train=2, val=1, size=(16, 20), seed=1, progress=stop)
    assert not (tmp_path / "data").exists()
    write_layout("nyud", out=tmp_path / "data", train=2, val=1, size=(16, 20), seed=1)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize(
    ("layout", "train", "words"),
    [("coco", 1, f"choose one of {', '.join(LAYOUTS)}"), ("nyud", 0, "at least 1 training")],
)
def test_bad_requests_are_named(tmp_path: Path, layout: str, train: int, words: str) -> None:
    with pytest.raises(DataError, match=words):
        write_layout(layout, out=tmp_path / "x", train=train, val=1, size=(16, 16), seed=0)


def test_a_folder_with_content_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match="not an empty folder"):
        write_layout("nyud", out=tmp_path, train=1, val=1, size=(16, 16), seed=0)
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_reading_other_sources_does_not_wait_for_scikit_image() -> None:
    code = "import sys, pipeline.viewsets; print([name for name in sys.modules if name.split('.')[0] == 'skimage'])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
