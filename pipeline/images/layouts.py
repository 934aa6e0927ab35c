"""Write rendered scenes in the folder layouts of real data sets, so that the readers of those run on them.

The twelve scene classes go to the class numbers of the data set whose layout is written. Where that data set names
the thing, its own number is used; the rest takes the number of a class that scenes never contain, as a stand-in, so
that no two kinds of object fall together (sky, ground and wall are all background for PASCAL).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat
from scipy.ndimage import label as connected

from pipeline.errors import DataError
from pipeline.images.scenes import scene_seed
from pipeline.scenes.render import CLASSES, INVALID_DEPTH, RenderedScene, render_layers

__all__ = ["CITYSCAPES_IDS", "LAYOUTS", "NYUD_CLASSES", "PASCAL_CLASSES", "Layout", "region_map", "write_layout"]

# Scene class -> one of PASCAL's 21 (ball: bottle, crate: chair, pillar: tvmonitor, cone: sofa, lamp: bird stand in).
PASCAL_CLASSES: dict[str, int] = {
    "ground": 0,
    "wall": 0,
    "sky": 0,
    "person": 15,
    "ball": 5,
    "crate": 9,
    "pillar": 20,
    "cone": 18,
    "table": 11,
    "tree": 16,
    "lamp": 3,
    "car": 7,
}
# Scene class -> one of NYUD's 40, from 0 (sky: window, cone: bag, tree: otherfurniture, car: cabinet stand in).
NYUD_CLASSES: dict[str, int] = {
    "ground": 1,
    "wall": 0,
    "sky": 8,
    "person": 30,
    "ball": 39,
    "crate": 28,
    "pillar": 37,
    "cone": 36,
    "table": 6,
    "tree": 38,
    "lamp": 34,
    "car": 2,
}
# Scene class -> a label id of Cityscapes (ball: traffic light, crate: building, cone: traffic sign, table: fence, lamp:
# truck stand in).
CITYSCAPES_IDS: dict[str, int] = {
    "ground": 7,
    "wall": 12,
    "sky": 23,
    "person": 24,
    "ball": 19,
    "crate": 11,
    "pillar": 17,
    "cone": 20,
    "table": 13,
    "tree": 21,
    "lamp": 27,
    "car": 26,
}
# A stereo camera like that of Cityscapes, its focal length 1.1 times the width of the image.
_BASELINE = 0.22
_FOCAL = 1.1
_MOST_DISPARITY = 128.0  # what stereo matching searches; anything nearer has no measurement
_REPEATS = 38  # instances of one class with their own number; 12 x 38 stays within the 459 of PASCAL-Context
_PART_NAMES = {1: "head", 2: "torso", 3: "luarm", 4: "llarm", 5: "luleg", 6: "llleg"}
_OBJECT_FIELDS = [("class", object), ("class_ind", object), ("mask", object), ("parts", object)]
_PART_FIELDS = [("part_name", object), ("mask", object)]


def write_layout(
    layout: str,
    *,
    out: Path,
    train: int,
    val: int,
    size: tuple[int, int],
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Render scenes and write them as a data set; the folder appears only when it is complete.

    Args:
        layout: A key of ``LAYOUTS``.
        out: Folder to create; it may exist when it is empty.
        train: Number of training scenes.
        val: Number of validation scenes.
        size: Height and width in pixels.
        seed: Seed of the collection; the scenes are those of the source ``scenes`` with this seed.
        progress: Called with the number of images written so far.

    Raises:
        DataError: Unknown layout, no images, or a folder that has content.
    """
    if layout not in LAYOUTS:
        raise DataError(f"unknown layout {layout!r}; choose one of {', '.join(LAYOUTS)}")
    if train < 1 or val < 1:
        raise DataError(f"{out}: expected at least 1 training and 1 validation image, got {train} and {val}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: exists and is not an empty folder; choose another or remove it")
    partial = out.parent / f".{out.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    chosen, done = LAYOUTS[layout], 0
    for split, count in (("train", train), ("val", val)):
        written: dict[str, list[int]] = {}
        for index in range(count):
            scene = render_layers(seed=scene_seed(seed, split=split), index=index, size=size)
            name = f"{split}_{index:06d}"
            written[name] = chosen.image(partial, split, name, scene)
            done += 1
            if progress is not None:
                progress(done)
        chosen.lists(partial, split, written)
    if out.exists():
        out.rmdir()
    os.replace(partial, out)


def region_map(scene: RenderedScene) -> NDArray[np.uint16]:
    """Give every instance its own number, ``1 + class + 12 k`` for the k-th instance of its class."""
    semseg_HW = np.asarray(scene.sample.labels["semseg"])
    regions_HW = np.zeros(semseg_HW.shape, dtype=np.uint16)
    seen = dict.fromkeys(range(len(CLASSES)), 0)
    for instance in np.unique(scene.instance_HW).tolist():
        mask_HW = scene.instance_HW == instance
        number = int(semseg_HW[mask_HW][0])
        regions_HW[mask_HW] = 1 + number + len(CLASSES) * (seen[number] % _REPEATS)
        seen[number] += 1
    return regions_HW


def _imagefolder(root: Path, split: str, name: str, scene: RenderedScene) -> list[int]:
    """<split>/<class of most of the salient pixels>/<name>.jpg"""
    labels = scene.sample.labels
    salient = np.asarray(labels["semseg"])[np.asarray(labels["sal"]) > 0]
    kind = CLASSES[int(np.bincount(salient).argmax())] if len(salient) else "nothing"
    _jpeg(root / split / kind / f"{name}.jpg", scene.sample.image)
    return []


def _no_lists(root: Path, split: str, written: dict[str, list[int]]) -> None:
    """None is needed."""


def _pascal_context(root: Path, split: str, name: str, scene: RenderedScene) -> list[int]:
    """All files of one image; returns the classes of its annotated objects."""
    labels = scene.sample.labels
    _jpeg(root / "JPEGImages" / f"{name}.jpg", scene.sample.image)
    _png(root / "semseg" / "VOC12" / f"{name}.png", _renamed(scene, PASCAL_CLASSES))
    _mat(root / "pascal-context" / "trainval" / f"{name}.mat", {"LabelMap": region_map(scene)})
    objects = _annotation(np.asarray(labels["human_parts"]))
    _mat(root / "human_parts" / f"{name}.mat", {"anno": {"imname": name, "objects": objects}})
    _png(root / "sal_distill" / f"{name}.png", np.asarray(labels["sal"], dtype=np.uint8) * np.uint8(255))
    _png(root / "normals_distill" / f"{name}.png", _encode_normals(scene))
    return [int(kind.item()) for kind in objects["class_ind"][0]]


def _pascal_lists(root: Path, split: str, written: dict[str, list[int]]) -> None:
    """Split list, object classes per image, and class tables in which every region but the sky has valid normals."""
    _lines(root / "ImageSets" / "Context" / f"{split}.txt", written)
    _json(root / "ImageSets" / "Parts" / f"{split}.txt", written)
    context = {"tvmonitor": 459}
    for number, kind in enumerate(CLASSES):
        for k in range(_REPEATS):
            context[kind if k == 0 else f"{kind} {k + 1}"] = 1 + number + len(CLASSES) * k
    _json(root / "json" / "context_classes.json", context)
    _json(root / "json" / "nyu_classes.json", [name for name in context if name not in ("sky", "tvmonitor")])
    _json(root / "json" / "pascal_part.json", {"15": {name: part for part, name in _PART_NAMES.items()}})


def _nyud(root: Path, split: str, name: str, scene: RenderedScene) -> list[int]:
    labels = scene.sample.labels
    _png(root / "images" / f"{name}.png", scene.sample.image)
    _png(root / "segmentation" / f"{name}.png", _renamed(scene, NYUD_CLASSES) + np.uint8(1))
    _png(root / "normals" / f"{name}.png", _encode_normals(scene))
    _png(root / "edge" / f"{name}.png", np.asarray(labels["edge"], dtype=np.uint8) * np.uint8(255))
    depth = root / "depth" / f"{name}.npy"
    depth.parent.mkdir(parents=True, exist_ok=True)
    np.save(depth, np.asarray(labels["depth"], dtype=np.float32), allow_pickle=False)
    return []


def _nyud_lists(root: Path, split: str, written: dict[str, list[int]]) -> None:
    _lines(root / "gt_sets" / f"{split}.txt", written)


def _cityscapes(root: Path, split: str, name: str, scene: RenderedScene) -> list[int]:
    """All images are of one city, Scenes."""
    stem = f"{split}/scenes/scenes_000000_{name.rsplit('_', 1)[1]}"
    _png(root / "leftImg8bit" / f"{stem}_leftImg8bit.png", scene.sample.image)
    _png(root / "gtFine" / f"{stem}_gtFine_labelIds.png", _renamed(scene, CITYSCAPES_IDS))
    _png(root / "disparity" / f"{stem}_disparity.png", _stereo(scene))
    return []


def _stereo(scene: RenderedScene) -> NDArray[np.uint16]:
    """``256 d + 1`` of the disparity d that goes with the depth, 0 in the sky and right before the camera."""
    depth_HW = np.asarray(scene.sample.labels["depth"], dtype=np.float64)
    disparity_HW = _BASELINE * _FOCAL * depth_HW.shape[1] / depth_HW
    measured_HW = (depth_HW != INVALID_DEPTH) & (disparity_HW < _MOST_DISPARITY)
    return np.where(measured_HW, np.rint(disparity_HW * 256) + 1, 0).astype(np.uint16)


class Layout(NamedTuple):
    """How to write one image (root, split, name, scene) and, after it, the lists of a split (root, split, images)."""

    image: Callable[[Path, str, str, RenderedScene], list[int]]
    lists: Callable[[Path, str, dict[str, list[int]]], None]


LAYOUTS: dict[str, Layout] = {
    "cityscapes": Layout(_cityscapes, _no_lists),
    "imagefolder": Layout(_imagefolder, _no_lists),
    "nyud": Layout(_nyud, _nyud_lists),
    "pascal-context": Layout(_pascal_context, _pascal_lists),
}


def _renamed(scene: RenderedScene, table: dict[str, int]) -> NDArray[np.uint8]:
    numbers = np.array([table[name] for name in CLASSES], dtype=np.uint8)
    return np.asarray(numbers[np.asarray(scene.sample.labels["semseg"])])


def _encode_normals(scene: RenderedScene) -> NDArray[np.uint8]:
    """``255 (n + 1) / 2``, rounded; the sky becomes mid-grey."""
    normals = np.asarray(scene.sample.labels["normals"], dtype=np.float32)
    return np.asarray(np.rint((normals + 1.0) * 127.5), dtype=np.uint8)


def _annotation(parts_HW: NDArray[np.uint8]) -> NDArray[np.void]:
    """One object per connected figure, or a single object of class 0 when there is nobody."""
    figures_HW, count = connected(parts_HW > 0, structure=np.ones((3, 3)))
    objects = np.zeros((1, max(count, 1)), dtype=_OBJECT_FIELDS)
    if count == 0:
        objects[0, 0] = ("nothing", 0, np.ones(parts_HW.shape, dtype=np.uint8), np.zeros((0, 0)))
        objects["class_ind"][0, 0] = np.array([[0]])
        return objects
    for number in range(count):
        mask_HW = figures_HW == number + 1
        present = [part for part in _PART_NAMES if (parts_HW[mask_HW] == part).any()]
        parts = np.zeros((1, len(present)), dtype=_PART_FIELDS)
        for column, part in enumerate(present):
            parts[0, column] = (_PART_NAMES[part], np.asarray(mask_HW & (parts_HW == part), dtype=np.uint8))
        objects[0, number] = ("person", np.array([[15]]), mask_HW.astype(np.uint8), parts)
    return objects


def _jpeg(path: Path, image: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, quality=95, subsampling=0)


def _png(path: Path, pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _mat(path: Path, variables: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, variables, do_compression=True)


def _lines(path: Path, names: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def _json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
