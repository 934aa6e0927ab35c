"""One image with its label maps, and what every image source offers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

__all__ = ["HasRegions", "ImageSample", "ImageSource", "Unlabelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSample:
    """An image and its label maps, all of one height and width.

    Shapes:
        image: ``(H, W, 3)`` uint8 RGB.
        labels: task name to ``(H, W)``, or ``(H, W, 3)`` for ``normals``.

    Units:
        ``depth`` in metres with 255.0 for invalid; ``normals`` unit vectors with exact zeros for invalid; the class
        maps (``semseg``, ``human_parts``, ``edge``, ``sal``) are uint8 with 255 for ignore.
    """

    key: str
    image: NDArray[np.uint8]
    labels: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)
    label: int | None = None


class ImageSource(Protocol):
    """Images addressed by stable keys: a data set on disk, a folder, or a renderer."""

    @property
    def dataset(self) -> str:
        """Name in ``sak.tasks.DATASETS``; empty when the source has no labels."""
        ...

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks that ``read`` returns label maps for."""
        ...

    def fingerprint(self) -> str:
        """Hex digest that changes whenever the content this source yields could change."""
        ...

    def keys(self) -> Sequence[str]:
        """Relative posix paths without suffix, sorted; a key never depends on its position."""
        ...

    def read(self, index: int, /, *, labels: bool = True) -> ImageSample:
        """Decode one image.

        Raises:
            pipeline.errors.BadImageError: The file cannot be decoded; the message names it.
        """
        ...


@runtime_checkable
class HasRegions(Protocol):
    """A source whose boundaries are those of a region map, which the boundary score reads and training does not."""

    def regions(self, index: int, /) -> NDArray[np.generic]:
        """The region map ``(H, W)`` of one image.

        Raises:
            pipeline.errors.BadImageError: It cannot be decoded; the message names the file.
        """
        ...


class Unlabelled:
    """Base of sources whose images have no label maps."""

    dataset = ""
    tasks: tuple[str, ...] = ()
