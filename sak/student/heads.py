"""Dense heads: four levels of tokens to logits at image size.

Legend: B batch, N patch tokens, C stem width, K output channels, H W image, h w a quarter of it, y x the
token grid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from sak.errors import SakError
from sak.grids import resize_map, tokens_to_map

__all__ = ["HEADS", "Head", "LightHead"]


class Head(nn.Module):
    """The published head: reduce each level, upsample to a quarter of the image, fuse by a 3x3 convolution, classify.

    Source: published head. A quarter of the image is exactly
    four times the grid for the published patch size 16; other patch sizes reach the same resolution.
    """

    def __init__(self, width: int, *, channels: int, levels: int = 4) -> None:
        """Make a head from ``levels`` token sets of ``width`` channels to ``channels`` logits.

        Raises:
            SakError: the stem width cannot be shared out among the levels.
        """
        super().__init__()
        self.reduce = _reductions(width, levels=levels)
        self.fuse = nn.Conv2d(width, width, kernel_size=3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.act = nn.GELU()
        self.classify = nn.Conv2d(width, channels, kernel_size=1)

    def forward(self, levels_BNC: list[Tensor], grid: tuple[int, int], image_size: tuple[int, int]) -> Tensor:
        """Predict.

        Shapes: four of ``(B, N, C)`` → ``(B, K, H, W)``.
        """
        # Bilinear resizing works channel by channel, so the levels are joined first and resized once.
        joined_BChw = resize_map(_joined(self.reduce, levels_BNC, grid), _quarter(image_size))
        logits_BKhw: Tensor = self.classify(self.act(self.norm(self.fuse(joined_BChw))))
        return resize_map(logits_BKhw, image_size)


class LightHead(nn.Module):
    """The published head with its 3x3 convolution at the token grid, and a depthwise one at a quarter of the image.

    Ours: a vision transformer has nothing finer than its tokens, so at the quarter the published convolution works on
    maps that are smooth. Cost and quality: docs/studies/heads.md.
    """

    def __init__(self, width: int, *, channels: int, levels: int = 4) -> None:
        """Make a head as ``Head``.

        Raises:
            SakError: as ``Head``.
        """
        super().__init__()
        self.reduce = _reductions(width, levels=levels)
        self.fuse = nn.Conv2d(width, width, kernel_size=3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.act = nn.GELU()
        self.refine = nn.Conv2d(width, width, kernel_size=3, padding=1, groups=width)
        self.fine_norm = nn.BatchNorm2d(width)
        self.classify = nn.Conv2d(width, channels, kernel_size=1)

    def forward(self, levels_BNC: list[Tensor], grid: tuple[int, int], image_size: tuple[int, int]) -> Tensor:
        """Predict.

        Shapes: four of ``(B, N, C)`` → ``(B, K, H, W)``.
        """
        fused_BCyx = self.act(self.norm(self.fuse(_joined(self.reduce, levels_BNC, grid))))
        fine_BChw = self.refine(resize_map(fused_BCyx, _quarter(image_size)))
        logits_BKhw: Tensor = self.classify(self.act(self.fine_norm(fine_BChw)))
        return resize_map(logits_BKhw, image_size)


HEADS: Mapping[str, Callable[..., nn.Module]] = MappingProxyType({"published": Head, "light": LightHead})
"""What ``StudentSpec.head`` names."""


def _reductions(width: int, *, levels: int) -> nn.ModuleList:
    if width % levels:
        raise SakError(f"head: expected a stem width that {levels} divides, got {width}; choose another embed_dim")
    return nn.ModuleList(nn.Linear(width, width // levels) for _ in range(levels))


def _joined(reduce: nn.ModuleList, levels_BNC: list[Tensor], grid: tuple[int, int]) -> Tensor:
    """All levels, reduced, as one map ``(B, C, y, x)``."""
    reduced = [layer(tokens_BNC) for layer, tokens_BNC in zip(reduce, levels_BNC, strict=True)]
    return tokens_to_map(torch.cat(reduced, dim=-1), grid)


def _quarter(image_size: tuple[int, int]) -> tuple[int, int]:
    return -(-image_size[0] // 4), -(-image_size[1] // 4)
