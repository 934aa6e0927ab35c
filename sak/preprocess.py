"""From the pixels of a view to what a network expects: resize, normalise, pad.

Legend: B batch, C colour channels, H W image rows and columns.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from sak.errors import SakError

__all__ = [
    "Prepared",
    "crop_to_content",
    "fit_size",
    "long_side_size",
    "normalise",
    "pad_to",
    "resize_image",
]


class Prepared(NamedTuple):
    """A network's input and how much of it, from the top left corner, holds image.

    Shapes: ``image_BCHW`` ``(B, 3, H, W)`` float32; ``content`` is rows and columns, at most ``(H, W)``.
    """

    image_BCHW: Tensor
    content: tuple[int, int]


def normalise(pixels_BCHW: Tensor, /, *, mean: Tensor, std: Tensor) -> Tensor:
    """Scale uint8 pixels to 0..1, subtract the mean and divide by the standard deviation, per colour channel.

    Shapes: ``(B, 3, H, W)`` uint8 → float32; ``mean`` and ``std`` ``(3,)``.

    Raises:
        SakError: The pixels have another shape or type.
    """
    if pixels_BCHW.ndim != 4 or pixels_BCHW.shape[1] != 3 or pixels_BCHW.dtype != torch.uint8:
        raise SakError(
            f"pixels: expected uint8 (B, 3, H, W), got {pixels_BCHW.dtype} {tuple(pixels_BCHW.shape)};"
            " give the view's pixels as they are, channels first"
        )
    return (pixels_BCHW.float() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)


def resize_image(image_BCHW: Tensor, size: tuple[int, int], /, *, antialias: bool = True) -> Tensor:
    """Resize bicubically; the same tensor when the size is right already.

    Antialiasing is for shrinking only: torch's antialiased kernel is another cubic, and enlarging as published uses
    the plain one.

    Shapes: ``(B, C, H, W)`` → ``(B, C, *size)``.
    """
    rows, columns = image_BCHW.shape[-2:]
    if (rows, columns) == size:
        return image_BCHW
    shrinks = size[0] < rows or size[1] < columns
    return functional.interpolate(
        image_BCHW, size=size, mode="bicubic", align_corners=False, antialias=antialias and shrinks
    )


def long_side_size(size: tuple[int, int], side: int, /) -> tuple[int, int]:
    """Rows and columns after the longer one became ``side``, rounded half up as SAM does."""
    scale = side / max(size)
    rows, columns = (max(1, int(length * scale + 0.5)) for length in size)
    return rows, columns


def fit_size(size: tuple[int, int], unit: int, /) -> tuple[int, int]:
    """The largest size in multiples of ``unit`` within ``size``, at least one unit a side."""
    rows, columns = (max(unit, length // unit * unit) for length in size)
    return rows, columns


def pad_to(image_BCHW: Tensor, size: tuple[int, int], /) -> Tensor:
    """Zeros to the right and at the bottom.

    Shapes: ``(B, C, H, W)`` → ``(B, C, *size)``.

    Raises:
        SakError: The image is larger than ``size``.
    """
    rows, columns = image_BCHW.shape[-2:]
    if rows > size[0] or columns > size[1]:
        raise SakError(f"padding: expected an image within {size}, got {(rows, columns)}; resize it first")
    return functional.pad(image_BCHW, (0, size[1] - columns, 0, size[0] - rows))


def crop_to_content(feat_BCHW: Tensor, /, *, content: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Drop the cells of a map that saw only padding.

    A cell in which image and padding meet stays when at least half of it is image, which keeps the map's extent within
    half a cell of the image's.

    Args:
        content: Rows and columns of the input that hold image.
        size: Rows and columns of the whole input.

    Shapes: ``(B, C, h, w)`` → ``(B, C, h', w')`` with ``h' <= h`` and ``w' <= w``.
    """
    rows, columns = (
        max(1, int(cells * part / whole + 0.5))
        for cells, part, whole in zip(feat_BCHW.shape[-2:], content, size, strict=True)
    )
    return feat_BCHW[..., :rows, :columns]
