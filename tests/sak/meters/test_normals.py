"""Angles against numpy over all pixels at once; the median is within half a bin."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sak.meters.normals import BIN_DEGREES, UNDER
from sak.metrics import TaskMetrics


def scored(pred: Tensor, label: Tensor) -> dict[str, float]:
    metrics = TaskMetrics("nyud", ["normals"])
    metrics.update({"normals": pred}, {"normals": label})
    return metrics.compute()["normals"]


@settings(max_examples=25)
@given(st.integers(1, 3), st.integers(1, 6), st.integers(0, 99))
def test_all_pixels_at_once_say_the_same(images: int, side: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    label = draw.standard_normal((images, 3, side, 5))
    label /= np.linalg.norm(label, axis=1, keepdims=True)
    pred = label + 0.5 * draw.standard_normal(label.shape)
    label[draw.random((images, side, 5)).repeat(3).reshape(images, side, 5, 3).transpose(0, 3, 1, 2) < 0.3] = 0
    label[0, :, 0, 0] = (0, 0, 1)  # one pixel at least
    pred_, label_ = (torch.from_numpy(value).float() for value in (pred, label))
    found = scored(pred_, label_)
    unit, true = (value.double().permute(0, 2, 3, 1).reshape(-1, 3).numpy() for value in (pred_, label_))
    kept = (true != 0).any(1)
    unit = unit[kept] / np.linalg.norm(unit[kept], axis=1, keepdims=True)
    degrees = np.degrees(np.arccos(np.clip((unit * true[kept]).sum(1), -1, 1)))
    assert found["mErr"] == pytest.approx(degrees.mean(), rel=1e-9)
    assert abs(found["median"] - np.median(degrees)) <= BIN_DEGREES / 2 + 1e-9
    for limit in UNDER:
        assert found[f"under{limit:g}"] == pytest.approx(100 * (degrees < limit).mean())


def test_a_network_that_has_diverged_is_not_taken_for_good() -> None:
    label = torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    found = scored(torch.full((1, 3, 4, 4), torch.nan), label)
    assert np.isnan(found["mErr"])
    assert found["median"] > 179
    assert found["under30"] == 0


def test_the_opposite_direction_is_180_degrees() -> None:
    label = torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1)
    found = scored(-label, label)
    assert found["mErr"] == 180
    assert abs(found["median"] - 180) <= BIN_DEGREES / 2
