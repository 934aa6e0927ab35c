"""Token sequences and feature maps: the only place that reshapes one into the other or interpolates.

Legend: B batch, N tokens, C channels, H W grid rows and columns, P prefix tokens (CLS and registers).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from sak.errors import SakError

__all__ = [
    "POOLING",
    "crop_map",
    "map_to_tokens",
    "pool_map",
    "resize_map",
    "resize_pos_embed",
    "square_grid",
    "tokens_to_map",
]

POOLING = "area"
"""How ``pool_map`` resamples, as identities of pooled maps record it."""


def tokens_to_map(tokens_BNC: Tensor, grid: tuple[int, int], /) -> Tensor:
    """View row-major tokens as a map, without a copy (the result is laid out channels-last).

    Shapes: ``(B, H * W, C)`` → ``(B, C, H, W)``.

    Raises:
        SakError: the token count is not that of the grid.
    """
    rows, columns = grid
    if tokens_BNC.ndim != 3 or tokens_BNC.shape[1] != rows * columns:
        raise SakError(
            f"expected (B, {rows * columns}, C) tokens for a {rows}x{columns} grid, got {tuple(tokens_BNC.shape)};"
            " pass the grid of the network that made them, without its prefix tokens"
        )
    batch, _, channels = tokens_BNC.shape
    return tokens_BNC.view(batch, rows, columns, channels).permute(0, 3, 1, 2)


def map_to_tokens(feat_BCHW: Tensor, /) -> Tensor:
    """Flatten a map to row-major tokens; the inverse of ``tokens_to_map``.

    Shapes: ``(B, C, H, W)`` → ``(B, H * W, C)``.
    """
    return feat_BCHW.flatten(2).transpose(1, 2)


def resize_map(feat_BCHW: Tensor, size: tuple[int, int], /) -> Tensor:
    """Resize bilinearly with half-pixel centres and no antialiasing, as the published code does everywhere.

    Shapes: ``(B, C, H, W)`` → ``(B, C, *size)``; the same tensor when the size is right already.
    """
    if tuple(feat_BCHW.shape[-2:]) == size:
        return feat_BCHW
    return functional.interpolate(feat_BCHW, size=size, mode="bilinear", align_corners=False)


def crop_map(feat_BCHW: Tensor, boxes_B4: Tensor, size: tuple[int, int], /, *, flips_B: Tensor | None = None) -> Tensor:
    """Cut a box out of each map and resize it bilinearly, as a crop of the image is cut and resized.

    A cell stands for the area of the image that it covers (``align_corners=False``): the map's edges are the image's,
    and a box of the whole map at its own size gives it back. Beyond the centres of the outermost cells their values go
    on. Nothing is antialiased, so that a box should not hold more cells than ``size``.

    Args:
        boxes_B4: Top, left, height and width, as fractions of the image's height and width.
        flips_B: Which of the crops are mirrored left to right.

    Shapes: ``(B, C, H, W)``, ``(B, 4)``, ``(B,)`` bool → ``(B, C, *size)``.

    Raises:
        SakError: Not one box within the image for every map.
    """
    inside = boxes_B4.shape == (len(feat_BCHW), 4) and bool(
        (boxes_B4[:, :2] >= 0).all()
        and (boxes_B4[:, 2:] > 0).all()
        and (boxes_B4[:, :2] + boxes_B4[:, 2:] <= 1 + 1e-5).all()
    )
    if not inside:
        raise SakError(
            f"crop_map: expected {len(feat_BCHW)} boxes of top, left, height, width within 0 to 1, got"
            f" {tuple(boxes_B4.shape)} {boxes_B4.flatten().tolist()[:8]}; divide by the image's height and width"
        )
    boxes_B4 = boxes_B4.to(feat_BCHW, non_blocking=True)  # after the check: on a CPU it makes no device wait
    mirrored_B = torch.zeros(len(feat_BCHW), dtype=torch.bool) if flips_B is None else flips_B
    sign_B = 1 - 2 * mirrored_B.to(feat_BCHW, non_blocking=True)
    theta_B23 = feat_BCHW.new_zeros(len(feat_BCHW), 2, 3)
    theta_B23[:, 0, 0] = boxes_B4[:, 3] * sign_B
    theta_B23[:, 0, 2] = 2 * boxes_B4[:, 1] + boxes_B4[:, 3] - 1
    theta_B23[:, 1, 1] = boxes_B4[:, 2]
    theta_B23[:, 1, 2] = 2 * boxes_B4[:, 0] + boxes_B4[:, 2] - 1
    shape = [len(feat_BCHW), feat_BCHW.shape[1], *size]
    grid_BHW2 = functional.affine_grid(theta_B23, shape, align_corners=False)
    return functional.grid_sample(feat_BCHW, grid_BHW2, mode="bilinear", padding_mode="border", align_corners=False)


def pool_map(feat_BCHW: Tensor, size: tuple[int, int], /) -> Tensor:
    """Average over equal areas; an axis that is within ``size`` already stays as it is.

    A cell of the result is the mean of just the area that it covers, cells at its border counting by their share. Every
    cell of the input thus weighs the same, the map's mean is kept, and nothing is shifted or aliased. Both bilinear
    resizing, which skips cells, and torch's own area mode, whose windows overlap where sizes do not divide, fail that.

    Shapes: ``(B, C, H, W)`` → ``(B, C, min(H, size[0]), min(W, size[1]))``; the same tensor when nothing shrinks.
    """
    rows, columns = feat_BCHW.shape[-2:]
    if columns > size[1]:
        feat_BCHW = feat_BCHW @ _area_weights(columns, size[1]).to(feat_BCHW).T
    if rows > size[0]:
        feat_BCHW = _area_weights(rows, size[0]).to(feat_BCHW) @ feat_BCHW
    return feat_BCHW


def _area_weights(cells: int, bins: int) -> Tensor:
    """Share of each of ``cells`` in the mean over each of ``bins`` that cover the same length, ``(bins, cells)``."""
    edges = torch.arange(bins + 1, dtype=torch.float64)[:, None] * (cells / bins)
    start = torch.arange(cells, dtype=torch.float64)
    overlap = torch.minimum(edges[1:], start + 1) - torch.maximum(edges[:-1], start)
    return overlap.clamp_min(0) / (cells / bins)


def square_grid(tokens: int, /) -> tuple[int, int] | None:
    """The square grid with that many tokens, or None when there is none."""
    side = math.isqrt(tokens)
    return (side, side) if side * side == tokens else None


def resize_pos_embed(
    pos_1NC: Tensor, target: tuple[int, int], /, *, prefix: int, source: tuple[int, int] | None = None
) -> Tensor:
    """Resize a learnt position embedding to another grid; the prefix tokens' part is kept as it is.

    Args:
        target: Grid (rows, columns) wanted.
        prefix: Leading embeddings that belong to CLS and register tokens.
        source: Grid that the embedding has; None takes the square one.

    Shapes: ``(1, P + N, C)`` → ``(1, P + target[0] * target[1], C)``.

    Raises:
        SakError: the embedding does not have the source grid, or it is not square and none was given.

    Source: published stage 2, bicubic without antialiasing (timm's own loader antialiases).
    """
    count = pos_1NC.shape[1] - prefix
    grid = source or square_grid(count)
    if grid is None or grid[0] * grid[1] != count:
        raise SakError(
            f"expected a position embedding of {'a square grid' if source is None else f'{source[0]}x{source[1]}'},"
            f" got {count} positions after {prefix} prefix token(s); give the source grid of the checkpoint"
        )
    if grid == target:
        return pos_1NC
    feat_1CHW = tokens_to_map(pos_1NC[:, prefix:].float(), grid)
    resized_1CHW = functional.interpolate(feat_1CHW, size=target, mode="bicubic", align_corners=False, antialias=False)
    return torch.cat([pos_1NC[:, :prefix], map_to_tokens(resized_1CHW).to(pos_1NC.dtype)], dim=1)
