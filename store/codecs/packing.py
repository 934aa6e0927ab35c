"""Several small integers in one byte, so that a byte-wise entropy coder can spend less than a bit on each.

A Huffman code gives every byte at least one bit. Five digits of -1, 0, 1 in a byte bring that floor to a fifth of one.

Legend: N rows, D digits of a row, K bytes of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from array_api_compat import array_namespace, device

from store.codecs.base import Array

__all__ = ["GROUPS", "Group", "pack", "packed_bytes", "unpack"]


class Group(NamedTuple):
    """``digits`` integers of magnitude at most ``largest`` to ``planes`` bytes."""

    digits: int
    planes: int
    largest: int


GROUPS: Sequence[Group] = (Group(1, 2, 32767), Group(1, 1, 127), Group(2, 1, 7), Group(3, 1, 2), Group(5, 1, 1))
"""From the widest integers to the narrowest. Part of the format: never change an entry."""


def packed_bytes(count: int, group: Group, /) -> int:
    """Bytes that ``count`` integers take."""
    return -(-count // group.digits) * group.planes


def pack(values_ND: Array, group: Group, /) -> Array:
    """Pack integers that are within the group's range.

    Two-byte integers lie as a plane of high bytes and one of low bytes; the last byte is filled up with zeros.

    Shapes: int32 ``(N, D)`` → uint8 ``(N, K)``.
    """
    xp = array_namespace(values_ND)
    shifted = values_ND + (group.largest + group.planes - 1)  # two-byte integers centre on 32768
    if group.planes == 2:
        return xp.astype(xp.concat([shifted // 256, shifted % 256], axis=1), xp.uint8)
    count, digits = values_ND.shape
    missing = -digits % group.digits
    if missing:
        filler = xp.full((count, missing), group.largest, dtype=shifted.dtype, device=device(shifted))
        shifted = xp.concat([shifted, filler], axis=1)
    places = xp.reshape(shifted, (count, -1, group.digits))
    radix = 2 * group.largest + 1
    total = places[:, :, 0]
    for place in range(1, group.digits):
        total = total * radix + places[:, :, place]
    return xp.astype(total, xp.uint8)


def unpack(packed_NK: Array, group: Group, /, *, count: int) -> Array:
    """Inverse of ``pack`` for ``count`` integers a row.

    Shapes: uint8 ``(N, K)`` → int32 ``(N, count)``.
    """
    xp = array_namespace(packed_NK)
    total = xp.astype(packed_NK, xp.int32)
    if group.planes == 2:
        return total[:, :count] * 256 + total[:, count:] - (group.largest + 1)
    radix, places = 2 * group.largest + 1, []
    for _ in range(group.digits):
        places.append(total % radix)
        total = total // radix
    digits = xp.reshape(xp.stack(places[::-1], axis=2), (packed_NK.shape[0], -1))
    return digits[:, :count] - group.largest
