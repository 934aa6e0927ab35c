"""NYUD-v2 for multi-task learning (the NYUD_MT folder), as published multi-task code expects it on disk.

gt_sets/{train,val}.txt      image ids of the splits
images/<id>.png              images
segmentation/<id>.png        1 to 40, 0 unlabelled
normals/<id>.png             2 x / 255 - 1
edge/<id>.png                0 or 255
depth/<id>.npy               metres
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BadImageError, DataError
from pipeline.images.files import (
    content_fingerprint,
    decode_normals,
    inside,
    read_depth,
    read_list,
    read_png_map,
    read_rgb,
    require_folder,
    same_shape,
    subset,
)
from pipeline.images.sample import ImageSample

__all__ = ["LAYOUT", "TASKS", "Nyud"]

TASKS = ("semseg", "normals", "edge", "depth")
LAYOUT = "the NYUD_MT layout: gt_sets/{train,val}.txt, images, segmentation, normals, edge and depth"


class Nyud:
    """One split of NYUD-v2 with its four tasks; keys are the image ids."""

    def __init__(self, root: Path, *, split: str, images: int | None = None, seed: int = 0) -> None:
        """Read the split list; no image is opened yet.

        Raises:
            DataError: Missing folder, unknown split, unreadable or empty list.
        """
        if split not in ("train", "val"):
            raise DataError(f"nyud: unknown split {split!r}; choose one of train, val")
        self._root = require_folder(root, layout=LAYOUT)
        ids = read_list(root / "gt_sets" / f"{split}.txt", root=root, layout=LAYOUT)
        self._keys = tuple(subset(ids, images=images, seed=seed, where=f"{root} ({split})"))

    @property
    def dataset(self) -> str:
        """``nyud``."""
        return "nyud"

    @property
    def tasks(self) -> tuple[str, ...]:
        """Its four tasks."""
        return TASKS

    def fingerprint(self) -> str:
        """Digest of all image and label files; reads every file the first time it is asked for."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        files = [path for key in self._keys for path in self._files(key).values()]
        return content_fingerprint("nyud", root=self._root, files=files, facts={})

    def keys(self) -> Sequence[str]:
        """Image ids."""
        return self._keys

    def read(self, index: int, /, *, labels: bool = True) -> ImageSample:
        """Decode one image and its four label maps.

        Raises:
            BadImageError: A file is missing, damaged or of another size; the message names it.
        """
        key = self._keys[index]
        files = self._files(key)
        image = read_rgb(files["image"])
        if not labels:
            return ImageSample(key=key, image=image)
        normals = read_png_map(files["normals"])
        if normals.ndim != 3:
            raise BadImageError(f"{files['normals']}: expected an RGB image of normals, got a single-channel one")
        # Class 0 is "unlabelled"; unsigned arithmetic turns it into 255, ignore.
        semseg_HW = read_png_map(files["semseg"]) - np.uint8(1)
        maps: dict[str, NDArray[np.generic]] = {
            "semseg": semseg_HW,
            "normals": decode_normals(normals),
            "edge": np.asarray(read_png_map(files["edge"]) > 127, dtype=np.uint8),
            "depth": read_depth(files["depth"]),
        }
        same_shape(maps, image=image, path=files["image"])
        return ImageSample(key=key, image=image, labels=maps)

    def _files(self, key: str) -> dict[str, Path]:
        root = self._root
        files = {
            "image": root / "images" / f"{key}.png",
            "semseg": root / "segmentation" / f"{key}.png",
            "normals": root / "normals" / f"{key}.png",
            "edge": root / "edge" / f"{key}.png",
            "depth": root / "depth" / f"{key}.npy",
        }
        return {name: inside(path, root=root) for name, path in files.items()}
