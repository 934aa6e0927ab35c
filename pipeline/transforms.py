"""Label-aware transforms of the published recipe, as pure functions on an image and its label maps.

Most functions take ``Maps``: ``"image"`` and task names to arrays ``(H, W)`` or ``(H, W, C)``, and return a new dict;
inputs are never written to. Nothing here is random: the draws live in ``pipeline.views``. Pixels come from float64 or
integer arithmetic without transcendental functions, so that a stored draw gives the same ones on every platform.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import DataError
from sak.dense.registry import LABELS
from sak.dense.spec import LabelSpec

__all__ = [
    "IGNORE",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Array",
    "Box",
    "Fill",
    "Maps",
    "crop",
    "flip",
    "ignore_empty_parts",
    "ignore_regions",
    "is_balanced",
    "normalize",
    "pad",
    "pad_box",
    "photometric",
    "resize_image",
    "resize_label",
    "scale",
    "scale_label",
    "scaled_size",
]

Array: TypeAlias = NDArray[Any]
Maps: TypeAlias = Mapping[str, Array]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IGNORE = 255
"""Ignored class, and the code of an invalid depth."""

Fill: TypeAlias = Literal["black", "mean"]
"""Colour of padding: ``mean`` is as published, whose images are padded with zeros after they are normalised."""
_COLOURS: dict[str, tuple[int, int, int]] = {"black": (0, 0, 0), "mean": (124, 116, 104)}  # the nearest grey levels

_FILL: dict[str, float] = {name: label.invalid for name, label in LABELS.items()}


class Box(NamedTuple):
    """A rectangle in whole pixels."""

    top: int
    left: int
    height: int
    width: int


def scaled_size(size: tuple[int, int], *, factor: float) -> tuple[int, int]:
    """Height and width after scaling: rounded down as published, but never zero."""
    return max(int(size[0] * factor), 1), max(int(size[1] * factor), 1)


def scale(maps: Maps, *, factor: float, window: Box | None = None) -> dict[str, Array]:
    """Scale image (bilinear, no antialiasing) and labels (nearest); depth is divided by the factor.

    An image twice as large is one seen from half the distance, hence the division; the invalid code stays what it is.
    Disparity is multiplied for the same reason.

    Args:
        factor: Ratio of the new to the old side lengths.
        window: Compute only this part of the scaled maps; equal to cropping afterwards, and cheaper.

    Source:
        Published ``RandomScaling``; floats are returned as float32, and uint8 images rounded to the nearest grey level
        where the published code truncates.
    """
    source = maps["image"].shape[:2]
    target = scaled_size((source[0], source[1]), factor=factor)
    box = Box(0, 0, *target) if window is None else window
    if factor == 1.0:
        return crop(maps, box=box)
    out: dict[str, Array] = {}
    for name, array in maps.items():
        if name == "image":
            out[name] = _bilinear(array, size=target, box=box)
            continue
        picked = scale_label(array, size=target, window=box)
        out[name] = _zoomed(picked, label=LABELS[name], factor=factor) if name in LABELS else picked
    return out


def _zoomed(values: Array, *, label: LabelSpec, factor: float) -> Array:
    """What scaling an image does to the values of its labels."""
    if not label.zoom:
        return values
    by = values.dtype.type(factor)
    return np.where(values == label.invalid, values, values / by if label.zoom < 0 else values * by)


def scale_label(label: Array, *, size: tuple[int, int], window: Box | None = None) -> Array:
    """Nearest neighbour as published: the source pixel under the new pixel's top left corner, not under its centre.

    Args:
        window: As in ``scale``.
    """
    box = Box(0, 0, *size) if window is None else window
    rows = _corner_index(label.shape[0], size[0])[box.top : box.top + box.height]
    columns = _corner_index(label.shape[1], size[1])[box.left : box.left + box.width]
    return label[rows][:, columns]


def crop(maps: Maps, *, box: Box) -> dict[str, Array]:
    """Copy of one rectangle of every map.

    Raises:
        DataError: The box leaves a map.
    """
    return {name: _cut(array, box=box, name=name) for name, array in maps.items()}


def is_balanced(semseg: Array, *, max_ratio: float) -> bool:
    """Whether a crop shows at least two classes, none of them over more than ``max_ratio`` of its labelled pixels."""
    counts = np.bincount(semseg.reshape(-1).astype(np.uint8), minlength=IGNORE + 1)[:IGNORE]
    counts = counts[counts > 0]
    return len(counts) > 1 and bool(counts.max() / counts.sum() < max_ratio)


def flip(maps: Maps) -> dict[str, Array]:
    """Mirror left and right; the x component of surface normals changes its sign."""
    out = {name: np.ascontiguousarray(array[:, ::-1]) for name, array in maps.items()}
    for name, array in out.items():
        if name in LABELS and LABELS[name].mirrored:
            # Adding zero turns the -0.0 of an invalid pixel into 0.0: one encoding of invalid, whatever was flipped.
            array[..., 0] = -array[..., 0] + 0.0
    return out


def photometric(
    image: NDArray[np.uint8], *, brightness: float, contrast: float, saturation: float, hue: int, contrast_first: bool
) -> NDArray[np.uint8]:
    """Change brightness, contrast, saturation and hue in the published order.

    Args:
        brightness: Grey levels added; 0 leaves the image.
        contrast: Factor on the grey levels; 1 leaves the image.
        saturation: Factor on the HSV saturation; 1 leaves the image.
        hue: Steps of 2 degrees around the hue circle; 0 leaves the image.
        contrast_first: Contrast before the HSV step, or after it.

    Shapes:
        image: ``(H, W, 3)`` RGB, and so is the result.

    Source:
        Published ``PhotoMetricDistortion``, 8-bit HSV included (hue 0..179); without a hue or saturation change the HSV
        round trip, which alone moves some grey levels, is left out.
    """
    out = _affine(image, offset=brightness)
    if contrast_first:
        out = _affine(out, factor=contrast)
    if saturation != 1.0 or hue != 0:
        hsv = _rgb_to_hsv(out)
        hsv[..., 1] = _affine(hsv[..., 1], factor=saturation)
        hsv[..., 0] = (hsv[..., 0].astype(np.int16) + hue) % 180
        out = _hsv_to_rgb(hsv)
    return out if contrast_first else _affine(out, factor=contrast)


def pad_box(inner: tuple[int, int], *, outer: tuple[int, int]) -> Box:
    """Where centre padding puts a map of size ``inner`` in one of size ``outer``; larger sides stay as they are."""
    return Box(max(outer[0] - inner[0], 0) // 2, max(outer[1] - inner[1], 0) // 2, inner[0], inner[1])


def pad(maps: Maps, *, size: tuple[int, int], fill: Fill = "black") -> dict[str, Array]:
    """Pad around the centre to at least ``size``: ignored labels, invalid normals and depth.

    Args:
        fill: Colour of the image's padding.

    Raises:
        DataError: A map that has no known fill value.
    """
    out: dict[str, Array] = {}
    for name, array in maps.items():
        if name not in _FILL and name != "image":
            known = ", ".join(("image", *_FILL))
            raise DataError(f"cannot pad: expected one of {known}, got map {name!r}; add its fill value")
        height, width = array.shape[:2]
        box = pad_box((height, width), outer=size)
        shape = (max(size[0], height), max(size[1], width), *array.shape[2:])
        padded = np.full(shape, _COLOURS[fill] if name == "image" else _FILL[name], dtype=array.dtype)
        padded[box.top : box.top + height, box.left : box.left + width] = array
        out[name] = padded
    return out


def ignore_empty_parts(maps: Maps) -> dict[str, Array]:
    """Make ``human_parts`` all ignore where it shows no person, so that images without people do not train parts.

    Source:
        Published ``AddIgnoreRegions``; it follows that background is only ever judged on images with people.
    """
    out = dict(maps)
    parts = out.get("human_parts")
    if parts is not None and bool(((parts == 0) | (parts == IGNORE)).all()):
        out["human_parts"] = np.full_like(parts, IGNORE)
    return out


def ignore_regions(maps: Maps) -> dict[str, Array]:
    """The published encoding of invalid labels: 255 in all channels of zero normals and in zero depth, no empty parts.

    Source:
        Published ``AddIgnoreRegions``.
    """
    out = ignore_empty_parts(maps)
    if "normals" in out:
        valid = (out["normals"] != 0).any(axis=-1, keepdims=True)
        out["normals"] = np.where(valid, out["normals"], out["normals"].dtype.type(IGNORE))
    if "depth" in out:
        out["depth"] = np.where(out["depth"] == 0, out["depth"].dtype.type(IGNORE), out["depth"])
    return out


def normalize(
    image: Array, *, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> NDArray[np.float32]:
    """Grey levels 0..255 to 0..1, then minus mean, over standard deviation, per channel.

    Shapes:
        image: ``(H, W, 3)``; mean and std: 3 values each.
    """
    unit = image.astype(np.float32) / np.float32(255)
    centre: NDArray[np.float32] = np.array(mean, dtype=np.float32)
    spread: NDArray[np.float32] = np.array(std, dtype=np.float32)
    return ((unit - centre) / spread).astype(np.float32, copy=False)


def resize_image(image: NDArray[np.uint8], *, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Bilinear with antialiasing, by Pillow's fixed-point filter, which rounds alike on every platform.

    Shapes:
        image: ``(H, W, 3)`` to ``(*size, 3)``.
    """
    if image.shape[:2] == size:
        return image.copy()
    return np.array(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def resize_label(label: Array, *, size: tuple[int, int]) -> Array:
    """Nearest neighbour between pixel centres, as the image's filter aligns them; the values stay what they are."""
    return label[_centre_index(label.shape[0], size[0])][:, _centre_index(label.shape[1], size[1])]


def _cut(array: Array, *, box: Box, name: str) -> Array:
    height, width = array.shape[:2]
    if box.top < 0 or box.left < 0 or box.top + box.height > height or box.left + box.width > width:
        raise DataError(f"cannot crop {name!r}: expected a box inside {height}x{width}, got {tuple(box)}; draw again")
    return array[box.top : box.top + box.height, box.left : box.left + box.width].copy()


def _corner_index(source: int, target: int) -> NDArray[np.intp]:
    corners: NDArray[np.intp] = np.floor(np.arange(target) * (source / target)).astype(np.intp)
    return np.minimum(corners, source - 1)


def _centre_index(source: int, target: int) -> NDArray[np.intp]:
    centres: NDArray[np.intp] = (2 * np.arange(target, dtype=np.intp) + 1) * source // (2 * target)
    return centres


def _bilinear(image: Array, *, size: tuple[int, int], box: Box) -> Array:
    top, bottom, down = _neighbours(image.shape[0], size[0], slice(box.top, box.top + box.height))
    left, right, across = _neighbours(image.shape[1], size[1], slice(box.left, box.left + box.width))
    first, last = int(top.min()), int(bottom.max()) + 1  # only the rows that the window touches are worth widening
    rows = image[first:last].astype(np.float64)
    wide = rows[:, left]
    wide += (rows[:, right] - wide) * across[None, :, None]
    out = wide[top - first]
    out += (wide[bottom - first] - out) * down[:, None, None]
    if image.dtype == np.uint8:
        return np.floor(out + 0.5).astype(np.uint8)
    return out.astype(np.float32)


def _neighbours(
    source: int, target: int, part: slice
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    # Pixel centres at halves, both neighbours clamped to the border.
    position = np.clip((np.arange(target)[part] + 0.5) * (source / target) - 0.5, 0, source - 1)
    lower = np.floor(position).astype(np.intp)
    return lower, np.minimum(lower + 1, source - 1), position - lower


def _affine(values: NDArray[np.uint8], *, factor: float = 1.0, offset: float = 0.0) -> NDArray[np.uint8]:
    if factor == 1.0 and offset == 0.0:
        return values.copy()
    # 256 possible inputs: a table is exact and several times faster than arithmetic on the image.
    table: NDArray[np.uint8] = np.clip(np.arange(256) * factor + offset, 0, 255).astype(np.uint8)
    out: NDArray[np.uint8] = table[values]
    return out


def _rgb_to_hsv(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    red, green, blue = (image[..., i].astype(np.int32) for i in range(3))
    value = image.max(axis=-1).astype(np.int32)
    chroma = value - image.min(axis=-1)
    sector = np.where(
        value == red, green - blue, np.where(value == green, blue - red + 2 * chroma, red - green + 4 * chroma)
    )
    # Rounded integer division; the dividend of a grey pixel is zero, so its divisor may be anything.
    hue = (60 * sector + chroma) // np.maximum(2 * chroma, 1) % 180
    saturation = (2 * 255 * chroma + value) // np.maximum(2 * value, 1)
    return np.stack([hue, saturation, value], axis=-1).astype(np.uint8)


def _hsv_to_rgb(hsv: NDArray[np.uint8]) -> NDArray[np.uint8]:
    hue, saturation, value = (hsv[..., i].astype(np.int32) for i in range(3))
    sector, rest = np.divmod(hue, 30)
    # All products over the common denominator 255 * 30, rounded once.
    full = 255 * 30
    low = (value * (full - saturation * 30) * 2 + full) // (2 * full)
    falling = (value * (full - saturation * rest) * 2 + full) // (2 * full)
    rising = (value * (full - saturation * (30 - rest)) * 2 + full) // (2 * full)
    red = np.choose(sector, [value, falling, low, low, rising, value])
    green = np.choose(sector, [rising, value, value, falling, low, low])
    blue = np.choose(sector, [low, low, rising, value, value, falling])
    return np.stack([red, green, blue], axis=-1).astype(np.uint8)
