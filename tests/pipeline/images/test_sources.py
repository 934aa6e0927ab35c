"""Conformance: what every registered image source promises, whatever it reads."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.images.registry import SOURCES, SourceRequest, open_source
from pipeline.images.sample import ImageSource
from pipeline.images.scenes import SceneSource
from tests.pipeline.images.conftest import FOLDERS, PACKED, SIZE

DTYPES = {"normals": "float32", "depth": "float32", "disparity": "float32"}
Opener = Callable[..., ImageSource]
every_source = pytest.mark.parametrize("name", sorted(SOURCES))


@every_source
def test_keys_are_sorted_relative_and_unique(opener: Opener, name: str) -> None:
    keys = list(opener(name).keys())
    assert keys == sorted(set(keys))
    assert len(keys) == 6
    assert all(re.fullmatch(r"[\w\-]+(/[\w\-]+)*", key) for key in keys)


@every_source
def test_samples_have_the_promised_labels(opener: Opener, name: str) -> None:
    source = opener(name)
    for index, key in enumerate(source.keys()):
        sample = source.read(index)
        assert sample.key == key
        assert sample.image.dtype == np.uint8
        assert sample.image.shape == (*SIZE, 3)
        assert set(sample.labels) == set(source.tasks)
        for task, array in sample.labels.items():
            assert array.shape == ((*SIZE, 3) if task == "normals" else SIZE)
            assert array.dtype.name == DTYPES.get(task, "uint8")


@every_source
def test_reading_is_repeatable_and_labels_can_be_left_out(opener: Opener, name: str) -> None:
    source = opener(name)
    first, again, bare = source.read(2), opener(name).read(2), source.read(2, labels=False)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.image, bare.image)
    assert not bare.labels
    for task in source.tasks:
        np.testing.assert_array_equal(first.labels[task], again.labels[task])


@every_source
def test_normals_are_unit_or_exactly_zero_and_depth_is_metric(opener: Opener, name: str) -> None:
    source = opener(name)
    for index in range(6):
        labels = source.read(index).labels
        if "normals" in labels:
            length = np.linalg.norm(labels["normals"], axis=-1)
            assert ((length == 0) | (np.abs(length - 1) < 1e-5)).all()
        if "depth" in labels:
            depth = np.asarray(labels["depth"])
            assert ((depth == 255) | ((depth > 0) & (depth < 80))).all()


@every_source
def test_splits_share_no_image(opener: Opener, name: str) -> None:
    train, val = opener(name), opener(name, "val")
    ours = {train.read(index).image.tobytes() for index in range(len(train.keys()))}
    theirs = {val.read(index).image.tobytes() for index in range(len(val.keys()))}
    assert not ours & theirs


@every_source
def test_fingerprint_is_stable_and_tells_contents_apart(opener: Opener, name: str) -> None:
    prints = [opener(name).fingerprint(), opener(name, "val").fingerprint(), opener(name, images=4).fingerprint()]
    assert opener(name).fingerprint() == prints[0]
    assert len(set(prints)) == 3
    assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in prints)


@every_source
def test_asking_for_fewer_images_keeps_keys_and_contents(opener: Opener, name: str) -> None:
    whole, part = opener(name), opener(name, images=4)
    assert set(part.keys()) < set(whole.keys())
    index = list(whole.keys()).index(part.keys()[1])
    np.testing.assert_array_equal(part.read(1).image, whole.read(index).image)


@every_source
def test_out_of_range_index_is_an_index_error(opener: Opener, name: str) -> None:
    with pytest.raises(IndexError):
        opener(name).read(6)


@every_source
def test_unknown_split_is_named(opener: Opener, name: str) -> None:
    with pytest.raises(DataError, match="testing"):
        opener(name, "testing")


@pytest.mark.parametrize("name", sorted(FOLDERS))
def test_missing_folder_says_what_was_expected(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: folder not found; expected .*train"):
        open_source(
            SourceRequest(name=name, root=str(tmp_path / "nowhere"), split="train", size=None, images=None, seed=0)
        )


@pytest.mark.parametrize("name", sorted(FOLDERS | PACKED))
def test_sources_on_disk_refuse_what_they_cannot_use(name: str, folders: dict[str, Path], packed: Path) -> None:
    with pytest.raises(DataError, match="needs a data folder"):
        open_source(SourceRequest(name=name, root=None, split="train", size=None, images=None, seed=0))
    root = str(folders[FOLDERS[name]] if name in FOLDERS else packed / PACKED[name])
    with pytest.raises(DataError, match="leave size out"):
        open_source(SourceRequest(name=name, root=root, split="train", size=(8, 8), images=None, seed=0))
    with pytest.raises(DataError, match="ask for 1 to 6"):
        open_source(SourceRequest(name=name, root=root, split="train", size=None, images=7, seed=0))


def test_scenes_refuse_what_they_cannot_use() -> None:
    with pytest.raises(DataError, match="leave root out"):
        open_source(SourceRequest(name="scenes", root="x", split="train", size=SIZE, images=1, seed=0))
    with pytest.raises(DataError, match="needs size"):
        open_source(SourceRequest(name="scenes", root=None, split="train", size=None, images=1, seed=0))
    with pytest.raises(DataError, match="at least 1 image"):
        open_source(SourceRequest(name="scenes", root=None, split="train", size=SIZE, images=0, seed=0))
    with pytest.raises(DataError, match="seed of at least 0"):
        open_source(SourceRequest(name="scenes", root=None, split="train", size=SIZE, images=1, seed=-1))


def test_unknown_source_lists_the_choices() -> None:
    with pytest.raises(DataError, match="cityscapes, nyud, pascalcontext, imagefolder, parquet, scenes"):
        open_source(SourceRequest(name="imagenet", root=None, split="train", size=None, images=None, seed=0))


def test_scene_seeds_of_splits_never_meet() -> None:
    from pipeline.images.scenes import SPLITS, scene_seed

    seeds = [scene_seed(seed, split=split) for seed in range(50) for split in SPLITS]
    assert len(set(seeds)) == len(seeds)


def test_a_scene_does_not_depend_on_the_count(opener: Opener) -> None:
    few, many = opener("scenes", images=2), opener("scenes", images=20)
    assert few.keys()[1] == many.keys()[1] == "train/000001"
    np.testing.assert_array_equal(few.read(1).image, many.read(1).image)


def test_keys_of_scenes_are_written_when_asked_for() -> None:
    keys = SceneSource(split="val", size=(8, 8), images=10**9, seed=0).keys()
    assert len(keys) == 10**9
    assert keys[7] == "val/000000007"
    assert keys[-1] == "val/999999999"
    assert list(keys[5:9:2]) == ["val/000000005", "val/000000007"]
    with pytest.raises(IndexError):
        keys[10**9]
