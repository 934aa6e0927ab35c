"""Crops of maps follow crops of images: the same area, at the same place, mirrored the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from pipeline.errors import DataError
from pipeline.feature_crop import crop_boxes, crop_maps
from pipeline.images.sample import ImageSample
from pipeline.views import ViewDraw, ViewSpec, apply_view, draw_view
from sak.errors import SakError
from sak.grids import crop_map, resize_map

HEIGHT, WIDTH = 96, 128


def ramp(*, height: int, width: int) -> Tensor:
    """Maps of two channels that hold the place of each cell's centre in the image, from 0 to 1."""
    rows = (torch.arange(height) + 0.5) / height
    columns = (torch.arange(width) + 0.5) / width
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"))[None]


def draw_of(kind: str, view: int, *, flip: float | None = None) -> ViewDraw:
    spec = ViewSpec(kind=kind, size=32, flip=flip)  # type: ignore[arg-type]
    sample = ImageSample(key="k", image=np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    return draw_view(spec, seed=0, key="k", view=view, sample=sample)


@settings(max_examples=30)
@given(view=st.integers(0, 10**6))
def test_a_crop_of_a_linear_map_is_exact_away_from_the_border(view: int) -> None:
    draw = draw_of("random_resized_crop", view)
    (crop,) = crop_maps([ramp(height=24, width=24)], crop_boxes([draw]))
    box = draw.box
    place = ramp(height=24, width=24)
    place = place.flip(-1) if draw.flip else place
    want = torch.stack(
        [
            (box.top + place[0, 0] * box.height) / HEIGHT,
            (box.left + place[0, 1] * box.width) / WIDTH,
        ]
    )
    edge = 0.5 / 24  # the centres of the outermost cells, beyond which their values go on
    torch.testing.assert_close(crop[0], want.clamp(edge, 1 - edge), atol=1e-5, rtol=0)


@pytest.mark.parametrize("flip", [False, True])
def test_a_crop_of_the_pixels_is_the_view_but_for_antialiasing(flip: bool) -> None:
    rng = np.random.default_rng(0)
    small = torch.from_numpy(rng.uniform(0, 255, (1, 3, 6, 8)).astype(np.float32))
    image = resize_map(small, (HEIGHT, WIDTH)).round().to(torch.uint8)
    sample = ImageSample(key="k", image=np.ascontiguousarray(image[0].permute(1, 2, 0).numpy()))
    draw = replace(draw_of("random_resized_crop", 3, flip=0.0), flip=flip)
    seen = torch.from_numpy(apply_view(draw, sample).image).permute(2, 0, 1).float()
    found = crop_boxes([draw])
    crop = crop_map(image.float(), found.boxes_B4, (32, 32), flips_B=found.flips_B)[0]
    assert (crop - seen).abs().mean() < 2
    assert (crop - seen.flip(-1)).abs().mean() > 5


def test_the_whole_box_gives_the_map_back_and_a_flip_mirrors_it() -> None:
    feat = torch.randn(3, 5, 7, 9)
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(3, 4)
    torch.testing.assert_close(crop_map(feat, boxes, (7, 9)), feat)
    mirrored = crop_map(feat, boxes, (7, 9), flips_B=torch.tensor([True, False, True]))
    torch.testing.assert_close(mirrored, torch.stack([feat[0].flip(-1), feat[1], feat[2].flip(-1)]))


def test_a_box_of_whole_cells_is_those_cells_and_enlarging_is_interpolate() -> None:
    feat = torch.randn(1, 2, 8, 8)
    boxes = torch.tensor([[0.25, 0.5, 0.5, 0.5]])
    torch.testing.assert_close(crop_map(feat, boxes, (4, 4)), feat[..., 2:6, 4:8])
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    want = functional.interpolate(feat, size=(20, 12), mode="bilinear", align_corners=False)
    torch.testing.assert_close(crop_map(feat, whole, (20, 12)), want)


def test_center_views_are_followed_and_padded_or_recoloured_ones_refused() -> None:
    assert crop_boxes([draw_of("center", 0)]).boxes_B4.tolist() == [[0.0, 0.125, 1.0, 0.75]]
    for draw, words in (
        (draw_of("multitask", 0), "got 'multitask' with photometric; store such views"),
        (replace(draw_of("random_resized_crop", 0), recolour=True), "with photometric"),
    ):
        with pytest.raises(DataError, match=words):
            crop_boxes([draw])


@pytest.mark.parametrize("box", [[0.0, 0.0, 1.1, 1.0], [-0.1, 0.0, 0.5, 0.5], [0.0, 0.0, 0.0, 1.0], [float("nan")] * 4])
def test_a_box_outside_the_image_is_refused(box: list[float]) -> None:
    with pytest.raises(SakError, match="expected 1 boxes of top, left, height, width within 0 to 1"):
        crop_map(torch.zeros(1, 1, 4, 4), torch.tensor([box]), (4, 4))
    with pytest.raises(SakError, match=r"got \(2, 4\)"):
        crop_map(torch.zeros(1, 1, 4, 4), torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 2), (4, 4))
