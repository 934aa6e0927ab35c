"""Predicted maps as PNG files in the formats the field uses, and back.

Legend: C channels, H W rows and columns.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.errors import BadImageError, PipelineError
from pipeline.report.palettes import class_palette
from pipeline.transforms import IGNORE, Array

__all__ = ["FORMATS", "MapFormat", "encode_map", "png_of", "read_map"]

_MILLIMETRES = 1000
_FARTHEST = 65535


class MapFormat(NamedTuple):
    """How a task's maps are stored.

    Attributes:
        mode: Pillow's name of the pixels.
        fill: Of pixels that the view did not show.
        about: For people and for the folder's record.
    """

    mode: str
    fill: int
    about: str


_CLASSES = MapFormat("P", IGNORE, "8-bit class indices with a palette; 255 where the network saw nothing")
_SHARE = MapFormat("L", 0, "8-bit, 255 x probability, rounded down")

FORMATS: Mapping[str, MapFormat] = MappingProxyType(
    {
        "semseg": _CLASSES,
        "human_parts": _CLASSES,
        "sal": _SHARE,
        "normals": MapFormat("RGB", 128, "8-bit x, y, z as 127.5 (n + 1), unit length; 128 128 128 where none"),
        "edge": _SHARE,
        "depth": MapFormat("I;16", 0, "16-bit millimetres, 1 to 65535; 0 where the network saw nothing"),
    }
)
"""Task to the format of its maps."""


def encode_map(task: str, logits_CHW: Tensor, /) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """A task's logits as the numbers of its files.

    Shapes: ``(C, H, W)`` → ``(H, W)``, or ``(H, W, 3)`` for normals.

    Raises:
        PipelineError: A task without a format.
    """
    if task in ("semseg", "human_parts"):
        found = logits_CHW.argmax(0).to(torch.uint8)
    elif task == "normals":
        unit_CHW = torch.nn.functional.normalize(logits_CHW, dim=0)
        found = ((unit_CHW + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0)
    elif task == "sal":
        found = (logits_CHW.softmax(0)[1] * 255).to(torch.uint8)
    elif task == "edge":  # as published, and as odsF is counted: truncated
        found = (logits_CHW[0].sigmoid() * 255).to(torch.uint8)
    elif task == "depth":
        millimetres_HW = (logits_CHW[0].nan_to_num() * _MILLIMETRES).round().clamp(1, _FARTHEST)
        return millimetres_HW.cpu().numpy().astype(np.uint16)
    else:
        raise PipelineError(f"predictions: expected one of {', '.join(FORMATS)}, got task {task!r}")
    return np.ascontiguousarray(found.cpu().numpy())


def png_of(task: str, stored: Array, /, *, dataset: str) -> bytes:
    """What ``encode_map`` gave, as the bytes of a PNG file."""
    image = Image.fromarray(stored)
    if FORMATS[task].mode == "P":
        image.putpalette(class_palette(dataset, task=task).tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def read_map(task: str, path: Path, /) -> Array:
    """A map from its file: class indices, probabilities, unit vectors, or metres with NaN where there are none.

    Shapes: ``(H, W)``, or ``(H, W, 3)`` for normals.

    Raises:
        BadImageError: It cannot be read, or is not in the task's format.
    """
    try:
        with Image.open(path, formats=("PNG",)) as image:
            mode, pixels = image.mode, np.array(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise BadImageError(f"{path}: cannot be read ({error}); delete it and run the same command again") from error
    if mode != FORMATS[task].mode:
        raise BadImageError(f"{path}: expected mode {FORMATS[task].mode}, got {mode}; name another folder to save to")
    if task in ("semseg", "human_parts"):
        return pixels
    if task == "depth":
        return np.where(pixels == 0, np.float32(np.nan), pixels.astype(np.float32) / np.float32(_MILLIMETRES))
    if task == "normals":
        vectors = pixels.astype(np.float32) / np.float32(127.5) - 1
        length = np.linalg.norm(vectors, axis=2, keepdims=True)
        return np.where(length > 0.5, vectors / np.maximum(length, np.float32(1e-6)), np.float32(0))  # 128 is none
    return pixels.astype(np.float32) / np.float32(255)
