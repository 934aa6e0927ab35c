"""Class palettes: the VOC rule, Cityscapes' own, forty far apart for NYUD, twelve that look like what they name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

__all__ = ["IGNORE", "cityscapes_palette", "class_palette", "distinct_palette", "scenes_palette", "voc_palette"]

IGNORE = 255
VOID = (224, 224, 192)  # the VOC rule's colour of index 255, used for ignored pixels in every palette

SCENES = (
    (150, 140, 122),  # ground
    (196, 164, 132),  # wall
    (135, 190, 230),  # sky
    (214, 39, 86),  # person
    (255, 187, 51),  # ball
    (139, 90, 43),  # crate
    (127, 127, 160),  # pillar
    (255, 112, 32),  # cone
    (106, 61, 154),  # table
    (44, 140, 60),  # tree
    (250, 240, 110),  # lamp
    (30, 80, 180),  # car
)

CITYSCAPES = (
    (128, 64, 128),  # road
    (244, 35, 232),  # sidewalk
    (70, 70, 70),  # building
    (102, 102, 156),  # wall
    (190, 153, 153),  # fence
    (153, 153, 153),  # pole
    (250, 170, 30),  # traffic light
    (220, 220, 0),  # traffic sign
    (107, 142, 35),  # vegetation
    (152, 251, 152),  # terrain
    (70, 130, 180),  # sky
    (220, 20, 60),  # person
    (255, 0, 0),  # rider
    (0, 0, 142),  # car
    (0, 0, 70),  # truck
    (0, 60, 100),  # bus
    (0, 80, 100),  # train
    (0, 0, 230),  # motorcycle
    (119, 11, 32),  # bicycle
)

LINEAR_TO_LMS = (
    (0.4122214708, 0.5363325363, 0.0514459929),
    (0.2119034982, 0.6806995451, 0.1073969566),
    (0.0883024619, 0.2817188376, 0.6299787005),
)
LMS_TO_LAB = (
    (0.2104542553, 0.7936177850, -0.0040720468),
    (1.9779984951, -2.4285922050, 0.4505937099),
    (0.0259040371, 0.7827717662, -0.8086757660),
)


def _full(colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Extend ``(N, 3)`` to ``(256, 3)``: unused indices are black, 255 is the ignore colour."""
    table = np.zeros((256, 3), dtype=np.uint8)
    table[: len(colours)] = colours
    table[IGNORE] = VOID
    return table


@cache
def voc_palette() -> NDArray[np.uint8]:
    """The PASCAL VOC colour map.

    Bit k of a class index, taken three at a time, goes to bit 7 - k // 3 of red, green and blue in turn.

    Shapes:
        returns ``(256, 3)``.
    """
    index = np.arange(256)
    table = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        table[:, bit % 3] |= (((index >> bit) & 1) << (7 - bit // 3)).astype(np.uint8)
    return table


def _oklab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """sRGB in 0..1 to OKLab, where equal distances look about equal. Source: Ottosson 2020."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return np.asarray(np.cbrt(linear @ np.array(LINEAR_TO_LMS).T) @ np.array(LMS_TO_LAB).T)


@cache
def distinct_palette(count: int = 40) -> NDArray[np.uint8]:
    """Colours chosen one by one, each the farthest in OKLab from all before it.

    Shapes:
        returns ``(256, 3)``, the first ``count`` of them distinct.
    """
    steps = np.linspace(0.0, 1.0, 9)
    candidates = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = _oklab(candidates)
    candidates, lab = candidates[(lab[:, 0] > 0.3) & (lab[:, 0] < 0.95)], lab[(lab[:, 0] > 0.3) & (lab[:, 0] < 0.95)]
    # The ignore colour takes part from the start, so that no class looks like it.
    nearest = np.linalg.norm(lab - _oklab(np.array([VOID]) / 255.0), axis=1)
    chosen: list[int] = []
    for _ in range(count):
        chosen.append(int(np.argmax(np.round(nearest, 9))))
        nearest = np.minimum(nearest, np.linalg.norm(lab - lab[chosen[-1]], axis=1))
    return _full(np.round(candidates[chosen] * 255).astype(np.uint8))


@cache
def scenes_palette() -> NDArray[np.uint8]:
    """The twelve classes of the rendered scenes, in their order: ground to car.

    Shapes:
        returns ``(256, 3)``.
    """
    return _full(np.array(SCENES, dtype=np.uint8))


@cache
def cityscapes_palette() -> NDArray[np.uint8]:
    """The published colours of Cityscapes' 19 classes, in their order: road to bicycle.

    Shapes:
        returns ``(256, 3)``.
    """
    return _full(np.array(CITYSCAPES, dtype=np.uint8))


def class_palette(dataset: str, *, task: str) -> NDArray[np.uint8]:
    """Colours of a class map: ``semseg`` by data set, everything else by the VOC rule.

    Shapes:
        returns ``(256, 3)``.
    """
    return _SEMSEG.get(dataset, voc_palette)() if task == "semseg" else voc_palette()


_SEMSEG: Mapping[str, Callable[[], NDArray[np.uint8]]] = MappingProxyType(
    {"cityscapes": cityscapes_palette, "nyud": distinct_palette, "scenes": scenes_palette}
)
