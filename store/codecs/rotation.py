"""A fixed orthonormal rotation of a token's components, as cheap as additions.

Legend: N rows, C components, H and W the token grid.
"""

from __future__ import annotations

from array_api_compat import array_namespace

from store.codecs.base import Array

__all__ = ["rotate", "unrotate"]

_LARGEST = 256


def rotate(feat_NCHW: Array, /) -> Array:
    """Walsh-Hadamard transform over blocks of components: the largest power of two that divides them, at most 256.

    The matrix has entries of one magnitude, so that a single large component is spread over its whole block, and the
    largest magnitude of a block, which sets a quantiser's step, comes down.

    Shapes: ``(N, C, H, W)`` → the same.
    """
    xp = array_namespace(feat_NCHW)
    count, components, height, width = feat_NCHW.shape
    side = _side(components)
    values = xp.reshape(feat_NCHW, (count, components // side, side, height, width))
    half = 1
    while half < side:
        pairs = xp.reshape(values, (count, components // side, side // (2 * half), 2, half, height, width))
        first, second = pairs[:, :, :, 0], pairs[:, :, :, 1]
        values = xp.reshape(xp.stack([first + second, first - second], axis=3), values.shape)
        half *= 2
    return xp.reshape(values, feat_NCHW.shape) * side**-0.5


def unrotate(feat_NCHW: Array, /) -> Array:
    """Inverse of ``rotate``: a Walsh-Hadamard matrix is its own, up to scale.

    Shapes: ``(N, C, H, W)`` → the same.
    """
    return rotate(feat_NCHW)


def _side(components: int) -> int:
    side = 1
    while components % (2 * side) == 0 and 2 * side <= _LARGEST:
        side *= 2
    return side
