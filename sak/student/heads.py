"""Dense heads: four levels of tokens to logits at image size.

Legend: B batch, N patch tokens, C stem width, K output channels, H W image, h w a quarter of it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sak.errors import SakError
from sak.grids import resize_map, tokens_to_map

__all__ = ["Head"]


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
        if width % levels:
            raise SakError(f"head: expected a stem width that {levels} divides, got {width}; choose another embed_dim")
        self.reduce = nn.ModuleList(nn.Linear(width, width // levels) for _ in range(levels))
        self.fuse = nn.Conv2d(width, width, kernel_size=3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.act = nn.GELU()
        self.classify = nn.Conv2d(width, channels, kernel_size=1)

    def forward(self, levels_BNC: list[Tensor], grid: tuple[int, int], image_size: tuple[int, int]) -> Tensor:
        """Predict.

        Shapes: four of ``(B, N, C)`` → ``(B, K, H, W)``.
        """
        quarter = (-(-image_size[0] // 4), -(-image_size[1] // 4))
        reduced = [layer(tokens_BNC) for layer, tokens_BNC in zip(self.reduce, levels_BNC, strict=True)]
        # Bilinear resizing works channel by channel, so the levels are joined first and resized once.
        joined_BChw = resize_map(tokens_to_map(torch.cat(reduced, dim=-1), grid), quarter)
        logits_BKhw: Tensor = self.classify(self.act(self.norm(self.fuse(joined_BChw))))
        return resize_map(logits_BKhw, image_size)
