"""Orthonormal cosine transform of small square blocks of a token grid.

Legend: N rows, C components, H W the token grid, u v a block's frequencies, M blocks of a grid.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import NDArray

from store.codecs.base import Array

__all__ = ["Blocks", "block_sides", "dct_matrix", "from_blocks", "to_blocks"]

_LARGEST = 40
_MOST_PLACED = 64


class Blocks(NamedTuple):
    """Rows and columns of a block."""

    height: int
    width: int


_placed: dict[tuple[Blocks, str], Array] = {}


def block_sides(height: int, width: int, *, side: int) -> Blocks:
    """Sides of the blocks that tile a grid: for each axis its divisor nearest (as a ratio) to ``side``."""
    return Blocks(_nearest_divisor(height, side), _nearest_divisor(width, side))


def to_blocks(feat_NCHW: Array, blocks: Blocks, /) -> Array:
    """Frequencies of every block.

    Shapes: ``(N, C, H, W)`` → ``(N, C * u * v, M)``, blocks row by row.
    """
    xp = array_namespace(feat_NCHW)
    count, components, height, width = feat_NCHW.shape
    rows, columns = height // blocks.height, width // blocks.width
    tiles = xp.reshape(feat_NCHW, (count, components, rows, blocks.height, columns, blocks.width))
    tiles = xp.reshape(xp.permute_dims(tiles, (0, 1, 2, 4, 3, 5)), (count, components, rows * columns, -1))
    freqs = xp.matmul(tiles, _matrix(blocks, feat_NCHW).T)
    return xp.reshape(xp.permute_dims(freqs, (0, 1, 3, 2)), (count, -1, rows * columns))


def from_blocks(freqs: Array, blocks: Blocks, grid: tuple[int, int], /) -> Array:
    """Inverse of ``to_blocks``.

    Shapes: ``(N, C * u * v, M)`` → ``(N, C, *grid)``.
    """
    xp = array_namespace(freqs)
    count, rows, columns = freqs.shape[0], grid[0] // blocks.height, grid[1] // blocks.width
    freqs = xp.reshape(freqs, (count, -1, blocks.height * blocks.width, rows * columns))
    tiles = xp.matmul(xp.permute_dims(freqs, (0, 1, 3, 2)), _matrix(blocks, freqs))
    tiles = xp.reshape(tiles, (count, -1, rows, columns, blocks.height, blocks.width))
    return xp.reshape(xp.permute_dims(tiles, (0, 1, 2, 4, 3, 5)), (count, -1, *grid))


@lru_cache(maxsize=64)
def dct_matrix(size: int, /) -> NDArray[np.float32]:
    """Orthonormal type-II cosine transform, ``(size, size)``; row ``u`` is frequency ``u``."""
    frequency, position = np.arange(size)[:, None], np.arange(size)[None]
    matrix = np.cos(np.pi * (2 * position + 1) * frequency / (2 * size)) * np.sqrt(2 / size)
    matrix[0] /= np.sqrt(2)
    return np.asarray(matrix, dtype=np.float32)


@lru_cache(maxsize=16)
def _kronecker(blocks: Blocks) -> NDArray[np.float32]:
    return np.kron(dct_matrix(blocks.height), dct_matrix(blocks.width))


def _matrix(blocks: Blocks, like: Array) -> Array:
    """Both axes in one ``(u * v, u * v)`` matrix: one large product runs faster than many of 8 x 8.

    Kept where it was last wanted, because a copy to an accelerator from memory that is not page-locked waits for all
    work there.
    """
    xp = array_namespace(like)
    key = (blocks, f"{xp.__name__} {device(like)} {like.dtype}")
    found = _placed.get(key)
    if found is None:
        if len(_placed) >= _MOST_PLACED:
            _placed.clear()
        found = _placed[key] = xp.asarray(_kronecker(blocks), device=device(like), dtype=like.dtype)
    return found


def _nearest_divisor(length: int, side: int) -> int:
    divisors = [size for size in range(1, min(length, _LARGEST) + 1) if length % size == 0]
    return min(divisors, key=lambda size: (abs(np.log(size / side)), size))
