"""Pictures inside the page: small PNGs as data URIs."""

from __future__ import annotations

import base64
import io
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.report.data import ReportError

__all__ = ["Picture", "picture"]

LONGEST = 256  # stored pixels of the longer side: twice what is shown, for sharp screens


class Picture(NamedTuple):
    """What an ``<img>`` needs; ``crisp`` asks for hard pixel edges where a small map is enlarged."""

    uri: str
    alt: str
    width: int
    height: int
    crisp: bool


def picture(pixels: NDArray[np.uint8], *, alt: str, width: int, hard: bool = False) -> Picture:
    """Encode pixels, reduced to 256 on the longer side, to be shown ``width`` CSS pixels wide.

    Shapes:
        pixels: ``(H, W, 3)`` uint8. ``hard`` reduces by nearest neighbour, which class colours need.

    Raises:
        ReportError: Not uint8 RGB.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise ReportError(f"picture {alt!r}: expected (H, W, 3) uint8, got {pixels.shape} {pixels.dtype}")
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if max(image.size) > LONGEST:
        scale = LONGEST / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.NEAREST if hard else Image.Resampling.BOX)
    colours = image.getcolors(256)
    if colours is not None:
        # A palette of the colours that occur is exact and several times smaller than RGB.
        image = _indexed(np.asarray(image))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    height = max(1, round(width * pixels.shape[0] / pixels.shape[1]))
    return Picture(uri, alt, width, height, pixels.shape[1] <= width)


def _indexed(pixels: NDArray[np.uint8]) -> Image.Image:
    """An exact palette image of at most 256 colours."""
    colours, index = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
    image = Image.fromarray(index.reshape(pixels.shape[:2]).astype(np.uint8), mode="L")
    image.putpalette(colours.tobytes())
    return image
