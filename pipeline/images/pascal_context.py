"""PASCAL-Context for multi-task learning (the PASCAL_MT folder), as published multi-task code expects it on disk.

JPEGImages/<id>.jpg                   images
ImageSets/Context/{train,val}.txt     image ids of the splits
semseg/VOC12/<id>.png                 21 classes, 255 ignore; or semseg/pascal-context/<id>.png
pascal-context/trainval/<id>.mat      LabelMap of 459 classes: boundaries, and where normals are valid
human_parts/<id>.mat                  anno: objects with class, mask and named part masks
sal_distill/<id>.png                  0 to 255, salient above one half
normals_distill/<id>.png              2 x / 255 - 1
json/{context,nyu}_classes.json       classes whose normals are valid are those that both name
"""

from __future__ import annotations

import json
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
    read_list,
    read_mat,
    read_png_map,
    read_rgb,
    require_folder,
    same_shape,
    subset,
)
from pipeline.images.sample import ImageSample

__all__ = ["LAYOUT", "PART_LABELS", "TASKS", "PascalContext", "map_edges", "person_parts"]

TASKS = ("semseg", "human_parts", "normals", "edge", "sal")
LAYOUT = (
    "the PASCAL_MT layout: JPEGImages, ImageSets/Context/{train,val}.txt, semseg/VOC12, pascal-context/trainval, "
    "human_parts, sal_distill, normals_distill, json"
)
_PERSON = 15
_HEAD = ("hair", "head", "mouth", "nose", "lear", "rear", "lebrow", "rebrow", "leye", "reye")
# Part name in the annotation -> label; hands belong to the lower arm, feet to the lower leg, the neck to the torso.
PART_LABELS: dict[str, int] = {
    **dict.fromkeys(_HEAD, 1),
    **dict.fromkeys(("torso", "neck"), 2),
    **dict.fromkeys(("luarm", "ruarm"), 3),
    **dict.fromkeys(("llarm", "rlarm", "lhand", "rhand"), 4),
    **dict.fromkeys(("luleg", "ruleg"), 5),
    **dict.fromkeys(("llleg", "rlleg", "lfoot", "rfoot"), 6),
}


class PascalContext:
    """One split of PASCAL-Context with its five tasks; keys are the image ids."""

    def __init__(self, root: Path, *, split: str, images: int | None = None, seed: int = 0) -> None:
        """Read the split list and the class tables; no image is opened yet.

        Raises:
            DataError: Missing folder, unknown split, unreadable or empty list.
        """
        if split not in ("train", "val"):
            raise DataError(f"pascalcontext: unknown split {split!r}; choose one of train, val")
        self._root = require_folder(root, layout=LAYOUT)
        ids = read_list(root / "ImageSets" / "Context" / f"{split}.txt", root=root, layout=LAYOUT)
        self._keys = tuple(subset(ids, images=images, seed=seed, where=f"{root} ({split})"))
        self._valid = _classes_with_normals(root)

    @property
    def dataset(self) -> str:
        """``pascalcontext``."""
        return "pascalcontext"

    @property
    def tasks(self) -> tuple[str, ...]:
        """Its five tasks."""
        return TASKS

    def fingerprint(self) -> str:
        """Digest of all image and label files; reads every file the first time it is asked for."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        files = [path for key in self._keys for path in self._files(key).values()]
        facts = {"classes with normals": sorted(self._valid)}
        return content_fingerprint("pascalcontext", root=self._root, files=files, facts=facts)

    def keys(self) -> Sequence[str]:
        """Image ids."""
        return self._keys

    def read(self, index: int, /, *, labels: bool = True) -> ImageSample:
        """Decode one image and its five label maps.

        Raises:
            BadImageError: A file is missing, damaged or of another size; the message names it.
        """
        key = self._keys[index]
        files = self._files(key)
        image = read_rgb(files["image"])
        if not labels:
            return ImageSample(key=key, image=image)
        regions_HW = self.regions(index)
        if regions_HW.shape != image.shape[:2]:
            raise BadImageError(
                f"{files['regions']}: LabelMap has shape {regions_HW.shape}, its image {image.shape[:2]}"
            )
        normals_HW3 = decode_normals(_three(files["normals"]))
        if normals_HW3.shape == image.shape:
            normals_HW3[~np.isin(regions_HW, list(self._valid))] = 0.0
        maps: dict[str, NDArray[np.generic]] = {
            "semseg": read_png_map(files["semseg"]),
            "human_parts": person_parts(files["human_parts"], shape=image.shape[:2]),
            "normals": normals_HW3,
            "edge": map_edges(regions_HW),
            "sal": np.asarray(read_png_map(files["sal"]) > 127, dtype=np.uint8),
        }
        same_shape(maps, image=image, path=files["image"])
        return ImageSample(key=key, image=image, labels=maps)

    def regions(self, index: int, /) -> NDArray[np.generic]:
        """The map of 459 classes of one image ``(H, W)``.

        Raises:
            BadImageError: The file is missing or damaged; the message names it.
        """
        return read_mat(self._files(self._keys[index])["regions"], name="LabelMap")

    def _files(self, key: str) -> dict[str, Path]:
        root = self._root
        semseg = root / "semseg" / "VOC12" / f"{key}.png"
        if not semseg.is_file():
            semseg = root / "semseg" / "pascal-context" / f"{key}.png"
        files = {
            "image": root / "JPEGImages" / f"{key}.jpg",
            "semseg": semseg,
            "regions": root / "pascal-context" / "trainval" / f"{key}.mat",
            "human_parts": root / "human_parts" / f"{key}.mat",
            "sal": root / "sal_distill" / f"{key}.png",
            "normals": root / "normals_distill" / f"{key}.png",
        }
        return {name: inside(path, root=root) for name, path in files.items()}


def map_edges(regions_HW: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Boundaries of a region map: non-zero Laplacian, thinned to one pixel, as the published loaders compute them."""
    # Imported here: it takes half a second, which every extraction worker of another data set would wait for nothing.
    from skimage.morphology import thin

    padded = np.pad(regions_HW.astype(np.int64), 1, mode="reflect")
    around = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    thinned = thin(around != 4 * padded[1:-1, 1:-1])  # type: ignore[no-untyped-call]
    return np.asarray(thinned, dtype=np.uint8)


def person_parts(path: Path, *, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Merge the part masks of all persons of an annotation file into one map.

    An image without persons gives all background (0), as the published loaders do; their transforms then turn a map
    that is all background into all ignore.

    Raises:
        BadImageError: The file has another structure, an unknown part, or masks of another size.
    """
    parts_HW = np.zeros(shape, dtype=np.uint8)
    annotation = read_mat(path, name="anno")
    try:
        for thing in np.atleast_1d(annotation[0, 0]["objects"].squeeze()):
            if int(thing["class_ind"].squeeze()) != _PERSON or thing["parts"].size == 0:
                continue
            for part in np.atleast_1d(thing["parts"].squeeze()):
                name, mask = str(part["part_name"].squeeze()), part["mask"].astype(bool)
                parts_HW[mask] = PART_LABELS[name]
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise BadImageError(
            f"{path}: not an annotation of objects with class_ind, mask and parts of size {shape} ({error})"
        ) from error
    return parts_HW


def _three(path: Path) -> NDArray[np.uint8]:
    pixels = read_png_map(path)
    if pixels.ndim != 3:
        raise BadImageError(f"{path}: expected an RGB image of normals, got a single-channel one")
    return pixels


def _classes_with_normals(root: Path) -> frozenset[int]:
    """Ids of the region classes whose distilled normals count: indoor classes, and tvmonitor, as published."""
    tables = []
    for name in ("nyu_classes.json", "context_classes.json"):
        path = root / "json" / name
        try:
            tables.append(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: class table cannot be read ({error}); expected {LAYOUT}") from error
    indoor, context = tables
    if not isinstance(context, dict):
        raise DataError(f"{root}/json/context_classes.json: expected an object of class names to ids")
    names = [name for name in indoor if name != "unknown"] + ["tvmonitor"]
    return frozenset(int(context[name]) for name in names if name in context)
