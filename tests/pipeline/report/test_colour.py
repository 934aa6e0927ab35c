"""Colour maps: known colours, invalid pixels, and PCA pictures that can be compared."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.report.colour import (
    DepthRange,
    colour_classes,
    colour_depth,
    colour_normals,
    colour_probability,
    colour_task,
    depth_range,
    pca_colours,
)
from pipeline.report.data import ReportError
from pipeline.report.palettes import (
    cityscapes_palette,
    class_palette,
    distinct_palette,
    scenes_palette,
    voc_palette,
)


def test_voc_palette_has_the_published_colours() -> None:
    published = {
        0: (0, 0, 0),
        1: (128, 0, 0),
        2: (0, 128, 0),
        15: (192, 128, 128),
        20: (0, 64, 128),
        255: (224, 224, 192),
    }
    for index, colour in published.items():
        assert tuple(voc_palette()[index]) == colour


@pytest.mark.parametrize(
    ("palette", "count"),
    [(voc_palette(), 21), (distinct_palette(), 40), (scenes_palette(), 12)],
)
def test_every_class_has_its_own_colour(palette: np.ndarray, count: int) -> None:
    used = np.concatenate([palette[:count], palette[255:]]).astype(int)
    gaps = np.abs(used[:, None] - used[None]).sum(-1) + 999 * np.eye(len(used), dtype=int)
    assert gaps.min() >= 40


def test_cityscapes_has_the_published_colours() -> None:
    assert len(np.unique(cityscapes_palette()[:19], axis=0)) == 19
    assert cityscapes_palette()[[0, 10, 18]].tolist() == [[128, 64, 128], [70, 130, 180], [119, 11, 32]]


def test_data_sets_choose_their_palette() -> None:
    assert np.array_equal(class_palette("nyud", task="semseg"), distinct_palette())
    assert np.array_equal(class_palette("scenes", task="semseg"), scenes_palette())
    assert np.array_equal(class_palette("cityscapes", task="semseg"), cityscapes_palette())
    assert np.array_equal(class_palette("scenes", task="human_parts"), voc_palette())
    assert np.array_equal(class_palette("pascalcontext", task="semseg"), voc_palette())


def test_classes_refuse_logits() -> None:
    with pytest.raises(ReportError, match="arg max"):
        colour_classes(np.zeros((4, 4), np.float32), dataset="scenes", task="semseg")
    with pytest.raises(ReportError, match=r"\(H, W\)"):
        colour_classes(np.zeros((4, 4, 12), np.uint8), dataset="scenes", task="semseg")


def test_normals_show_axes_and_zeros() -> None:
    normals = np.array([[[1, 0, 0], [0, -1, 0], [0, 0, 1], [0, 0, 0]]], np.float32)
    assert colour_normals(normals)[0].tolist() == [[255, 128, 128], [128, 0, 128], [128, 128, 255], [128, 128, 128]]


@given(scale=st.floats(0.01, 100.0))
def test_normals_need_not_be_unit(scale: float) -> None:
    normals = np.random.default_rng(0).normal(size=(3, 5, 3))
    assert np.abs(colour_normals(normals * scale).astype(int) - colour_normals(normals)).max() <= 1


def test_depth_is_bright_near_dark_far_grey_where_invalid() -> None:
    depth = np.array([[1.0, 2.0, 4.0, 8.0, 255.0, np.nan]], np.float32)
    picture = colour_depth(depth, limits=DepthRange(1.0, 8.0))[0]
    brightness = picture.astype(int).sum(-1)
    assert (np.diff(brightness[:4]) < 0).all()
    assert picture[4].tolist() == picture[5].tolist() == [128, 128, 128]


def test_depth_range_comes_from_the_first_map_with_a_valid_pixel() -> None:
    invalid, label = np.full((4, 4), 255.0, np.float32), np.linspace(2, 3, 16, dtype=np.float32).reshape(4, 4)
    near, far = depth_range([invalid, label, label * 50])
    assert 2.0 <= near < far <= 3.0
    assert depth_range([invalid]) == DepthRange(0.0, 1.0)


def test_probability_of_labels_and_predictions() -> None:
    label = colour_probability(np.array([[0, 1, 255]], np.uint8), task="edge")
    prediction = colour_probability(np.array([[0.0, 1.0, np.nan]], np.float32), task="edge")
    assert label[0].tolist() == prediction[0].tolist() == [[0, 0, 0], [255, 255, 255], [128, 128, 128]]


def test_unknown_task_lists_the_choices() -> None:
    with pytest.raises(ReportError, match="semseg"):
        colour_task("flow", np.zeros((2, 2)), dataset="scenes", limits=DepthRange(0, 1))


def test_pca_gives_equal_maps_equal_colours() -> None:
    teacher = np.random.default_rng(1).normal(size=(8, 6, 7))
    one, two = pca_colours([teacher, teacher.copy()])
    assert one.shape == (6, 7, 3)
    assert np.array_equal(one, two)


def test_pca_basis_does_not_depend_on_the_student() -> None:
    rng = np.random.default_rng(2)
    teacher, student = rng.normal(size=(8, 6, 6)), 100 * rng.normal(size=(8, 3, 3))
    assert np.array_equal(pca_colours([teacher])[0], pca_colours([teacher, student])[0])


def test_pca_sign_is_fixed() -> None:
    # The axes of X and -X are the same up to sign; with the sign fixed, the colours must be complements.
    feature = np.random.default_rng(3).normal(size=(5, 9, 9)) ** 3
    plus, minus = pca_colours([feature])[0].astype(int), pca_colours([-feature])[0].astype(int)
    assert np.abs(plus + minus - 255).max() <= 1


def test_pca_of_what_does_not_vary_is_grey() -> None:
    assert (pca_colours([np.full((4, 3, 3), 7.0)])[0] == 128).all()
    thin = pca_colours([np.arange(9.0).reshape(1, 3, 3)])[0]
    assert (thin[..., 1:] == 128).all()
    assert len(np.unique(thin[..., 0])) > 5


@pytest.mark.parametrize(
    ("features", "fitted", "message"),
    [
        ([np.zeros((3, 2, 2)), np.zeros((4, 2, 2))], 1, "align"),
        ([np.zeros((3, 2))], 1, r"\(C, h, w\)"),
        ([np.full((3, 2, 2), np.nan)], 1, "finite"),
        ([np.zeros((3, 2, 2))], 2, "fitted"),
        ([], 1, "fitted"),
    ],
)
def test_pca_refuses(features: list[np.ndarray], fitted: int, message: str) -> None:
    with pytest.raises(ReportError, match=message):
        pca_colours(features, fitted=fitted)
