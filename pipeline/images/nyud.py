"""NYUD-v2 for multi-task learning, as published multi-task code expects it on disk.

gt_sets/{train,val}.txt      image ids of the splits
images/<id>.png              images
segmentation/<id>.png        1 to 40, 0 unlabelled
normals/<id>.png             2 x / 255 - 1
edge/<id>.png                0 or 255
depth/<id>.npy               metres

This is the folder NYUDv2 of the published SAK and ATRC. An older one, NYUD_MT of ASTMT and MTI-Net, has the same
folders with images/<id>.jpg, normals/<id>.npy (components) and edge/<id>.npy (0 or 1); either is read, file by file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BadImageError
from pipeline.images.files import decode_normals, read_depth, read_list, read_npy, read_png_map, unit_normals
from pipeline.images.labelled import Decoders, LabelledFolder, present, read_vectors

__all__ = ["Nyud"]


class Nyud(LabelledFolder):
    """One split of NYUD-v2 with its four tasks; keys are the image ids."""

    dataset = "nyud"
    tasks = ("semseg", "normals", "edge", "depth")
    layout = "the NYUDv2 layout: gt_sets/{train,val}.txt, images, segmentation, normals, edge and depth"
    published = MappingProxyType({"train": 795, "val": 654})
    marks = ("gt_sets", "segmentation")

    def _ids(self, split: str) -> list[str]:
        return read_list(self._root / "gt_sets" / f"{split}.txt", root=self._root, layout=self.layout)

    def _files(self, key: str) -> Mapping[str, Path]:
        root = self._root
        return {
            "image": present(root / "images", f"{key}.png", f"{key}.jpg"),
            "semseg": root / "segmentation" / f"{key}.png",
            "normals": present(root / "normals", f"{key}.png", f"{key}.npy"),
            "edge": present(root / "edge", f"{key}.png", f"{key}.npy"),
            "depth": root / "depth" / f"{key}.npy",
        }

    def _labels(self, files: Mapping[str, Path], *, size: tuple[int, int] | None) -> Decoders:
        return {
            # Class 0 is "unlabelled"; unsigned arithmetic turns it into 255, ignore.
            "semseg": lambda: read_png_map(files["semseg"]) - np.uint8(1),
            "normals": lambda: _normals(files["normals"]),
            "edge": lambda: _edges(files["edge"]),
            "depth": lambda: read_depth(files["depth"]),
        }


def _normals(path: Path) -> NDArray[np.float32]:
    if path.suffix == ".png":
        return decode_normals(read_vectors(path))
    vector_HW3 = read_npy(path)
    if vector_HW3.ndim != 3 or vector_HW3.shape[2] != 3:
        raise BadImageError(f"{path}: expected normals of shape (H, W, 3), got {vector_HW3.shape}; replace the file")
    return unit_normals(np.where(np.isfinite(vector_HW3), vector_HW3, np.float32(0.0)))


def _edges(path: Path) -> NDArray[np.uint8]:
    """1 on boundaries.

    Raises:
        BadImageError: Coded in another way, so that no boundary would be left.
    """
    if path.suffix == ".npy":
        return np.asarray(read_npy(path) > 0.5, dtype=np.uint8)
    values = read_png_map(path)
    if 0 < values.max(initial=0) <= 127:
        raise BadImageError(f"{path}: expected boundaries of 255, got at most {values.max()}; write them as 0 and 255")
    return np.asarray(values > 127, dtype=np.uint8)
