"""The published label transforms: parity with stored outputs of the published code, and properties of any input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import transforms
from pipeline.errors import DataError
from pipeline.transforms import Array, Box

GOLDEN = Path(__file__).resolve().parents[1] / "golden/sak_reference_transforms.npz"


def golden(case: str) -> dict[str, Array]:
    with np.load(GOLDEN, allow_pickle=False) as archive:
        return {name.split("/")[1]: archive[name] for name in archive.files if name.split("/")[0] == case}


def assert_maps(got: dict[str, Array], want: dict[str, Array]) -> None:
    assert set(got) == set(want)
    for name, array in want.items():
        assert got[name].dtype == array.dtype
        np.testing.assert_allclose(got[name], array, rtol=0, atol=1e-4, err_msg=name)


def random_maps(seed: int, *, height: int = 13, width: int = 17) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    normals = rng.standard_normal((height, width, 3)).astype(np.float32)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    normals[rng.random((height, width)) < 0.2] = 0
    depth = rng.uniform(1, 9, (height, width)).astype(np.float32)
    depth[rng.random((height, width)) < 0.2] = 255
    return {
        "image": rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
        "semseg": rng.choice(np.array([0, 3, 7, 255], np.uint8), (height, width)),
        "normals": normals,
        "depth": depth,
    }


@pytest.mark.parametrize("factor", [0.5, 1.37, 2.0])
def test_scale_is_the_published_one(factor: float) -> None:
    assert_maps(transforms.scale(golden("in"), factor=factor), golden(f"scale{factor}"))


def test_flip_is_the_published_one() -> None:
    assert_maps(transforms.flip(golden("in")), golden("flip"))


@pytest.mark.parametrize("case", ["pad", "pad_ignore"])
def test_pad_and_ignore_are_the_published_ones(case: str) -> None:
    # The published ignore step writes into the padded arrays, so "pad" holds its normals and depth too.
    got = transforms.ignore_regions(transforms.pad(golden("in"), size=(64, 64)))
    assert_maps(got, golden(case))


def test_normalize_is_the_published_one() -> None:
    assert_maps({"image": transforms.normalize(golden("in")["image"])}, golden("normalize"))


@given(st.integers(0, 999), st.floats(0.3, 3), st.data())
def test_a_window_equals_scaling_then_cropping(seed: int, factor: float, data: st.DataObject) -> None:
    maps = random_maps(seed)
    height, width = transforms.scaled_size((13, 17), factor=factor)
    tall, wide = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    box = Box(data.draw(st.integers(0, height - tall)), data.draw(st.integers(0, width - wide)), tall, wide)
    got = transforms.scale(maps, factor=factor, window=box)
    want = transforms.crop(transforms.scale(maps, factor=factor), box=box)
    for name, array in want.items():
        assert got[name].dtype == maps[name].dtype
        np.testing.assert_array_equal(got[name], array)


def test_scaling_multiplies_disparity_and_keeps_the_invalid_code() -> None:
    maps = {"image": np.zeros((2, 2, 3), np.uint8), "disparity": np.array([[2, 255], [0, 8]], np.float32)}
    np.testing.assert_array_equal(transforms.scale(maps, factor=0.5)["disparity"], [[1]])
    np.testing.assert_array_equal(transforms.scale(maps, factor=2.0)["disparity"][::2, ::2], [[4, 255], [0, 16]])


def test_scaling_divides_depth_and_keeps_the_invalid_code() -> None:
    maps = {"image": np.zeros((2, 2, 3), np.uint8), "depth": np.array([[2, 255], [4, 8]], np.float32)}
    got = transforms.scale(maps, factor=2.0)["depth"]
    np.testing.assert_array_equal(got, np.repeat(np.repeat(np.array([[1, 255], [2, 4]], np.float32), 2, 0), 2, 1))


@given(st.integers(0, 999))
def test_flipping_twice_is_nothing_and_once_negates_normals_x(seed: int) -> None:
    maps = random_maps(seed)
    once = transforms.flip(maps)
    np.testing.assert_array_equal(once["normals"][:, ::-1], maps["normals"] * np.float32([-1, 1, 1]))
    assert not np.signbit(once["normals"][(once["normals"] == 0).all(-1)]).any()
    for name, array in transforms.flip(once).items():
        assert array.tobytes() == (maps[name] + maps[name].dtype.type(0)).tobytes()


@given(st.integers(0, 999), st.integers(1, 40), st.integers(1, 40))
def test_padding_keeps_the_content_and_fills_with_invalid(seed: int, height: int, width: int) -> None:
    maps = random_maps(seed)
    got = transforms.pad(maps, size=(height, width))
    box = transforms.pad_box((13, 17), outer=(height, width))
    for name, array in transforms.crop(got, box=box).items():
        np.testing.assert_array_equal(array, maps[name])
    outside = np.ones(got["image"].shape[:2], bool)
    outside[box.top : box.top + box.height, box.left : box.left + box.width] = False
    assert (got["semseg"][outside] == 255).all()
    assert (got["depth"][outside] == 255).all()
    assert not got["normals"][outside].any()
    assert got["image"].shape[:2] == (max(height, 13), max(width, 17))


def test_nothing_writes_into_its_input() -> None:
    maps = {**random_maps(1), "human_parts": np.zeros((13, 17), np.uint8)}
    before = {name: array.tobytes() for name, array in maps.items()}
    for out in (
        transforms.scale(maps, factor=1.0),
        transforms.crop(maps, box=Box(0, 0, 13, 17)),
        transforms.flip(maps),
        transforms.pad(maps, size=(5, 5)),
    ):
        for array in out.values():
            array[...] = 1
    transforms.ignore_regions(maps)
    transforms.photometric(maps["image"], brightness=9, contrast=1.2, saturation=1.3, hue=5, contrast_first=True)
    assert {name: array.tobytes() for name, array in maps.items()} == before


@pytest.mark.parametrize(
    ("values", "balanced"),
    [([1, 1, 2, 2], True), ([1, 1, 1, 2], False), ([1, 1, 1, 1], False), ([1, 2, 255, 255], True), ([255] * 4, False)],
)
def test_balance_ignores_unlabelled_pixels(values: list[int], balanced: bool) -> None:
    assert transforms.is_balanced(np.array([values], np.uint8), max_ratio=0.75) is balanced


def test_parts_without_a_person_are_ignored_and_others_kept() -> None:
    empty, person = np.array([[0, 255]], np.uint8), np.array([[0, 4]], np.uint8)
    assert (transforms.ignore_empty_parts({"human_parts": empty})["human_parts"] == 255).all()
    np.testing.assert_array_equal(transforms.ignore_empty_parts({"human_parts": person})["human_parts"], person)


def test_neutral_colours_change_nothing() -> None:
    image = random_maps(0)["image"]
    for first in (True, False):
        got = transforms.photometric(image, brightness=0, contrast=1, saturation=1, hue=0, contrast_first=first)
        np.testing.assert_array_equal(got, image)


def test_the_order_of_contrast_matters() -> None:
    image = random_maps(0)["image"]
    first, last = (
        transforms.photometric(image, brightness=0, contrast=1.5, saturation=1.5, hue=0, contrast_first=order)
        for order in (True, False)
    )
    assert (first != last).any()


def test_brightness_and_contrast_saturate() -> None:
    image = np.array([[[0, 100, 250]]], np.uint8)
    got = transforms.photometric(image, brightness=10, contrast=1, saturation=1, hue=0, contrast_first=True)
    np.testing.assert_array_equal(got, [[[10, 110, 255]]])
    got = transforms.photometric(image, brightness=-10, contrast=0.5, saturation=1, hue=0, contrast_first=False)
    np.testing.assert_array_equal(got, [[[0, 45, 120]]])


@pytest.mark.parametrize(
    ("hue", "want"), [(60, [0, 200, 0]), (-60, [0, 0, 200]), (30, [200, 200, 0]), (90, [0, 200, 200])]
)
def test_hue_turns_the_colour_circle(hue: int, want: list[int]) -> None:
    red = np.array([[[200, 0, 0]]], np.uint8)
    got = transforms.photometric(red, brightness=0, contrast=1, saturation=1, hue=hue, contrast_first=True)
    np.testing.assert_array_equal(got, [[want]])


def test_the_hsv_round_trip_is_close_and_grey_stays_grey() -> None:
    grid = np.stack(np.meshgrid(*[np.arange(0, 256, 5, dtype=np.uint8)] * 3), axis=-1).reshape(1, -1, 3)
    turned = transforms.photometric(grid, brightness=0, contrast=1, saturation=1, hue=180, contrast_first=True)
    assert np.abs(turned.astype(int) - grid).max() <= 5
    assert np.abs(turned.astype(int) - grid).mean() < 1
    grey = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    got = transforms.photometric(grey, brightness=0, contrast=1, saturation=1.5, hue=17, contrast_first=True)
    np.testing.assert_array_equal(got, grey)


def test_resizing_keeps_labels_aligned_with_the_image() -> None:
    label = (np.arange(64).reshape(8, 8) % 5).astype(np.uint8)
    for size in ((8, 8), (16, 16), (24, 40)):
        np.testing.assert_array_equal(
            transforms.resize_label(transforms.resize_label(label, size=size), size=(8, 8)), label
        )
    half = np.zeros((32, 32, 3), np.uint8)
    half[:, 16:] = 255
    image = transforms.resize_image(half, size=(10, 10))[..., 0]
    np.testing.assert_array_equal(image > 127, transforms.resize_label(half[..., 0], size=(10, 10)) > 127)


def test_a_box_outside_the_map_and_an_unknown_map_are_named() -> None:
    with pytest.raises(DataError, match=r"'semseg'.*inside 3x4"):
        transforms.crop({"semseg": np.zeros((3, 4), np.uint8)}, box=Box(1, 0, 3, 4))
    with pytest.raises(DataError, match="flow"):
        transforms.pad({"flow": np.zeros((3, 4), np.float32)}, size=(5, 5))
