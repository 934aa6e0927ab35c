"""From a view back to its image: predictions of a view at the image's own place, size and direction.

Legend: C channels, H W rows and columns of a view, h w those of the image or of the part that the view shows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.transforms import Array, Box, flip, pad_box, resize_label
from pipeline.views import FULL_SIZE_KINDS, ViewDraw
from sak.dense.registry import LABELS
from sak.grids import resize_map

__all__ = ["Frame", "frame_of", "logits_in_image", "map_in_image", "on_canvas"]


class Frame(NamedTuple):
    """Where a view lies in its image.

    Attributes:
        inside: The view without its padding.
        box: What of the image it shows, in the image's own pixels.
        size: Height and width of the image.
        flip: Whether the view is mirrored.
        scale: Factor by which the image was scaled for the view.
    """

    inside: Box
    box: Box
    size: tuple[int, int]
    flip: bool
    scale: float


def frame_of(draw: ViewDraw, /) -> Frame:
    """Where a drawn view lies; to the pixel where the image was not scaled, else to the next larger box."""
    full_size = draw.kind in FULL_SIZE_KINDS
    size, view = (draw.source_height, draw.source_width), (draw.height, draw.width)
    inside = pad_box((draw.box_height, draw.box_width), outer=view) if full_size else Box(0, 0, *view)
    scale = draw.scale if full_size else 1.0
    top, bottom = _span(draw.top, draw.box_height, scale=scale, most=size[0])
    left, right = _span(draw.left, draw.box_width, scale=scale, most=size[1])
    return Frame(inside, Box(top, left, bottom - top, right - left), size, draw.flip, scale)


def _span(start: int, length: int, *, scale: float, most: int) -> tuple[int, int]:
    first = min(int(start / scale), most - 1)
    return first, max(first + 1, min(-int(-(start + length) // scale), most))


def logits_in_image(task: str, logits_CHW: Tensor, /, *, frame: Frame) -> Tensor:
    """A task's logits of what a view shows, at the image's own resolution.

    Shapes: ``(C, H, W)`` → ``(C, h, w)`` of ``frame.box``.
    """
    top, left, height, width = frame.inside
    found_CHW = logits_CHW.float()[:, top : top + height, left : left + width]
    if frame.flip:
        found_CHW = found_CHW.flip(-1)
        if LABELS[task].mirrored:
            found_CHW = torch.cat([-found_CHW[:1], found_CHW[1:]])
    found_CHW = found_CHW * frame.scale ** -LABELS[task].zoom
    return resize_map(found_CHW[None], (frame.box.height, frame.box.width))[0]


def map_in_image(name: str, array: Array, /, *, frame: Frame, fill: float) -> Array:
    """An image or label of a view (``(H, W)`` or ``(H, W, C)``) where it was in the image, by the nearest pixel."""
    top, left, height, width = frame.inside
    found = {name: array[top : top + height, left : left + width]}
    (moved,) = (flip(found) if frame.flip else found).values()
    zoom = LABELS[name].zoom if name in LABELS else 0
    if zoom and frame.scale != 1.0:
        moved = np.where(moved == fill, moved, moved * moved.dtype.type(frame.scale**-zoom))
    return on_canvas(resize_label(moved, size=(frame.box.height, frame.box.width)), frame=frame, fill=fill)


def on_canvas(array: Array, /, *, frame: Frame, fill: float) -> Array:
    """A map of ``frame.box`` as one of the whole image, with ``fill`` where the view shows nothing."""
    if array.shape[:2] == frame.size:
        return array
    top, left, height, width = frame.box
    canvas = np.full((*frame.size, *array.shape[2:]), fill, dtype=array.dtype)
    canvas[top : top + height, left : left + width] = array
    return canvas
