"""A teacher run over rows of a view set: what extraction, fitting and tuning share.

Legend: N rows, C channels, H W rows and columns of an image, h w of a map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from pipeline.loader import load_samples
from pipeline.tensors import to_tensors
from sak.teachers.model import Teacher
from store.codecs.base import LevelSpec
from store.spec import ColumnSpec
from store.viewset import ViewSet

__all__ = ["Parts", "decode_maps", "device_of", "encode_maps", "load_pixels", "probe_levels", "run_teacher"]

Parts: TypeAlias = list[dict[str, Tensor]]
"""Stored arrays of a batch: for each level part name to tensor."""


def device_of(teacher: Teacher, /) -> torch.device:
    """Where a teacher's weights are."""
    return next(teacher.parameters()).device


def load_pixels(view_set: ViewSet, rows: Sequence[int], /) -> Tensor:
    """Pixels of usable rows, in the order asked for.

    Shapes: ``(N, 3, H, W)`` uint8.

    Raises:
        StoreError: A row is not committed, or its bytes have changed.
    """
    return to_tensors(load_samples(view_set, rows, tasks=())).pixels


def run_teacher(teacher: Teacher, pixels_N3HW: Tensor, /) -> list[Tensor]:
    """A teacher's maps, where the teacher is.

    Shapes: ``(N, 3, H, W)`` uint8 → for each level ``(N, C, h, w)`` float32.

    Raises:
        TeacherError: The network takes no input of this size, or has no map as large as its grid.
    """
    with torch.inference_mode():
        return teacher.forward(pixels_N3HW.to(device_of(teacher)))


def probe_levels(teacher: Teacher, /, *, size: tuple[int, int]) -> tuple[LevelSpec, ...]:
    """Shapes of a teacher's maps of views of one size (height, width).

    Raises:
        TeacherError: As ``run_teacher``.
    """
    probe = torch.zeros((1, 3, *size), dtype=torch.uint8)  # only shapes are asked
    return tuple(
        LevelSpec(components=feat.shape[1], height=feat.shape[2], width=feat.shape[3])
        for feat in run_teacher(teacher, probe)
    )


def encode_maps(spec: ColumnSpec, feats: Sequence[Tensor], /) -> Parts:
    """Stored arrays of a batch of maps, where the maps are; in halves where a GPU's memory holds no whole.

    Raises:
        StoreError: The codec cannot represent them; names teacher and level.
        torch.OutOfMemoryError: Memory does not hold what a single row takes.
    """
    try:
        return spec.encode_levels(feats)
    except torch.OutOfMemoryError:
        if len(feats[0]) == 1:
            raise
    torch.cuda.empty_cache()
    half = len(feats[0]) // 2
    one, two = (encode_maps(spec, [feat[rows] for feat in feats]) for rows in (slice(half), slice(half, None)))
    return [
        {name: torch.cat([value, other[name]]) for name, value in level.items()}
        for level, other in zip(one, two, strict=True)
    ]


def decode_maps(spec: ColumnSpec, parts: Sequence[Mapping[str, Tensor]], /) -> list[Tensor]:
    """Maps of a batch of stored arrays of all levels, where the arrays are.

    Shapes: for each level ``(N, C, h, w)`` float32.

    Raises:
        FormatError: The parts are not the codec's.
    """
    return spec.decode_levels(dict(enumerate(parts)))
