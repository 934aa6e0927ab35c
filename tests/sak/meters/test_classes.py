"""IoU of each class by sets of pixels, and the mean as published or over the classes that occur."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sak.metrics import ABSENT, TaskMetrics
from sak.tasks import IGNORE, dataset_spec

CLASSES = dataset_spec("pascalcontext").tasks["human_parts"].classes
LABEL = st.sampled_from([*range(len(CLASSES)), IGNORE])


@settings(max_examples=30)
@given(st.lists(st.tuples(LABEL, st.integers(0, len(CLASSES) - 1)), min_size=1, max_size=12))
def test_every_class_has_the_iou_of_its_pixels(pixels: list[tuple[int, int]]) -> None:
    true, pred = (np.array(values) for values in zip(*pixels, strict=True))
    kept = true != IGNORE
    wanted = {}
    for index, name in enumerate(CLASSES):
        either = ((true == index) | (pred == index)) & kept
        both = (true == index) & (pred == index)
        wanted[name] = 100 * both.sum() / either.sum() if either.any() else math.nan
    for absent in ABSENT:
        metrics = TaskMetrics("pascalcontext", ["human_parts"], absent=absent)
        logits = torch.nn.functional.one_hot(torch.from_numpy(pred), len(CLASSES)).T.reshape(1, len(CLASSES), 1, -1)
        metrics.update({"human_parts": logits}, {"human_parts": torch.from_numpy(true).view(1, 1, 1, -1)})
        found = metrics.compute()["human_parts"]
        assert {name: found[f"IoU/{name}"] for name in CLASSES} == pytest.approx(wanted, nan_ok=True)
        if not kept.any():
            assert math.isnan(found["mIoU"])
        elif absent == "zero":
            assert found["mIoU"] == pytest.approx(np.nansum([*wanted.values()]) / len(CLASSES))
        else:
            assert found["mIoU"] == pytest.approx(np.nanmean([*wanted.values()]))
