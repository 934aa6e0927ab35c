"""What one dense task is, for every part of the project that handles its maps.

Nothing here loads torch: tables and pictures read it too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DenseTask", "LabelSpec", "MetricSpec", "Total"]

Total: TypeAlias = "Callable[[Tensor], Tensor]"
"""From a number of pixels in this part of a batch to that in all its parts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSpec:
    """How a task's label maps look, and what becomes of their values when an image is mirrored or scaled.

    Attributes:
        name: The task.
        title: What tables and pictures call it.
        stored: Type of its values in a view set; integers are written as PNG, the others as npy.
        invalid: Value of a pixel without a label.
        channels: Values a pixel.
        mirrored: Whether the first channel changes its sign in a mirror image.
        zoom: Power of the factor of scaling that values are multiplied by: an image twice as large is one seen from
            half the distance.
        shown: How pictures show it: colours of classes, of directions, grey levels, or colours from near to far.
        unit: Of its values, in words on pictures.
        largest: Of the values that occur; a map of larger ones alone is in another unit.
    """

    name: str
    title: str
    stored: Literal["uint8", "float16", "float32"]
    invalid: float
    channels: int = 1
    mirrored: bool = False
    zoom: Literal[-1, 0, 1] = 0
    shown: Literal["classes", "directions", "grey", "range"]
    unit: str = ""
    largest: float = math.inf

    @property
    def file(self) -> str:
        """Its file's extension in an image shard, for example ``depth.npy``."""
        return f"{self.name}.{'png' if self.stored == 'uint8' else 'npy'}"

    def shape(self, size: tuple[int, ...], /) -> tuple[int, ...]:
        """Shape of a map of this height and width: ``(H, W)``, or ``(H, W, C)``."""
        return (size[0], size[1], self.channels) if self.channels > 1 else (size[0], size[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricSpec:
    """How one metric reads: its direction, its unit and how many decimals a table shows.

    Attributes:
        unit: Text after the number; empty for a plain number.
    """

    name: str
    higher_is_better: bool
    unit: str
    decimals: int

    @property
    def arrow(self) -> str:
        """The arrow of a table header: up when more is better."""
        return "↑" if self.higher_is_better else "↓"


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseTask:
    """A task in one module: its label, its loss and its metrics.

    Attributes:
        metrics: Those of its metrics that no other task has.
        loss: Of logits and labels ``(B, C, H, W)``; 0, with a path to the logits, where no pixel is labelled.
        tally: From logits and labels of one image to named sums, all zeros where no pixel is labelled; those of all
            images are added (``sak.meters.meter``).
        score: From the sums of all images to metrics.
    """

    label: LabelSpec
    metrics: tuple[MetricSpec, ...]
    loss: Callable[[Tensor, Tensor, Total], Tensor]
    tally: Callable[[Tensor, Tensor], dict[str, Tensor]]
    score: Callable[[Mapping[str, NDArray[np.generic]]], dict[str, float]]
