"""The built-in data set: procedural scenes, rendered on demand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import overload

from pipeline.errors import DataError
from pipeline.images.sample import ImageSample
from pipeline.scenes.render import RENDERER_VERSION, TASKS, render_scene
from pipeline.scenes.world import STYLES

__all__ = ["SPLITS", "SceneSource", "scene_seed"]

SPLITS = ("train", "val", "unlabeled")


def scene_seed(seed: int, *, split: str) -> int:
    """Seed of one split's scenes; no two (seed, split) pairs share one.

    Raises:
        DataError: Unknown split or negative seed.
    """
    if split not in SPLITS:
        raise DataError(f"scenes: unknown split {split!r}; choose one of {', '.join(SPLITS)}")
    if seed < 0:
        raise DataError(f"scenes: expected a seed of at least 0, got {seed}")
    return len(SPLITS) * seed + SPLITS.index(split)


class _Keys(Sequence[str]):
    """``<split>/<number>`` of scenes, written when asked for: they may be a billion."""

    def __init__(self, split: str, numbers: range, /, *, digits: int) -> None:
        self._split, self._numbers, self._digits = split, numbers, digits

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int, /) -> str: ...
    @overload
    def __getitem__(self, index: slice, /) -> _Keys: ...
    def __getitem__(self, index: int | slice, /) -> str | _Keys:
        if isinstance(index, slice):
            return _Keys(self._split, self._numbers[index], digits=self._digits)
        return f"{self._split}/{self._numbers[index]:0{self._digits}d}"


class SceneSource:
    """Scenes 0 to ``images - 1`` of one split; scene k does not depend on how many there are.

    All splits carry labels; ``unlabeled`` is named for its use, distillation, and is disjoint from the others.
    """

    def __init__(self, *, split: str, size: tuple[int, int], images: int, seed: int, style: str = "default") -> None:
        """Check the arguments; nothing is rendered yet.

        Raises:
            DataError: Unknown split or style, negative seed, or no images.
        """
        if images < 1:
            raise DataError(f"scenes: expected at least 1 image, got {images}")
        if min(size) < 8:
            raise DataError(
                f"scenes: expected a size of at least 8x8 pixels, got {size[0]}x{size[1]}; give a larger one"
            )
        if style not in STYLES:
            raise DataError(f"scenes: unknown style {style!r}; choose one of {', '.join(STYLES)}")
        self._seed = scene_seed(seed, split=split)
        self._split, self._size, self._images, self._style = split, size, images, style
        # Keys stay in sorted order: all have the same number of digits.
        self._keys = _Keys(split, range(images), digits=max(6, len(str(images - 1))))

    @property
    def dataset(self) -> str:
        """Always ``scenes``, whatever the style."""
        return "scenes"

    @property
    def tasks(self) -> tuple[str, ...]:
        """All six tasks."""
        return TASKS

    def fingerprint(self) -> str:
        """Digest of the renderer's version and of everything that selects the scenes."""
        facts = ["scenes", RENDERER_VERSION, self._seed, self._split, self._images, list(self._size), self._style]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def keys(self) -> Sequence[str]:
        """``<split>/<number>``."""
        return self._keys

    def read(self, index: int, /, *, labels: bool = True) -> ImageSample:
        """Render one scene."""
        key = self._keys[index]
        number = range(self._images)[index]
        sample = render_scene(seed=self._seed, index=number, size=self._size, style=self._style)
        return replace(sample, key=key, labels=sample.labels if labels else {})
