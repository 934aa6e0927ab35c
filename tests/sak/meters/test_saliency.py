"""Saliency by hand: pooled precision and recall, images' mean IoU, images without a salient pixel or a label."""

from __future__ import annotations

import pytest
import torch

from sak.metrics import TaskMetrics


def scored(*images: tuple[list[float], list[float]]) -> dict[str, float]:
    """Of probabilities and labels, a row of pixels each."""
    metrics = TaskMetrics("pascalcontext", ["sal"])
    for probability, label in images:
        logit = torch.logit(torch.tensor(probability))
        logits = torch.stack([torch.zeros_like(logit), logit]).view(1, 2, 1, -1)
        metrics.update({"sal": logits}, {"sal": torch.tensor(label).view(1, 1, 1, -1)})
    return metrics.compute()["sal"]


def test_counts_of_images_are_pooled_and_ious_averaged() -> None:
    found = scored(([0.99, 0.99, 0.01, 0.01], [1, 0, 1, 0]), ([0.99, 0.01], [1, 0]))
    precision = recall = 2 / 3
    assert found["maxF"] == pytest.approx(100 * 1.3 * precision * recall / (0.3 * precision + recall))
    assert found["mIoU"] == pytest.approx(100 * (1 / 3 + 1) / 2)


def test_an_image_without_a_label_counts_nothing() -> None:
    one = ([0.99, 0.99, 0.01], [1, 0, 0])
    assert scored(one, ([0.99, 0.01, 0.5], [255, 255, 255])) == scored(one)


def test_an_image_of_background_is_right_or_wrong() -> None:
    assert scored(([0.01], [0]))["mIoU"] == 100
    assert scored(([0.99], [0]))["mIoU"] == 0
