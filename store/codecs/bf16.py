"""Codec ``bf16``: the upper half of a float32, so the range of one at the precision of 8 bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from store.codecs.base import Array, LevelSpec, LevelwiseCodec, PartSpec, require_finite, require_parts

__all__ = ["Bf16"]

_HALF = 0x7FFF  # just below half a unit of the last place kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Bf16(LevelwiseCodec):
    """Brain floats: relative error at most 2^-8, any magnitude that float32 has.

    Zarr v3 has no such data type, so the bits are stored as int16.
    """

    name: ClassVar[str] = "bf16"

    def to_json(self) -> dict[str, Any]:
        """Plain form."""
        return {"name": self.name}

    def assets(self) -> Mapping[str, NDArray[np.generic]]:
        """None."""
        return {}

    def parts(self, level: LevelSpec, /, *, index: int = 0) -> Mapping[str, PartSpec]:
        """``values``: the upper 16 bits of every float32."""
        return {"values": PartSpec(shape=level.shape, dtype="int16", bfloat=True)}

    def encode(self, feat_NCHW: Array, /, *, level: int = 0) -> dict[str, Array]:
        """Round to nearest, ties to even; what would round to infinity is cut to the largest bfloat16.

        Raises:
            StoreError: A value is not finite.
        """
        xp = array_namespace(feat_NCHW)
        values_NCHW = xp.astype(feat_NCHW, xp.float32)
        require_finite(values_NCHW, level=level)
        largest = 3.3895313892515355e38
        bits_NCHW = xp.clip(values_NCHW, -largest, largest).view(xp.int32)
        # Adding just under half a unit, and one more where the last kept bit is odd, carries into the kept bits
        # exactly when rounding to even is upwards. Magnitude and sign are apart, so negative numbers round alike.
        rounded_NCHW = bits_NCHW + (_HALF + ((bits_NCHW >> 16) & 1))
        return {"values": xp.astype(rounded_NCHW >> 16, xp.int16)}

    def decode(self, parts: Mapping[str, Array], /, *, level: int = 0) -> Array:
        """Widen to float32.

        Raises:
            FormatError: The parts are not this codec's.
        """
        require_parts(parts, names=("values",), codec=self.name)
        xp = array_namespace(parts["values"])
        return (xp.astype(parts["values"], xp.int32) << 16).view(xp.float32)
