"""What a teacher costs, counted without allocating its weights: parameters, arithmetic, memory, sizes of its maps.

Legend: H W input rows and columns.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from sak.live_bytes import LiveBytes
from sak.teachers.model import meta_teacher
from sak.teachers.spec import TeacherSpec

__all__ = ["Footprint", "footprint"]


class Footprint(NamedTuple):
    """A teacher's cost for one view.

    Attributes:
        parameters: Of the whole network, without classifier.
        macs: Multiply-adds of one forward to the last level: half of the floating-point operations.
        input: Rows and columns the network sees, padding included.
        maps: Channels, rows and columns of each level.
        activations: Most bytes that tensors of one forward in single precision take at a time, input and maps included,
            weights not; kernels' own workspace, some tens of megabytes, comes on top.
    """

    parameters: int
    macs: int
    input: tuple[int, int]
    maps: tuple[tuple[int, int, int], ...]
    activations: int

    @property
    def values(self) -> int:
        """Values of all maps of a view."""
        return sum(channels * rows * columns for channels, rows, columns in self.maps)


def footprint(spec: TeacherSpec, /, *, view: tuple[int, int]) -> Footprint:
    """Count what a teacher takes for a view of that many rows and columns.

    Raises:
        UnknownNameError: timm has no such model.
        TeacherError: The network cannot be built as asked, or takes no input of this size.
    """
    teacher = meta_teacher(spec)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        maps = teacher(torch.empty((1, 3, *view), dtype=torch.uint8))
        rows, columns = teacher.fit(torch.empty((1, 3, *view))).image_BCHW.shape[-2:]
    shapes = tuple((feat.shape[1], feat.shape[2], feat.shape[3]) for feat in maps)
    parameters = sum(parameter.numel() for parameter in teacher.network.parameters())
    live = LiveBytes()
    # Apart from the count of arithmetic, which takes fused kernels to pieces that would be held in memory.
    with torch.device("meta"), torch.inference_mode(), live:
        teacher(torch.empty((1, 3, *view), dtype=torch.uint8))
    return Footprint(parameters, counter.get_total_flops() // 2, (rows, columns), shapes, live.most)
