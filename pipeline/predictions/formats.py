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
from sak.dense.registry import LABELS

__all__ = ["MapFormat", "encode_map", "format_of", "png_of", "read_map"]

_LARGEST = 65535
_STEPS: Mapping[str, int] = MappingProxyType({"m": 1000})
_OTHER_STEPS = 256  # a unit, as the field stores disparities


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


def format_of(task: str, /) -> MapFormat:
    """The format of a task's maps, which follows from how its labels look.

    Raises:
        PipelineError: There is no such task.
    """
    if task not in LABELS:
        raise PipelineError(f"predictions: expected one of {', '.join(LABELS)}, got task {task!r}")
    label = LABELS[task]
    if label.shown == "classes":
        return MapFormat("P", IGNORE, "8-bit class indices with a palette; 255 where the network saw nothing")
    if label.shown == "directions":
        return MapFormat("RGB", 128, "8-bit x, y, z as 127.5 (n + 1), unit length; 128 128 128 where none")
    if label.shown == "grey":
        return MapFormat("L", 0, "8-bit, 255 x probability, rounded down")
    steps = "millimetres" if label.unit == "m" else f"{_OTHER_STEPS} steps a {label.unit or 'unit'}"
    return MapFormat("I;16", 0, f"16-bit {steps}, 1 to {_LARGEST}; 0 where the network saw nothing")


def encode_map(task: str, logits_CHW: Tensor, /) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """A task's logits as the numbers of its files.

    Shapes: ``(C, H, W)`` → ``(H, W)``, or ``(H, W, 3)`` for directions.

    Raises:
        PipelineError: There is no such task.
    """
    mode = format_of(task).mode
    if mode == "P":
        found = logits_CHW.argmax(0).to(torch.uint8)
    elif mode == "RGB":
        unit_CHW = torch.nn.functional.normalize(logits_CHW, dim=0)
        found = ((unit_CHW + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0)
    elif mode == "L":  # as published, and as odsF is counted: truncated
        share_HW = logits_CHW.softmax(0)[1] if len(logits_CHW) == 2 else logits_CHW[0].sigmoid()
        found = (share_HW * 255).to(torch.uint8)
    else:
        steps_HW = (logits_CHW[0].nan_to_num() * _steps(task)).round().clamp(1, _LARGEST)
        return steps_HW.cpu().numpy().astype(np.uint16)
    return np.ascontiguousarray(found.cpu().numpy())


def _steps(task: str) -> int:
    return _STEPS.get(LABELS[task].unit, _OTHER_STEPS)


def png_of(task: str, stored: Array, /, *, dataset: str) -> bytes:
    """What ``encode_map`` gave, as the bytes of a PNG file."""
    image = Image.fromarray(stored)
    if format_of(task).mode == "P":
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
    wanted = format_of(task).mode
    if mode != wanted:
        raise BadImageError(f"{path}: expected mode {wanted}, got {mode}; name another folder to save to")
    if mode == "P":
        return pixels
    if mode == "I;16":
        return np.where(pixels == 0, np.float32(np.nan), pixels.astype(np.float32) / np.float32(_steps(task)))
    if mode == "RGB":
        vectors = pixels.astype(np.float32) / np.float32(127.5) - 1
        length = np.linalg.norm(vectors, axis=2, keepdims=True)
        return np.where(length > 0.5, vectors / np.maximum(length, np.float32(1e-6)), np.float32(0))  # 128 is none
    return pixels.astype(np.float32) / np.float32(255)
