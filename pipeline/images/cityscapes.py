"""Cityscapes, as it is distributed, with two tasks: 19 classes and the disparity of the stereo pair.

leftImg8bit/{train,val}/<city>/<city>_<seq>_<frame>_leftImg8bit.png        images
gtFine/{train,val}/<city>/<city>_<seq>_<frame>_gtFine_labelIds.png         label ids 0 to 33, of which 19 are classes
disparity/{train,val}/<city>/<city>_<seq>_<frame>_disparity.png            16 bits: 256 d + 1, 0 without measurement
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BadImageError, DataError
from pipeline.images.files import decode_map, inside, read_file, read_png_map
from pipeline.images.labelled import Decoders, LabelledFolder
from sak.dense.disparity import INVALID

__all__ = ["CLASS_IDS", "Cityscapes"]

CLASS_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""Label id of each class, road to bicycle; every other id is left out of training and scores."""

_LAST_ID = 33
_IGNORE = 255
_IMAGE = "_leftImg8bit.png"
_LABEL = "_gtFine_labelIds.png"
_STEPS = 256.0  # of a pixel


class Cityscapes(LabelledFolder):
    """One split of Cityscapes; keys are ``<split>/<city>/<city>_<seq>_<frame>``."""

    dataset = "cityscapes"
    tasks = ("semseg", "disparity")
    layout = (
        "the Cityscapes layout: leftImg8bit/{train,val}/CITY/NAME_leftImg8bit.png, and below gtFine and disparity"
        " NAME_gtFine_labelIds.png and NAME_disparity.png alike"
    )
    published = MappingProxyType({"train": 2975, "val": 500})
    marks = ("leftImg8bit",)

    def _ids(self, split: str) -> list[str]:
        """Names that have an image or a label: there is no list by which a missing one could be found."""
        if not (self._root / "leftImg8bit" / split).is_dir():
            raise DataError(f"{self._root}/leftImg8bit/{split}: folder not found; expected {self.layout}")
        names = set()
        for folder, ending in (("leftImg8bit", _IMAGE), ("gtFine", _LABEL)):
            base = self._root / folder
            found = [inside(path, root=self._root) for path in base.glob(f"{split}/*/*{ending}")]
            names |= {path.relative_to(base).as_posix().removesuffix(ending) for path in found}
        return sorted(names)

    def _files(self, key: str) -> Mapping[str, Path]:
        return {
            "image": self._root / "leftImg8bit" / f"{key}{_IMAGE}",
            "semseg": self._root / "gtFine" / f"{key}{_LABEL}",
            "disparity": self._root / "disparity" / f"{key}_disparity.png",
        }

    def _labels(self, files: Mapping[str, Path], *, size: tuple[int, int] | None) -> Decoders:
        return {
            "semseg": lambda: _classes(files["semseg"]),
            "disparity": lambda: _disparity(files["disparity"]),
        }


def _classes(path: Path) -> NDArray[np.uint8]:
    ids = read_png_map(path)
    if ids.max(initial=0) > _LAST_ID:
        raise BadImageError(
            f"{path}: expected label ids 0 to {_LAST_ID}, got {ids.max()}; is it another kind of label?"
        )
    table = np.full(_LAST_ID + 1, _IGNORE, dtype=np.uint8)
    table[list(CLASS_IDS)] = np.arange(len(CLASS_IDS), dtype=np.uint8)
    return np.asarray(table[ids])


def _disparity(path: Path) -> NDArray[np.float32]:
    """Pixels; 255.0 without measurement."""
    # Which of the two modes a grey PNG of 16 bits gets depends on Pillow's version.
    stored_HW = decode_map(read_file(path), where=str(path), modes=("I;16", "I")).astype(np.float32)
    return np.where(stored_HW > 0, (stored_HW - np.float32(1.0)) / np.float32(_STEPS), np.float32(INVALID))
