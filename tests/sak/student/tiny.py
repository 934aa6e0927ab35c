"""A student small enough to build in every test."""

from __future__ import annotations

from dataclasses import replace

import torch

from sak.spec import StudentSpec

__all__ = ["GRID", "IMAGE_SIZE", "PLAIN", "STAGE1", "STAGE2", "WIDTH", "images"]

IMAGE_SIZE = (16, 24)
GRID = (2, 3)
WIDTH = 32
STAGE1 = StudentSpec(
    stem="vit_tiny_patch16_224",
    image_size=IMAGE_SIZE,
    stem_overrides={"patch_size": 8, "embed_dim": WIDTH, "depth": 5, "num_heads": 2},
    teacher_widths={"sam": 24, "clip": 40},
    aligners=True,
)
STAGE2 = replace(STAGE1, tasks={"semseg": 12, "normals": 3, "edge": 1})
PLAIN = replace(STAGE2, paths="none", router="none")


def images(batch: int = 2) -> torch.Tensor:
    """Standard normal images, the same each time."""
    return torch.randn(batch, 3, *IMAGE_SIZE, generator=torch.Generator().manual_seed(0))
