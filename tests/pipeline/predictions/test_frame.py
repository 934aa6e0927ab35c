from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.images.sample import ImageSample
from pipeline.predictions.frame import frame_of, logits_in_image, map_in_image, on_canvas
from pipeline.views import ViewDraw, ViewSpec, apply_view, draw_view

KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "center": {},
    "padded": {"size": 48},
    "random_resized_crop": {"flip": 1.0},
    "multitask": {"flip": 0.5, "photometric": False},
}


def sample(size: tuple[int, int]) -> ImageSample:
    """Labels that tell where they are: row, column and depth of each pixel."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    labels = {"semseg": rows.astype(np.uint8), "edge": columns.astype(np.uint8)}
    normals = np.stack([columns + 1.0, rows + 1.0, np.ones(size)], axis=-1).astype(np.float32)
    depth = (1 + rows / 10).astype(np.float32)
    image = np.stack([rows, columns, rows], axis=-1).astype(np.uint8)
    return ImageSample(key="x", image=image, labels=labels | {"normals": normals, "depth": depth})


def drawn(kind: str, size: tuple[int, int], seed: int) -> tuple[ViewDraw, ImageSample]:
    whole = sample(size)
    spec = ViewSpec(**({"kind": kind, "size": 24, "ignore_empty_parts": False} | KINDS[kind]))
    draw = draw_view(spec, seed=seed, key="x", view=0, sample=whole)
    return draw, apply_view(draw, whole)


@settings(max_examples=40)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    size=st.tuples(st.integers(12, 40), st.integers(12, 40)),
    seed=st.integers(0, 99),
)
def test_every_pixel_goes_back_to_where_it_was(kind: str, size: tuple[int, int], seed: int) -> None:
    """To within the pixels of the view; what the view does not show is filled."""
    draw, view = drawn(kind, size, seed)
    frame, whole = frame_of(draw), sample(size)
    assert frame.size == size
    ratio = max(1.0, frame.box.height / frame.inside.height, frame.box.width / frame.inside.width)
    slack = 1 + 1.5 * ratio  # the published labels are taken from under a pixel's corner, half a pixel away
    for name in ("semseg", "edge", "depth", "normals"):
        found = map_in_image(name, view.labels[name], frame=frame, fill=255)
        assert found.shape == whole.labels[name].shape
        shown = np.zeros(size, dtype=bool)
        top, left, height, width = frame.box
        shown[top : top + height, left : left + width] = True
        assert (found[~shown] == 255).all()
        error = np.abs(found.astype(np.float64) - whole.labels[name])[shown].max()
        assert error <= (slack / 10 if name == "depth" else slack) + 1e-4, (name, error, slack)


def test_unscaled_views_come_back_to_the_bit() -> None:
    draw, view = drawn("padded", (30, 41), 0)
    found = map_in_image("image", view.image, frame=frame_of(draw), fill=0)
    np.testing.assert_array_equal(found, sample((30, 41)).image)


@pytest.mark.parametrize("kind", ["padded", "multitask"])
def test_logits_go_the_way_of_labels(kind: str) -> None:
    draw, view = drawn(kind, (30, 30), 1)
    draw = dataclasses.replace(draw, flip=True)
    frame = frame_of(draw)
    for name in ("depth", "normals"):
        array = view.labels[name].reshape(*view.labels[name].shape[:2], -1)
        logits_CHW = torch.from_numpy(array).permute(2, 0, 1)
        found = logits_in_image(name, logits_CHW, frame=frame).permute(1, 2, 0).numpy()
        wanted = map_in_image(name, view.labels[name], frame=frame, fill=0)
        if kind == "padded":  # not resized, hence the same values
            np.testing.assert_allclose(on_canvas(found, frame=frame, fill=0).reshape(wanted.shape), wanted, rtol=1e-6)
        top, left, height, width = frame.box
        assert found.shape[:2] == (height, width)
        inner = wanted.reshape(*wanted.shape[:2], -1)[top + 2 : top + height - 2, left + 2 : left + width - 2]
        assert np.abs(found[2:-2, 2:-2] - inner).max() < (0.5 if name == "depth" else 3)
