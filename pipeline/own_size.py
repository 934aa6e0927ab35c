"""Predictions and labels at an image's own size, where its view is another.

Legend: B batch, C channels, H W rows and columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from pipeline import transforms
from pipeline.config import DataConfig
from pipeline.tensors import to_tensors
from pipeline.viewsets import cached_source
from sak.grids import resize_map
from store.order import row_samples
from store.viewset import ViewSet

__all__ = ["OwnSize", "Scored"]


class Scored(NamedTuple):
    """Images of one size, ready for metrics.

    Shapes:
        logits: ``(B, C, H, W)`` by task.
        labels: ``(B, 1, H, W)``, or ``(B, 3, H, W)`` for normals.
    """

    rows: Sequence[int]
    logits: Mapping[str, Tensor]
    labels: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class OwnSize:
    """Scales the maps of ``full`` views back to the images that they show, and reads those images' own labels."""

    view_set: ViewSet
    data: DataConfig

    def scored(self, rows: Sequence[int], logits: Mapping[str, Tensor], /) -> Iterator[Scored]:
        """Each row alone, since sizes differ.

        Raises:
            BadImageError: A source's file is gone or damaged; the message names it.
        """
        source = cached_source(self.data.source)
        images = row_samples(self.view_set.spec, rows=list(rows)).image.tolist()
        for place, (row, image) in enumerate(zip(rows, images, strict=True)):
            sample = source.read(image)
            maps = {task: sample.labels[task] for task in logits}
            if self.data.view.ignore_empty_parts:
                maps = transforms.ignore_empty_parts(maps)
            height, width = sample.image.shape[:2]
            resized = {
                task: resize_map(value[place : place + 1].float(), (height, width)) for task, value in logits.items()
            }
            yield Scored([row], resized, to_tensors([replace(sample, labels=maps)]).labels)
