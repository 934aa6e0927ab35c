"""Random numbers that belong to the rows of a batch, however the batch is split.

A step may be shared out over processes and micro-batches. Each of them draws the numbers of the whole batch, from a
generator in the same state, and takes those of its own rows: no two rows share a number, and no number depends on how
the batch was split. What is drawn is small (a few numbers an image), so drawing all of it costs nothing.

Legend: B rows seen.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Share", "draw_normal"]


class Share(NamedTuple):
    """Which rows of a batch of ``total`` a forward pass sees: those from ``start`` on."""

    start: int
    total: int


def draw_normal(shape: tuple[int, ...], /, *, share: Share | None, like: Tensor) -> Tensor:
    """Standard normal numbers, of the device and type of ``like``.

    Args:
        share: The rows' place in the whole batch; ``None`` where they are all of it.

    Shapes:
        returns: ``shape``, whose first axis is B.
    """
    rows = shape[0]
    start, total = share or (0, rows)
    return torch.randn(total, *shape[1:], device=like.device, dtype=like.dtype)[start : start + rows]
