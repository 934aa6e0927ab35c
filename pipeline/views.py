"""Views: replayable random crops, flips, scalings and colours of an image and its label maps.

``draw_view`` turns (seed, key, view) into a ``ViewDraw``, plain numbers that a Parquet row holds; ``apply_view``
replays them to the same bytes. Teachers and students hence see the same pixels, whatever process or order makes them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Any, Literal, NamedTuple, Self, get_args

import numpy as np
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from pipeline import transforms
from pipeline.errors import DataError
from pipeline.images.sample import ImageSample
from pipeline.transforms import Array, Box, Fill

__all__ = ["FULL_SIZE_KINDS", "Kind", "ViewDraw", "ViewSpec", "apply_view", "draw_view"]

Kind = Literal["full", "center", "random_resized_crop", "multitask", "padded"]

_TRIES = 10
_BRIGHTNESS = 32.0
_FACTOR = (0.5, 1.5)
_HUE = 18
FULL_SIZE_KINDS = ("multitask", "padded")
_DEFAULTS: dict[str, dict[str, Any]] = {
    "full": {},
    "center": {},
    "random_resized_crop": {"flip": 0.5, "area": (0.08, 1.0), "ratio": (3 / 4, 4 / 3), "photometric": False},
    "multitask": {"flip": 0.5, "scale": (0.5, 2.0), "max_class_ratio": 0.75, "photometric": True, "fill": "black"},
    "padded": {"fill": "black"},
}
_OPTIONS = ("flip", "area", "ratio", "scale", "max_class_ratio", "photometric", "fill")
_RANDOM = ("random_resized_crop", "multitask")


def _as_pair(value: object) -> object:
    if isinstance(value, list | tuple) and (len(value) > 2 or any(isinstance(item, list | tuple) for item in value)):
        raise ValueError(
            f"expected one size, a number or [height, width], got {list(value)}: rows of a view set share a shape; for"
            " several resolutions give each a view set of its own, as runs that set data.distill.view.size"
        )
    return (value, value) if isinstance(value, int) and not isinstance(value, bool) else value


def _ascending(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError(f"expected the smaller bound first, got {list(value)}; swap them")
    return value


_Side = Annotated[int, Field(ge=1, le=8192)]
_Size = Annotated[tuple[_Side, _Side], BeforeValidator(_as_pair)]
_Share = Annotated[float, Field(gt=0, le=1)]
_Positive = Annotated[float, Field(gt=0, le=100)]


@dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class ViewSpec:
    """How views are drawn; options left at None take the published value of the kind.

    Attributes:
        kind: ``full`` squashes the whole image to the size; ``center`` takes the largest centred box of the size's
            shape; ``random_resized_crop`` is the stage-1 crop; ``multitask`` is the stage-2 transform (scale,
            class-ratio crop, flip, photometric, pad); ``padded`` is the published evaluation transform (centre pad,
            nothing resized).
        size: Height and width of every view; one number for a square. Several resolutions are several view sets.
        flip: Probability of mirroring.
        area: Share of the image's area that a random resized crop covers, lowest and highest.
        ratio: Width over height of a random resized crop before it is resized.
        scale: Lowest and highest factor of ``multitask``.
        max_class_ratio: A multitask crop with more of one class is drawn again, up to ten times; 1 accepts any.
        photometric: Whether brightness, contrast, saturation and hue change.
        fill: What ``multitask`` and ``padded`` views are padded with: ``black``, or ImageNet's ``mean`` colour, which
            is as published (there images are padded with zeros once they are normalised).
        ignore_empty_parts: Whether a view without people has all its ``human_parts`` ignored, as published.

    Raises:
        ValueError: A value out of range, or an option that the kind does not read.
    """

    kind: Kind
    size: _Size
    flip: Annotated[float, Field(ge=0, le=1)] | None = None
    area: Annotated[tuple[_Share, _Share], AfterValidator(_ascending)] | None = None
    ratio: Annotated[tuple[_Positive, _Positive], AfterValidator(_ascending)] | None = None
    scale: Annotated[tuple[_Positive, _Positive], AfterValidator(_ascending)] | None = None
    max_class_ratio: _Share | None = None
    photometric: bool | None = None
    fill: Fill | None = None
    ignore_empty_parts: bool = True

    def __post_init__(self) -> None:
        defaults = _DEFAULTS[self.kind]
        for name in _OPTIONS:
            if getattr(self, name) is None:
                object.__setattr__(self, name, defaults.get(name))
            elif name not in defaults:
                readers = ", ".join(kind for kind, options in _DEFAULTS.items() if name in options)
                raise ValueError(f"view kind {self.kind!r} does not read {name!r} (read by {readers}); remove it")

    @property
    def random(self) -> bool:
        """Whether two views of one image can differ."""
        return self.kind in _RANDOM

    @property
    def resampler(self) -> str:
        """Name of the arithmetic that makes pixels; part of the fingerprint."""
        return "float64-bilinear" if self.kind in FULL_SIZE_KINDS else "pillow-bilinear-antialias"

    def to_json(self) -> dict[str, Any]:
        """Plain data for fingerprints and ``view_set.json``: what the kind reads, and the resampler.

        Black padding is left out: view sets from before there was a choice are found again.
        """
        options = {name: getattr(self, name) for name in _OPTIONS if getattr(self, name) not in (None, "black")}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
        head: dict[str, Any] = {"kind": self.kind, "size": list(self.size), "resampler": self.resampler}
        return head | plain | {"ignore_empty_parts": self.ignore_empty_parts}


@plain_dataclass(frozen=True, slots=True, kw_only=True)
class ViewDraw:
    """One drawn view as plain numbers; enough, with the image, to make it again.

    Attributes:
        kind: Kind of the spec that drew it.
        source_height, source_width: Size of the image it was drawn for.
        scale: Factor applied to the image before the box is cut.
        top, left, box_height, box_width: The box, in pixels of the scaled image.
        height, width: Size of the view.
        flip: Whether it is mirrored.
        recolour: Whether the next five apply; see ``transforms.photometric``.
        ignore_empty_parts, fill: See ``ViewSpec``.

    Raises:
        DataError: A value of the wrong type or out of range.
    """

    kind: str
    source_height: int
    source_width: int
    scale: float
    top: int
    left: int
    box_height: int
    box_width: int
    height: int
    width: int
    flip: bool
    recolour: bool
    brightness: float
    contrast: float
    saturation: float
    hue: int
    contrast_first: bool
    ignore_empty_parts: bool
    fill: str = "black"

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if type(value).__name__ != entry.type:
                raise DataError(f"view draw: expected {entry.type} in {entry.name!r}, got {value!r}; draw again")
        height, width = self._scaled_size()
        inside = 0 <= self.top <= height - self.box_height and 0 <= self.left <= width - self.box_width
        finite = all(map(math.isfinite, (self.scale, self.brightness, self.contrast, self.saturation)))
        positive = min(self.box_height, self.box_width, self.height, self.width) > 0 and self.scale > 0
        known = self.kind in get_args(Kind) and self.fill in get_args(Fill)
        if not (known and inside and finite and positive):
            raise DataError(f"view draw: expected a known kind and a box in {height}x{width}, got {self}; draw again")

    @property
    def box(self) -> Box:
        """The box in pixels of the scaled image."""
        return Box(self.top, self.left, self.box_height, self.box_width)

    def to_dict(self) -> dict[str, int | float | bool | str]:
        """Flat dict for a Parquet struct or JSON; black padding is left out, as before there was a choice."""
        return {name: value for name, value in asdict(self).items() if (name, value) != ("fill", "black")}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The draw that ``to_dict`` wrote.

        Raises:
            DataError: A missing or unknown field, or a value of the wrong type or out of range.
        """
        names = {entry.name for entry in fields(cls)}
        if names != {*values, "fill"}:
            missing, unknown = sorted(names - {*values, "fill"}), sorted({*values} - names)
            raise DataError(f"view draw: missing fields {missing}, unknown fields {unknown}; draw the views again")
        return cls(**values)

    def _scaled_size(self) -> tuple[int, int]:
        if not (math.isfinite(self.scale) and 0 < self.scale <= 100):
            raise DataError(f"view draw: expected a scale in (0, 100], got {self.scale!r}; draw the views again")
        return transforms.scaled_size((self.source_height, self.source_width), factor=self.scale)


class _Geometry(NamedTuple):
    scale: float
    box: Box


class _Stream:
    """Uniform numbers from raw PCG64 words, which NumPy keeps stable where its distributions may change."""

    def __init__(self, name: str) -> None:
        digest = hashlib.sha256(name.encode()).digest()
        self._bits = np.random.PCG64(np.random.SeedSequence(int.from_bytes(digest, "big")))

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * ((int(self._bits.random_raw()) >> 11) * 2.0**-53)

    def chance(self, probability: float) -> bool:
        return self.uniform(0, 1) < probability

    def integer(self, highest: int) -> int:
        """From 0 to ``highest``, both included."""
        return int(self._bits.random_raw()) * (highest + 1) >> 64


def draw_view(spec: ViewSpec, *, seed: int, key: str, view: int, sample: ImageSample) -> ViewDraw:
    """Draw one view: a pure function of spec, seed, key, view number, image size and, for ``multitask``, ``semseg``.

    Geometry and colour have streams of their own, so that switching one option off leaves all other draws alone.

    Raises:
        DataError: An image too large for ``padded``.
    """
    name = f"{seed}/{key}/{view}"
    height, width = sample.image.shape[:2]
    geometry = _GEOMETRY[spec.kind](spec, _Stream(name), sample)
    look = _Stream(f"{name}/look")
    flip = look.chance(spec.flip or 0.0)
    chosen = [look.chance(0.5) for _ in range(4)]
    brightness, contrast = look.uniform(-_BRIGHTNESS, _BRIGHTNESS), look.uniform(*_FACTOR)
    saturation, hue = look.uniform(*_FACTOR), look.integer(2 * _HUE - 1) - _HUE
    return ViewDraw(
        kind=spec.kind,
        source_height=height,
        source_width=width,
        scale=geometry.scale,
        top=geometry.box.top,
        left=geometry.box.left,
        box_height=geometry.box.height,
        box_width=geometry.box.width,
        height=spec.size[0],
        width=spec.size[1],
        flip=flip,
        recolour=bool(spec.photometric),
        brightness=brightness if chosen[0] else 0.0,
        contrast=contrast if chosen[1] else 1.0,
        saturation=saturation if chosen[2] else 1.0,
        hue=hue if chosen[3] else 0,
        contrast_first=look.chance(0.5),
        ignore_empty_parts=spec.ignore_empty_parts,
        fill=spec.fill or "black",
    )


def apply_view(draw: ViewDraw, sample: ImageSample) -> ImageSample:
    """Pixels ``(height, width, 3)`` uint8 and labels of one drawn view; the same bytes whenever it is called.

    Labels are moved by nearest neighbour, so that no new value appears and normals keep their length; ``multitask``
    alone, which keeps the shape of the image, divides depth by its scale as published.

    Raises:
        DataError: The sample's size is not the one the draw was made for.
    """
    size = (draw.source_height, draw.source_width)
    if sample.image.shape[:2] != size:
        raise DataError(
            f"{sample.key}: expected an image of {size[0]}x{size[1]} as when the view was drawn, got "
            f"{sample.image.shape[0]}x{sample.image.shape[1]}; extract the view set again"
        )
    maps: dict[str, Array] = {"image": sample.image, **sample.labels}
    if draw.kind in FULL_SIZE_KINDS:
        maps = transforms.scale(maps, factor=draw.scale, window=draw.box)
    else:
        maps = _resize(transforms.crop(maps, box=draw.box), size=(draw.height, draw.width))
    maps = transforms.flip(maps) if draw.flip else maps
    if draw.recolour:
        maps["image"] = _recolour(maps["image"], draw=draw)
    if draw.kind in FULL_SIZE_KINDS:
        fill: Fill = "mean" if draw.fill == "mean" else "black"
        maps = transforms.pad(maps, size=(draw.height, draw.width), fill=fill)
    maps = transforms.ignore_empty_parts(maps) if draw.ignore_empty_parts else maps
    labels = {name: array for name, array in maps.items() if name != "image"}
    return ImageSample(key=sample.key, image=maps["image"], labels=labels, label=sample.label)


def _resize(maps: Mapping[str, Array], *, size: tuple[int, int]) -> dict[str, Array]:
    out = {name: transforms.resize_label(array, size=size) for name, array in maps.items() if name != "image"}
    return {"image": transforms.resize_image(maps["image"], size=size), **out}


def _recolour(image: Array, *, draw: ViewDraw) -> Array:
    return transforms.photometric(
        image,
        brightness=draw.brightness,
        contrast=draw.contrast,
        saturation=draw.saturation,
        hue=draw.hue,
        contrast_first=draw.contrast_first,
    )


def _full(spec: ViewSpec, stream: _Stream, sample: ImageSample) -> _Geometry:
    return _Geometry(1.0, Box(0, 0, *sample.image.shape[:2]))


def _center(spec: ViewSpec, stream: _Stream, sample: ImageSample) -> _Geometry:
    ratio = spec.size[1] / spec.size[0]
    return _Geometry(1.0, _centred(sample.image.shape[:2], lowest=ratio, highest=ratio))


def _random_resized_crop(spec: ViewSpec, stream: _Stream, sample: ImageSample) -> _Geometry:
    # torchvision's algorithm: log-uniform shape, ten tries, else the largest centred box of an allowed shape.
    assert spec.area is not None
    assert spec.ratio is not None
    height, width = sample.image.shape[:2]
    for _ in range(_TRIES):
        area = height * width * stream.uniform(*spec.area)
        ratio = math.exp(stream.uniform(math.log(spec.ratio[0]), math.log(spec.ratio[1])))
        tall, wide = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < tall <= height and 0 < wide <= width:
            return _Geometry(1.0, Box(stream.integer(height - tall), stream.integer(width - wide), tall, wide))
    return _Geometry(1.0, _centred((height, width), lowest=spec.ratio[0], highest=spec.ratio[1]))


def _multitask(spec: ViewSpec, stream: _Stream, sample: ImageSample) -> _Geometry:
    assert spec.scale is not None
    assert spec.max_class_ratio is not None
    factor = stream.uniform(*spec.scale)
    size = (sample.image.shape[0], sample.image.shape[1])
    height, width = transforms.scaled_size(size, factor=factor)
    tall, wide = min(height, spec.size[0]), min(width, spec.size[1])
    box = Box(stream.integer(height - tall), stream.integer(width - wide), tall, wide)
    semseg = sample.labels.get("semseg")
    if semseg is None or spec.max_class_ratio == 1.0 or (tall, wide) == (height, width):
        return _Geometry(factor, box)
    scaled = transforms.scale_label(semseg, size=(height, width))
    for _ in range(_TRIES):
        seen = scaled[box.top : box.top + tall, box.left : box.left + wide]
        if transforms.is_balanced(seen, max_ratio=spec.max_class_ratio):
            break
        box = Box(stream.integer(height - tall), stream.integer(width - wide), tall, wide)
    return _Geometry(factor, box)


def _padded(spec: ViewSpec, stream: _Stream, sample: ImageSample) -> _Geometry:
    height, width = sample.image.shape[:2]
    if height > spec.size[0] or width > spec.size[1]:
        raise DataError(
            f"{sample.key}: expected at most {spec.size[0]}x{spec.size[1]} for a padded view, got {height}x{width}; "
            "raise the view's size"
        )
    return _Geometry(1.0, Box(0, 0, height, width))


def _centred(size: tuple[int, ...], *, lowest: float, highest: float) -> Box:
    height, width = size[0], size[1]
    ratio = min(max(width / height, lowest), highest)
    tall = min(height, max(round(width / ratio), 1))
    wide = min(width, max(round(height * ratio), 1))
    return Box((height - tall) // 2, (width - wide) // 2, tall, wide)


_GEOMETRY: dict[str, Callable[[ViewSpec, _Stream, ImageSample], _Geometry]] = {
    "full": _full,
    "center": _center,
    "random_resized_crop": _random_resized_crop,
    "multitask": _multitask,
    "padded": _padded,
}
