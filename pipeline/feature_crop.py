"""Crops of stored maps: what a teacher would say of a drawn view, from its maps of the whole image.

An alternative to storing views: one ``full`` view set serves any number of crops, flips included. How far such maps are
from those of the cropped image is measured in docs/studies/feature_crop.md. Legend: B batch, C channels, H W a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.errors import DataError
from pipeline.views import ViewDraw
from sak.grids import crop_map

__all__ = ["Boxes", "crop_boxes", "crop_maps"]

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


def crop_maps(maps: Sequence[Tensor], draws: Sequence[ViewDraw], /) -> list[Tensor]:
    """A teacher's maps of drawn views, approximated by its maps of the same images' ``full`` views.

    Shapes: for each level ``(B, C, H, W)`` → ``(B, C, H, W)``.

    Raises:
        DataError: As ``crop_boxes``.
    """
    found = crop_boxes(draws)
    return [crop_map(feat, found.boxes_B4, (feat.shape[-2], feat.shape[-1]), flips_B=found.flips_B) for feat in maps]
