"""Views are pure functions of (seed, key, view), replay to the same bytes and move labels with their image."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from pipeline import transforms
from pipeline.errors import DataError
from pipeline.images.sample import ImageSample
from pipeline.views import Kind, ViewDraw, ViewSpec, apply_view, draw_view

KINDS: tuple[Kind, ...] = get_args(Kind)
SIZE = (48, 64)
sides = st.integers(1, 48)
every_kind = pytest.mark.parametrize("kind", KINDS)


def make_sample(seed: int = 0, *, height: int = 40, width: int = 60) -> ImageSample:
    rng = np.random.default_rng(seed)
    normals = rng.standard_normal((height, width, 3)).astype(np.float32)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    normals[: height // 3] = 0
    depth = rng.uniform(1, 9, (height, width)).astype(np.float32)
    depth[:, : width // 3] = 255
    labels: dict[str, Any] = {
        "semseg": rng.choice(np.array([0, 3, 7, 255], np.uint8), (height, width)),
        "human_parts": rng.integers(0, 3, (height, width), dtype=np.uint8),
        "edge": rng.integers(0, 2, (height, width), dtype=np.uint8),
        "sal": rng.integers(0, 2, (height, width), dtype=np.uint8),
        "normals": normals,
        "depth": depth,
    }
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return ImageSample(key="a/b", image=image, labels=labels, label=4)


def draw(spec: ViewSpec, sample: ImageSample, *, seed: int = 0, view: int = 0) -> ViewDraw:
    return draw_view(spec, seed=seed, key=sample.key, view=view, sample=sample)


def as_bytes(sample: ImageSample) -> dict[str, bytes]:
    return {"image": sample.image.tobytes(), **{name: array.tobytes() for name, array in sample.labels.items()}}


@every_kind
@given(seed=st.integers(0, 99), view=st.integers(0, 9), height=sides, width=st.integers(1, 64))
def test_a_draw_replays_from_its_dict_to_the_same_bytes(
    kind: Kind, seed: int, view: int, height: int, width: int
) -> None:
    spec, sample = ViewSpec(kind=kind, size=SIZE), make_sample(seed, height=height, width=width)
    before = as_bytes(sample)
    first = draw(spec, sample, seed=seed, view=view)
    again = ViewDraw.from_dict(json.loads(json.dumps(first.to_dict())))
    assert again == first
    assert first == draw(spec, sample, seed=seed, view=view)
    seen = apply_view(first, sample)
    assert as_bytes(seen) == as_bytes(apply_view(again, sample))
    assert as_bytes(sample) == before
    assert seen.image.shape == (*SIZE, 3)
    assert seen.image.dtype == np.uint8
    assert (seen.key, seen.label) == (sample.key, sample.label)


@every_kind
@given(seed=st.integers(0, 99), view=st.integers(0, 9), height=sides, width=st.integers(1, 64))
def test_boxes_stay_inside_and_labels_keep_their_values(
    kind: Kind, seed: int, view: int, height: int, width: int
) -> None:
    spec, sample = ViewSpec(kind=kind, size=SIZE), make_sample(seed, height=height, width=width)
    made = draw(spec, sample, seed=seed, view=view)
    padded = kind in ("multitask", "padded")
    valid = transforms.pad_box((made.box_height, made.box_width), outer=SIZE) if padded else transforms.Box(0, 0, *SIZE)
    assert valid.top + valid.height <= SIZE[0]
    assert valid.left + valid.width <= SIZE[1]
    seen = apply_view(made, sample)
    for name, array in seen.labels.items():
        assert array.dtype == sample.labels[name].dtype
        assert array.shape[:2] == SIZE
        if name not in ("normals", "depth"):
            assert set(np.unique(array)) <= {*np.unique(sample.labels[name]).tolist(), 255}
    length = np.linalg.norm(seen.labels["normals"].astype(np.float64), axis=-1)
    assert np.all((length == 0) | (np.abs(length - 1) < 1e-6))
    depth = np.asarray(seen.labels["depth"])
    factor = made.scale if kind == "multitask" else 1.0
    assert np.all((depth == 255) | ((depth >= 0.999 / factor) & (depth <= 9.001 / factor)))
    outside = np.ones(SIZE, bool)
    outside[valid.top : valid.top + valid.height, valid.left : valid.left + valid.width] = False
    assert not seen.image[outside].any()
    assert (seen.labels["semseg"][outside] == 255).all()


@pytest.mark.parametrize("kind", ["random_resized_crop", "multitask"])
def test_a_flip_mirrors_everything_and_negates_normals_x(kind: Kind) -> None:
    sample = make_sample()
    made = replace(draw(ViewSpec(kind=kind, size=32, flip=0.0), sample), recolour=False)
    plain, mirrored = apply_view(made, sample), apply_view(replace(made, flip=True), sample)
    np.testing.assert_array_equal(mirrored.image, plain.image[:, ::-1])
    np.testing.assert_array_equal(mirrored.labels["depth"], plain.labels["depth"][:, ::-1])
    want = plain.labels["normals"][:, ::-1] * np.float32([-1, 1, 1])
    np.testing.assert_array_equal(mirrored.labels["normals"], want)
    assert (want[..., 0] != 0).any()


@pytest.mark.parametrize("kind", ["random_resized_crop", "multitask"])
def test_seed_key_and_view_all_change_the_draw(kind: Kind) -> None:
    spec, sample = ViewSpec(kind=kind, size=32), make_sample()
    draws = {
        draw_view(spec, seed=seed, key=key, view=view, sample=sample)
        for seed in range(4)
        for key in ("a", "b", "a/1")
        for view in range(4)
    }
    assert len(draws) == 48
    assert {made.flip for made in draws} == {True, False}


def test_options_of_colour_and_flip_leave_the_geometry_alone() -> None:
    sample = make_sample()
    boxes = {
        draw(ViewSpec(kind="random_resized_crop", size=32, flip=flip, photometric=photometric), sample).box
        for flip in (0.0, 0.5, 1.0)
        for photometric in (True, False)
    }
    assert len(boxes) == 1


def test_draws_are_frozen_in_time() -> None:
    # A store's view set must be extended by the same rule that began it, so these numbers may never change.
    sample = ImageSample(key="a/b", image=np.zeros((40, 60, 3), np.uint8))
    crops = [draw(ViewSpec(kind="random_resized_crop", size=32), sample, seed=7, view=view) for view in range(3)]
    assert [(*made.box, made.flip) for made in crops] == [
        (9, 13, 31, 32, False),
        (13, 18, 26, 27, False),
        (0, 17, 40, 35, False),
    ]
    views = [draw(ViewSpec(kind="multitask", size=32), sample, seed=7, view=view) for view in range(3)]
    names = ("scale", "top", "left", "flip", "brightness", "contrast", "saturation", "hue", "contrast_first")
    got = [tuple(made.to_dict()[name] for name in names) for made in views]
    want = [
        (1.955245517278, 16, 30, False, -4.903118354895, 1.0, 0.567291348619, 0, False),
        (0.841596104348, 1, 17, False, 0.0, 1.085497031758, 1.0, 0, True),
        (1.675608840816, 0, 60, False, 0.0, 1.202734727632, 0.751328045235, 0, False),
    ]
    for values, frozen in zip(got, want, strict=True):
        assert values == pytest.approx(frozen, abs=1e-9)


def test_another_process_draws_the_same() -> None:
    sample = make_sample()
    code = (
        "import numpy as np\nfrom pipeline.images.sample import ImageSample\nfrom pipeline.views import *\n"
        "s = ImageSample(key='a/b', image=np.zeros((40, 60, 3), np.uint8))\n"
        "d = draw_view(ViewSpec(kind='random_resized_crop', size=32), seed=3, key='a/b', view=1, sample=s)\n"
        "import json; print(json.dumps(d.to_dict()))"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    spec = ViewSpec(kind="random_resized_crop", size=32)
    assert ViewDraw.from_dict(json.loads(out)) == draw(spec, sample, seed=3, view=1)


def test_full_squashes_and_center_keeps_the_shape() -> None:
    sample = make_sample(height=40, width=60)
    full, center = (draw(ViewSpec(kind=kind, size=20), sample) for kind in ("full", "center"))
    assert full.box == (0, 0, 40, 60)
    assert center.box == (0, 10, 40, 40)
    assert draw(ViewSpec(kind="center", size=(20, 40)), sample).box == (5, 0, 30, 60)


def test_a_full_view_of_its_own_size_is_the_image() -> None:
    sample = make_sample()
    seen = apply_view(draw(ViewSpec(kind="full", size=(40, 60)), sample), sample)
    assert as_bytes(seen) == as_bytes(sample)


def test_random_resized_crops_have_the_asked_area_and_shape() -> None:
    sample = ImageSample(key="k", image=np.zeros((300, 400, 3), np.uint8))
    spec = ViewSpec(kind="random_resized_crop", size=32, area=(0.2, 0.5), ratio=(0.5, 2.0))
    draws = [draw(spec, sample, view=view) for view in range(300)]
    share = np.array([made.box_height * made.box_width / 120_000 for made in draws])
    shape = np.array([made.box_width / made.box_height for made in draws])
    assert share.min() > 0.19
    assert share.max() < 0.51
    assert share.mean() == pytest.approx(0.35, abs=0.02)
    assert shape.min() > 0.48
    assert shape.max() < 2.05
    assert np.log(shape).mean() == pytest.approx(0, abs=0.1)


def test_an_image_too_thin_for_the_ratio_falls_back_to_its_centre() -> None:
    sample = ImageSample(key="k", image=np.zeros((4, 100, 3), np.uint8))
    made = draw(ViewSpec(kind="random_resized_crop", size=32, area=(0.9, 1.0)), sample)
    assert made.box == (0, 47, 4, 5)


def test_multitask_draws_again_until_a_crop_shows_more_than_one_class() -> None:
    # Class 1 only in a corner: one crop in ten shows it, ten tries often do, and a spec that accepts any does not look.
    semseg = np.zeros((100, 100), np.uint8)
    semseg[:40, :40] = 1
    sample = ImageSample(key="k", image=np.zeros((100, 100, 3), np.uint8), labels={"semseg": semseg})

    def share_of_balanced(ratio: float) -> float:
        spec = ViewSpec(kind="multitask", size=40, scale=(1.0, 1.0), max_class_ratio=ratio)
        seen = [apply_view(draw(spec, sample, view=view), sample) for view in range(60)]
        return float(np.mean([transforms.is_balanced(view.labels["semseg"], max_ratio=0.75) for view in seen]))

    assert share_of_balanced(0.75) > 2 * share_of_balanced(1.0)


def test_multitask_equals_the_published_steps_in_turn() -> None:
    sample = make_sample()
    for view in range(8):
        made = draw(ViewSpec(kind="multitask", size=SIZE), sample, view=view)
        maps = transforms.scale({"image": sample.image, **sample.labels}, factor=made.scale)
        maps = transforms.crop(maps, box=made.box)
        maps = transforms.flip(maps) if made.flip else maps
        maps["image"] = transforms.photometric(
            maps["image"],
            brightness=made.brightness,
            contrast=made.contrast,
            saturation=made.saturation,
            hue=made.hue,
            contrast_first=made.contrast_first,
        )
        maps = transforms.ignore_empty_parts(transforms.pad(maps, size=SIZE))
        seen = apply_view(made, sample)
        assert as_bytes(seen) == {name: array.tobytes() for name, array in maps.items()}


def test_empty_parts_are_ignored_unless_asked_otherwise() -> None:
    sample = replace(make_sample(), labels={"human_parts": np.zeros((40, 60), np.uint8)})
    for ignore, value in ((True, 255), (False, 0)):
        made = draw(ViewSpec(kind="full", size=16, ignore_empty_parts=ignore), sample)
        assert (apply_view(made, sample).labels["human_parts"] == value).all()


@pytest.mark.parametrize("kind", ["multitask", "padded"])
def test_padding_can_have_the_published_colour(kind: Kind) -> None:
    """There images are normalised and then padded with zeros: ImageNet's mean, here to the nearest grey level."""
    sample = make_sample()
    black, mean = (draw(ViewSpec(kind=kind, size=(64, 128), fill=fill), sample, view=1) for fill in ("black", "mean"))  # type: ignore[arg-type]
    assert ViewDraw.from_dict(mean.to_dict()) == mean != black
    assert set(mean.to_dict()) - set(black.to_dict()) == {"fill"}
    box = transforms.pad_box((mean.box_height, mean.box_width), outer=(64, 128))
    one, other = apply_view(black, sample), apply_view(mean, sample)
    inner = {"image": one.image}, {"image": other.image}
    np.testing.assert_array_equal(*(transforms.crop(maps, box=box)["image"] for maps in inner))
    normalised = transforms.normalize(transforms.crop(inner[0], box=box)["image"])
    published = transforms.pad({"image": normalised}, size=(64, 128))["image"]
    np.testing.assert_allclose(transforms.normalize(other.image), published, atol=0.5 / 255 / 0.224)
    assert not one.image[0].any()
    for task, label in one.labels.items():
        np.testing.assert_array_equal(other.labels[task], label)
    assert "fill" not in ViewSpec(kind=kind, size=32, fill="black").to_json()
    assert ViewSpec(kind=kind, size=32, fill="mean").to_json()["fill"] == "mean"


def test_padded_refuses_an_image_that_does_not_fit() -> None:
    with pytest.raises(DataError, match=r"a/b: expected at most 32x64.*40x60"):
        draw(ViewSpec(kind="padded", size=(32, 64)), make_sample())


def test_a_sample_of_another_size_is_refused() -> None:
    made = draw(ViewSpec(kind="full", size=16), make_sample())
    with pytest.raises(DataError, match=r"a/b: expected an image of 40x60.*41x60"):
        apply_view(made, make_sample(height=41))


@pytest.mark.parametrize(
    "change",
    [
        {"top": 99},
        {"left": -1},
        {"scale": 0.0},
        {"scale": float("nan")},
        {"flip": 1},
        {"height": 0},
        {"kind": "zoom"},
        {"brightness": float("inf")},
        {"box_width": 10**9},
        {"top": "0"},
        {"unknown": 1},
        {"fill": "red"},
    ],
)
def test_a_damaged_draw_is_refused(change: dict[str, Any]) -> None:
    values = draw(ViewSpec(kind="full", size=16), make_sample()).to_dict()
    with pytest.raises(DataError, match="view draw"):
        ViewDraw.from_dict({**values, **change})


def test_a_draw_without_a_field_is_refused_and_named() -> None:
    values = draw(ViewSpec(kind="full", size=16), make_sample()).to_dict()
    del values["scale"]
    with pytest.raises(DataError, match=r"missing fields \['scale'\]"):
        ViewDraw.from_dict(values)


@every_kind
def test_specs_survive_json_and_name_their_arithmetic(kind: Kind) -> None:
    adapter = TypeAdapter(ViewSpec)
    spec = ViewSpec(kind=kind, size=SIZE)
    assert adapter.validate_python(json.loads(json.dumps(asdict(spec)))) == spec
    assert adapter.validate_python({"kind": kind, "size": 32}).size == (32, 32)
    plain = json.loads(json.dumps(spec.to_json()))
    assert plain == spec.to_json()
    assert plain["resampler"]
    assert spec.random is (kind in ("random_resized_crop", "multitask"))


def test_a_default_and_its_value_written_out_are_one_spec() -> None:
    assert ViewSpec(kind="multitask", size=32) == ViewSpec(
        kind="multitask", size=(32, 32), scale=(0.5, 2.0), flip=0.5, max_class_ratio=0.75, photometric=True
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "zoom", "size": 32}, "random_resized_crop"),
        ({"kind": "full", "size": 0}, "greater than or equal to 1"),
        ({"kind": "full", "size": (32,)}, "size"),
        ({"kind": "full", "size": True}, "size"),
        ({"kind": "full", "size": [[224, 224], [384, 384]]}, "for several resolutions give each a view set of its own"),
        ({"kind": "full", "size": [224, 384, 512]}, "for several resolutions"),
        ({"kind": "full", "size": 32, "flip": 0.5}, "'full' does not read 'flip'"),
        ({"kind": "multitask", "size": 32, "area": (0.1, 1)}, "read by random_resized_crop"),
        ({"kind": "random_resized_crop", "size": 32, "area": (1, 0.1)}, "smaller bound first"),
        ({"kind": "random_resized_crop", "size": 32, "area": (0, 1)}, "greater than 0"),
        ({"kind": "random_resized_crop", "size": 32, "area": "ab"}, "area"),
        ({"kind": "random_resized_crop", "size": 32, "area": ["a", 1]}, "area"),
        ({"kind": "full", "size": 32, "fill": "mean"}, "read by multitask, padded"),
        ({"kind": "padded", "size": 32, "fill": "red"}, "fill"),
        ({"kind": "multitask", "size": 32, "flip": 1.5}, "less than or equal to 1"),
        ({"kind": "multitask", "size": 32, "colour": True}, "colour"),
    ],
)
def test_a_bad_spec_says_what_is_wrong(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(ViewSpec).validate_python(values)
