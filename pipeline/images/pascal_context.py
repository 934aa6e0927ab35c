"""PASCAL-Context for multi-task learning, as published multi-task code expects it on disk.

JPEGImages/<id>.jpg                   images
ImageSets/Context/{train,val}.txt     image ids of the splits
semseg/VOC12/<id>.png                 21 classes, 255 ignore; or semseg/pascal-context/<id>.png
pascal-context/trainval/<id>.mat      LabelMap of 459 classes: boundaries, and where normals are valid
human_parts/<id>.mat                  anno: objects with class, mask and named part masks
sal_distill/<id>.png                  0 to 255, salient above one half
normals_distill/<id>.png              2 x / 255 - 1
json/{context,nyu}_classes.json       classes whose normals are valid are those that both name

This is the folder PASCALContext of the published SAK, ATRC and InvPT. Its ImageSets/Parts/{train,val}.txt, which
published code writes to remember which images show people, is not needed: what is derived from annotations (part maps,
boundaries) is kept in the cache folder instead.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BadImageError, DataError
from pipeline.images.derived import derived_map
from pipeline.images.files import decode_mat, decode_normals, read_file, read_list, read_png_map
from pipeline.images.labelled import Decoders, LabelledFolder, present, read_vectors

__all__ = ["PART_LABELS", "PascalContext", "map_edges", "person_parts"]

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


class PascalContext(LabelledFolder):
    """One split of PASCAL-Context with its five tasks; keys are the image ids."""

    dataset = "pascalcontext"
    tasks = ("semseg", "human_parts", "normals", "edge", "sal")
    layout = (
        "the PASCALContext layout: JPEGImages, ImageSets/Context/{train,val}.txt, semseg/VOC12,"
        " pascal-context/trainval, human_parts, sal_distill, normals_distill, json"
    )
    published = MappingProxyType({"train": 4998, "val": 5105})
    marks = ("JPEGImages", "ImageSets/Context")
    made_from = MappingProxyType({"edge": "regions"})

    def __init__(self, root: Path, *, split: str, images: int | None = None, seed: int = 0) -> None:
        """Read the split list and the class tables; no image is opened yet.

        Raises:
            DataError: Missing folder, unknown split, unreadable or empty list, or unreadable class tables.
        """
        super().__init__(root, split=split, images=images, seed=seed)
        self._valid = sorted(_classes_with_normals(root, layout=self.layout))

    def _ids(self, split: str) -> list[str]:
        path = self._root / "ImageSets" / "Context" / f"{split}.txt"
        return read_list(path, root=self._root, layout=self.layout)

    def _facts(self) -> Mapping[str, object]:
        return {"classes with normals": self._valid}

    def _files(self, key: str) -> Mapping[str, Path]:
        root = self._root
        return {
            "image": root / "JPEGImages" / f"{key}.jpg",
            "semseg": present(root / "semseg", f"VOC12/{key}.png", f"pascal-context/{key}.png"),
            "regions": root / "pascal-context" / "trainval" / f"{key}.mat",
            "human_parts": root / "human_parts" / f"{key}.mat",
            "sal": root / "sal_distill" / f"{key}.png",
            "normals": root / "normals_distill" / f"{key}.png",
        }

    def _labels(self, files: Mapping[str, Path], *, size: tuple[int, int] | None) -> Decoders:
        context = _Regions(files["regions"])
        return {
            "semseg": lambda: read_png_map(files["semseg"]),
            "human_parts": lambda: _cached_parts(files["human_parts"], shape=size or context.map_HW.shape),
            "normals": lambda: self._normals(files["normals"], context),
            "edge": context.edges,
            "sal": lambda: np.asarray(read_png_map(files["sal"]) > 127, dtype=np.uint8),
        }

    def _normals(self, path: Path, context: _Regions) -> NDArray[np.float32]:
        """Normals of the classes that have valid ones; nothing for the others, as published."""
        normals_HW3 = decode_normals(read_vectors(path))
        if normals_HW3.shape[:2] == context.map_HW.shape:  # who reads them finds and names another size
            normals_HW3[~np.isin(context.map_HW, self._valid)] = 0.0
        return normals_HW3

    def regions(self, index: int, /) -> NDArray[np.generic]:
        """The map of 459 classes of one image ``(H, W)``.

        Raises:
            BadImageError: The file is missing or damaged; the message names it.
        """
        return _Regions(self._safe_files(self._keys[index])["regions"]).map_HW


class _Regions:
    """The map of 459 classes of one image, read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @cached_property
    def _data(self) -> bytes:
        return read_file(self._path)

    @cached_property
    def map_HW(self) -> NDArray[np.generic]:
        regions_HW = decode_mat(self._data, names=("LabelMap",), where=str(self._path))["LabelMap"]
        numbers = regions_HW.dtype.kind in "ui" or (regions_HW.dtype.kind == "f" and (np.abs(regions_HW) < 2**31).all())
        if regions_HW.ndim != 2 or not regions_HW.size or not numbers:
            raise BadImageError(
                f"{self._path}: expected a LabelMap (H, W) of numbers, got {regions_HW.dtype} {regions_HW.shape};"
                " replace the file"
            )
        return regions_HW

    def edges(self) -> NDArray[np.uint8]:
        """Boundaries between its classes."""
        return derived_map("edges-1", self._data, make=lambda: map_edges(self.map_HW))


def _cached_parts(path: Path, *, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    data = read_file(path)
    kind = f"parts-1-{'x'.join(map(str, shape))}"
    return derived_map(kind, data, make=lambda: person_parts(data, shape=shape, where=str(path)))


def map_edges(regions_HW: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Boundaries of a region map: non-zero Laplacian, thinned to one pixel, as the published loaders compute them."""
    # Imported here: it takes half a second, which every extraction worker of another data set would wait for nothing.
    from skimage.morphology import thin

    padded = np.pad(regions_HW.astype(np.int64), 1, mode="reflect")
    around = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    thinned = thin(around != 4 * padded[1:-1, 1:-1])  # type: ignore[no-untyped-call]
    return np.asarray(thinned, dtype=np.uint8)


def person_parts(data: bytes, *, shape: tuple[int, ...], where: str) -> NDArray[np.uint8]:
    """Merge the part masks of all persons of an annotation file into one map.

    An image without persons gives all background (0), as the published loaders do; their transforms then turn a map
    that is all background into all ignore.

    Raises:
        BadImageError: The file has another structure, an unknown part, or masks of another size.
    """
    parts_HW = np.zeros(shape, dtype=np.uint8)
    annotation = decode_mat(data, names=("anno",), where=where)["anno"]
    try:
        for thing in np.atleast_1d(annotation[0, 0]["objects"].squeeze()):
            if int(thing["class_ind"].squeeze()) != _PERSON or thing["parts"].size == 0:
                continue
            for part in np.atleast_1d(thing["parts"].squeeze()):
                name, mask = str(part["part_name"].squeeze()), part["mask"].astype(bool)
                parts_HW[mask] = PART_LABELS[name]
    except (KeyError, IndexError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise BadImageError(
            f"{where}: not an annotation of objects with class_ind, mask and parts of size {shape} ({error})"
        ) from error
    return parts_HW


def _classes_with_normals(root: Path, *, layout: str) -> frozenset[int]:
    """Ids of the region classes whose distilled normals count: indoor classes, and tvmonitor, as published."""
    tables = []
    for name in ("nyu_classes.json", "context_classes.json"):
        path = root / "json" / name
        try:
            tables.append(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"{path}: class table cannot be read ({error}); expected {layout}") from error
    indoor, context = tables
    try:
        ids = {name: int(number) for name, number in dict(context).items()}
        names = [*(str(name) for name in indoor if name != "unknown"), "tvmonitor"]
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{root}/json: expected class names in nyu_classes.json, and names with their ids in context_classes.json"
            f" ({error}); take both from the published data set"
        ) from error
    return frozenset(ids[name] for name in names if name in ids)
