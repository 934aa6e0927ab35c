"""Codec ``int4``: rotated tokens, a scale for every few components, 4 bits a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from store.codecs.base import Array, LevelSpec, LevelwiseCodec, PartSpec, require_finite, require_parts
from store.codecs.rotation import rotate, unrotate
from store.errors import FormatError, StoreError

__all__ = ["Int4"]

STEPS = 7
_LARGEST_FP16 = 65504.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Int4(LevelwiseCodec):
    """Symmetric 4-bit integers, two to a byte: error at most half of a group's largest magnitude over 7.

    ``group`` components of a token share a float16 scale; 0 gives one scale a token. ``rotate`` turns the components
    by a fixed orthonormal transform first, which spreads outliers over their neighbours.

    Raises:
        FormatError: An option is malformed.
    """

    name: ClassVar[str] = "int4"
    group: int = 0
    rotate: bool = True

    def __post_init__(self) -> None:
        if type(self.group) is not int or not 0 <= self.group <= 1 << 16:
            raise FormatError(f"codec int4: group: expected 0 (one scale a token) or more, got {self.group!r}")
        if type(self.rotate) is not bool:
            raise FormatError(f"codec int4: rotate: expected true or false, got {self.rotate!r}")

    def to_json(self) -> dict[str, Any]:
        """Plain form."""
        return {"name": self.name, "group": self.group, "rotate": self.rotate}

    def assets(self) -> Mapping[str, NDArray[np.generic]]:
        """None."""
        return {}

    def parts(self, level: LevelSpec, /, *, index: int = 0) -> Mapping[str, PartSpec]:
        """``values``: components 2i and 2i + 1 in the low and high half of a byte; ``scale``: one float a group."""
        pairs = -(-level.components // 2)
        return {
            "values": PartSpec(shape=(pairs, level.height, level.width), dtype="uint8"),
            "scale": PartSpec(shape=(self._groups(level.components), level.height, level.width), dtype="float16"),
        }

    def encode(self, feat_NCHW: Array, /, *, level: int = 0) -> dict[str, Array]:
        """Rotate, divide by the group's scale and round to even.

        Raises:
            StoreError: A value is not finite or too large for a float16 scale, or the number of components is odd.
        """
        xp = array_namespace(feat_NCHW)
        feat_NCHW = xp.astype(feat_NCHW, xp.float32)
        require_finite(feat_NCHW, level=level)
        count, components, height, width = feat_NCHW.shape
        groups = self._groups(components)
        if components % 2 or (self.group and components % self.group):
            raise StoreError(
                f"level {level}: expected an even number of components that group {self.group} divides for codec int4, "
                f"got {components}; use codec int8 or another group"
            )
        values_NCHW = rotate(feat_NCHW) if self.rotate else feat_NCHW
        grouped_NGSHW = xp.reshape(values_NCHW, (count, groups, components // groups, height, width))
        scale_NG1HW = xp.max(xp.abs(grouped_NGSHW), axis=2, keepdims=True) * (1 / STEPS)
        if float(xp.max(scale_NG1HW)) > _LARGEST_FP16:
            raise StoreError(
                f"level {level}: expected values of at most {_LARGEST_FP16 * STEPS:.0f} for codec int4; use codec bf16"
            )
        scale_NG1HW = xp.astype(scale_NG1HW, xp.float16)
        divisor_NG1HW = xp.astype(scale_NG1HW, xp.float32)
        divisor_NG1HW = xp.where(divisor_NG1HW > 0, divisor_NG1HW, xp.ones_like(divisor_NG1HW))
        digits_NGSHW = xp.clip(xp.round(grouped_NGSHW / divisor_NG1HW), -STEPS, STEPS) + (STEPS + 1)
        digits_NCHW = xp.reshape(xp.astype(digits_NGSHW, xp.uint8), feat_NCHW.shape)
        packed_NCHW = digits_NCHW[:, 0::2] + digits_NCHW[:, 1::2] * 16
        return {"values": packed_NCHW, "scale": xp.reshape(scale_NG1HW, (count, groups, height, width))}

    def decode(self, parts: Mapping[str, Array], /, *, level: int = 0) -> Array:
        """Multiply by the group's scale and rotate back.

        Raises:
            FormatError: The parts are not this codec's.
        """
        require_parts(parts, names=("values", "scale"), codec=self.name)
        packed_NCHW = parts["values"]
        xp = array_namespace(packed_NCHW)
        count, pairs, height, width = packed_NCHW.shape
        groups = parts["scale"].shape[1]
        digits = xp.stack([packed_NCHW % 16, packed_NCHW // 16], axis=2)
        values = xp.astype(xp.reshape(digits, (count, groups, -1, height, width)), xp.float32) - (STEPS + 1)
        values = values * xp.astype(parts["scale"], xp.float32)[:, :, None]
        values_NCHW = xp.reshape(values, (count, 2 * pairs, height, width))
        return unrotate(values_NCHW) if self.rotate else values_NCHW

    def _groups(self, components: int) -> int:
        return max(1, components // self.group) if self.group else 1
