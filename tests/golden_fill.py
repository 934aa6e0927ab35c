"""The deterministic weights and inputs behind the golden files: every tensor follows from its name and shape."""

from __future__ import annotations

import math
import zlib

import numpy as np
import torch

__all__ = ["fill", "fill_state", "golden_images"]


def fill(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The floating tensor of that state-dict name."""
    draw = np.random.RandomState(zlib.crc32(name.encode()) & 0xFFFFFFFF).standard_normal(shape).astype(np.float32)
    if name.endswith("running_var"):
        draw = 1 + 0.1 * np.abs(draw)
    elif name.endswith("running_mean"):
        draw = 0.1 * draw
    elif name.endswith(".scale") or (len(shape) == 1 and name.endswith("weight")):
        draw = 1 + 0.1 * draw
    elif len(shape) == 1:
        draw = 0.1 * draw
    elif name.endswith(("pos_embed", "cls_token")):
        draw = 0.2 * draw
    else:
        draw = draw / math.sqrt(math.prod(shape[1:]))
    return torch.from_numpy(np.asarray(draw, dtype=np.float32))


def fill_state(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """The whole state dict; counters are integers and zero."""
    return {
        name: torch.zeros((), dtype=torch.int64) if name.endswith("num_batches_tracked") else fill(name, tuple(shape))
        for name, shape in shapes.items()
    }


def golden_images(seed: int, height: int, width: int) -> torch.Tensor:
    """The batch of two that a case was run on."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal((2, 3, height, width)).astype(np.float32))
