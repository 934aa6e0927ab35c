"""Codec ``int8``: one symmetric scale per token, components rounded to -127..127."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from store.codecs.base import Array, LevelSpec, LevelwiseCodec, PartSpec, require_finite, require_parts
from store.errors import FormatError, StoreError

__all__ = ["Int8"]

STEPS = 127
_LARGEST_FP16 = 65504.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8(LevelwiseCodec):
    """Symmetric 8-bit integers: the error of a component is at most half its token's largest magnitude over 127.

    Raises:
        FormatError: ``scale`` is neither ``float32`` nor ``float16``.
    """

    name: ClassVar[str] = "int8"
    scale: str = "float32"

    def __post_init__(self) -> None:
        if self.scale not in ("float32", "float16"):
            raise FormatError(f"codec int8: scale: expected float32 or float16, got {self.scale!r}")

    def to_json(self) -> dict[str, Any]:
        """Plain form."""
        return {"name": self.name, "scale": self.scale}

    def assets(self) -> Mapping[str, NDArray[np.generic]]:
        """None."""
        return {}

    def parts(self, level: LevelSpec, /, *, index: int = 0) -> Mapping[str, PartSpec]:
        """``values``: integers; ``scale``: one float per token."""
        return {
            "values": PartSpec(shape=level.shape, dtype="int8"),
            "scale": PartSpec(shape=(1, level.height, level.width), dtype=self.scale),
        }

    def encode(self, feat_NCHW: Array, /, *, level: int = 0) -> dict[str, Array]:
        """Divide by the token's scale and round to even.

        Raises:
            StoreError: A value is not finite, or too large for a float16 scale.
        """
        xp = array_namespace(feat_NCHW)
        feat_NCHW = xp.astype(feat_NCHW, xp.float32)
        require_finite(feat_NCHW, level=level)
        # A product, not a quotient: some devices turn division by a constant into one, and the bytes would differ.
        scale_N1HW = xp.max(xp.abs(feat_NCHW), axis=1, keepdims=True) * (1 / STEPS)
        if self.scale == "float16":
            largest = float(xp.max(scale_N1HW))
            if largest > _LARGEST_FP16:
                raise StoreError(
                    f"level {level}: expected values of at most {_LARGEST_FP16 * STEPS:.0f} for float16 scales, "
                    f"got {largest * STEPS:.6g}; use codec {{name: int8, scale: float32}}"
                )
            scale_N1HW = xp.astype(scale_N1HW, xp.float16)
        divisor_N1HW = xp.astype(scale_N1HW, xp.float32)
        divisor_N1HW = xp.where(divisor_N1HW > 0, divisor_N1HW, xp.ones_like(divisor_N1HW))
        values_NCHW = xp.clip(xp.round(feat_NCHW / divisor_N1HW), -STEPS, STEPS)
        return {"values": xp.astype(values_NCHW, xp.int8), "scale": scale_N1HW}

    def decode(self, parts: Mapping[str, Array], /, *, level: int = 0) -> Array:
        """Multiply by the token's scale.

        Raises:
            FormatError: The parts are not this codec's.
        """
        require_parts(parts, names=("values", "scale"), codec=self.name)
        xp = array_namespace(parts["values"])
        return xp.astype(parts["values"], xp.float32) * xp.astype(parts["scale"], xp.float32)
