"""Decoded samples as a batch of tensors; apart from ``pipeline.pixels`` so that extraction workers load no torch.

Legend: B batch, H W rows and columns, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from pipeline.errors import DataError
from pipeline.images.sample import ImageSample
from pipeline.transforms import Array

__all__ = ["TensorBatch", "to_tensors"]


class TensorBatch(NamedTuple):
    """Pixels ``(B, 3, H, W)`` uint8 and, per task, labels ``(B, 1, H, W)`` or ``(B, 3, H, W)`` float32."""

    pixels: torch.Tensor
    labels: dict[str, torch.Tensor]


def to_tensors(samples: Sequence[ImageSample]) -> TensorBatch:
    """Stack views of one size and one set of tasks; label values stay as they are, invalid codes included.

    Raises:
        DataError: No samples, or samples of several sizes or sets of tasks.
    """
    if not samples:
        raise DataError("expected at least one sample to stack, got none; give a batch of one or more")
    first = samples[0]
    for sample in samples[1:]:
        if sample.image.shape != first.image.shape or set(sample.labels) != set(first.labels):
            raise DataError(
                f"{sample.key}: expected {first.image.shape} with labels {sorted(first.labels)} as {first.key}, got "
                f"{sample.image.shape} with {sorted(sample.labels)}; use one view set in a batch"
            )
    pixels_BHWC = torch.from_numpy(np.stack([sample.image for sample in samples]))
    labels = {task: _stack([sample.labels[task] for sample in samples]) for task in first.labels}
    return TensorBatch(pixels_BHWC.permute(0, 3, 1, 2).contiguous(), labels)


def _stack(arrays: Sequence[Array]) -> torch.Tensor:
    label = torch.from_numpy(np.stack(arrays).astype(np.float32, copy=False))
    return label.unsqueeze(1) if label.ndim == 3 else label.permute(0, 3, 1, 2).contiguous()
