"""Crops of stored maps: what a teacher would say of a drawn view, from its maps of the whole image.

An alternative to storing views: one ``full`` view set serves any number of crops, flips included. How far such maps are
from those of the cropped image is measured in docs/studies/feature_crop.md. Legend: B batch, C channels, H W a map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import Study
from pipeline.errors import DataError
from pipeline.live_views import CroppedViews, LiveViews
from pipeline.sampling import TeacherDraw
from pipeline.targets import Encoded, OnlineTargets, Targets, TargetSource, target_source, teacher_specs
from pipeline.views import ViewDraw
from sak.grids import crop_map
from store.column import Column
from store.viewset import ViewSet

__all__ = ["Boxes", "CroppedTargets", "crop_boxes", "crop_maps", "seen_targets"]

_BOXES = "boxes of the crops"  # beside the teachers in what a batch carries; no teacher's name has a space
_KINDS = ("full", "center", "random_resized_crop")


class Boxes(NamedTuple):
    """Boxes ``(B, 4)`` as fractions of the image, and which of them are mirrored ``(B,)``."""

    boxes_B4: Tensor
    flips_B: Tensor


def crop_boxes(draws: Sequence[ViewDraw], /) -> Boxes:
    """What drawn views show of their images.

    Raises:
        DataError: A view is padded or recoloured, which no crop of a map can follow.
    """
    boxes = []
    for draw in draws:
        if draw.kind not in _KINDS or draw.recolour:
            what = f"{draw.kind!r}{' with photometric' if draw.recolour else ''}"
            raise DataError(f"feature crop: expected a view of {', '.join(_KINDS)}, got {what}; store such views")
        height, width = draw.source_height, draw.source_width
        boxes.append([draw.top / height, draw.left / width, draw.box_height / height, draw.box_width / width])
    return Boxes(torch.tensor(boxes).reshape(-1, 4), torch.tensor([draw.flip for draw in draws], dtype=torch.bool))


def crop_maps(maps: Sequence[Tensor], boxes: Boxes, /) -> list[Tensor]:
    """A teacher's maps of drawn views, approximated by its maps of the same images' ``full`` views.

    Shapes: for each level ``(B, C, H, W)`` → ``(B, C, H, W)``.
    """
    return [crop_map(feat, boxes.boxes_B4, (feat.shape[-2], feat.shape[-1]), flips_B=boxes.flips_B) for feat in maps]


class CroppedTargets:
    """Targets of cropped views, cut from what is stored of the whole ones."""

    def __init__(self, stored: TargetSource, views: CroppedViews) -> None:
        self._stored, self._views = stored, views

    @property
    def widths(self) -> Mapping[str, tuple[int, ...]]:
        """Teacher to the channels of its levels."""
        return self._stored.widths

    @property
    def columns(self) -> tuple[Column, ...]:
        """Those of the stored views."""
        return self._stored.columns

    def read(self, rows: NDArray[np.int64], /, *, step: int | None = None) -> Encoded:
        """Stored integers of the rows' whole views, and the boxes to cut."""
        boxes = crop_boxes(self._views.draws(rows))
        return {**self._stored.read(self._views.stored_rows(rows), step=step), _BOXES: [boxes._asdict()]}

    def prefetch(self, parts: Mapping[int, Sequence[int]], /) -> None:
        """As the stored views'."""
        self._stored.prefetch({step: self._views.stored_parts(found) for step, found in parts.items()})

    def targets(self, encoded: Encoded, pixels_BCHW: Tensor, /) -> Targets:
        """Decode whole maps on the device, and cut the boxes from them there."""
        (found,) = encoded[_BOXES]
        boxes = Boxes(found["boxes_B4"], found["flips_B"])
        whole = {name: levels for name, levels in encoded.items() if name != _BOXES}
        return {name: crop_maps(maps, boxes) for name, maps in self._stored.targets(whole, pixels_BCHW).items()}


def seen_targets(
    study: Study,
    stored: ViewSet | None,
    views: ViewSet | LiveViews,
    /,
    *,
    device: torch.device,
    draw: TeacherDraw | None = None,
) -> TargetSource:
    """Targets of what a student sees in stage 1: of live teachers, stored ones, or such cut as the views are.

    Args:
        draw: The teachers of each step of training; None for all.

    Raises:
        MissingColumnError: As ``target_source``.
    """
    assert study.distill is not None
    if stored is None or study.distill.targets == "online":
        return OnlineTargets(teacher_specs(study), device=device, draw=draw)
    targets = target_source(study, stored, kind=study.distill.targets, device=device, draw=draw)
    return CroppedTargets(targets, views) if isinstance(views, CroppedViews) else targets
