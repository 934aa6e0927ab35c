"""Depth errors against their definitions, and what a depth of zero or less is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sak.meters.depth import DEPTH_RANGE
from sak.metrics import TaskMetrics
from sak.tasks import DEPTH_INVALID


def scored(pred: list[float], label: list[float]) -> dict[str, float]:
    metrics = TaskMetrics("nyud", ["depth"])
    shape = (1, 1, 1, len(pred))
    metrics.update({"depth": torch.tensor(pred).view(shape)}, {"depth": torch.tensor(label).view(shape)})
    return metrics.compute()["depth"]


METRES = st.floats(0.25, 90, width=32)


@settings(max_examples=40)
@given(st.lists(st.tuples(st.floats(-1, 90, width=32), METRES | st.just(DEPTH_INVALID)), min_size=1, max_size=30))
def test_they_are_their_definitions(pixels: list[tuple[float, float]]) -> None:
    pixels = [*pixels, (2.0, 1.0)]
    found = scored(*map(list, zip(*pixels, strict=True)))
    pred, true = (np.array(values, dtype=np.float64) for values in zip(*pixels, strict=True))
    kept = (true > DEPTH_RANGE[0]) & (true < DEPTH_RANGE[1])
    pred, true = pred[kept].clip(0), true[kept]
    assert found["RMSE"] == pytest.approx(np.sqrt(((pred - true) ** 2).mean()))
    assert found["rel"] == pytest.approx((np.abs(pred - true) / true).mean())
    with np.errstate(divide="ignore"):
        factor = np.maximum(pred / true, true / pred)
    for power in (1, 2, 3):
        assert found[f"delta{power}"] == pytest.approx(100 * (factor < 1.25**power).mean())


def test_no_depth_is_within_no_factor() -> None:
    assert scored([0.0, -3.0], [1.0, 1.0]) == {"RMSE": 1.0, "rel": 1.0, "delta1": 0.0, "delta2": 0.0, "delta3": 0.0}
    assert scored([4.0], [4.0]) == {"RMSE": 0.0, "rel": 0.0, "delta1": 100.0, "delta2": 100.0, "delta3": 100.0}
