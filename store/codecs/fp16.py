"""Codec ``fp16``: half precision, half the bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from store.codecs.base import Array, LevelSpec, LevelwiseCodec, PartSpec, require_finite, require_parts
from store.errors import FormatError, StoreError

__all__ = ["Fp16"]

FP16_MAX = 65504.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp16(LevelwiseCodec):
    """IEEE half precision: relative error at most 2^-11 for values from 6.1e-5 to 65504.

    Raises:
        FormatError: ``clip`` is not a bool.
    """

    name: ClassVar[str] = "fp16"
    clip: bool = False

    def __post_init__(self) -> None:
        if type(self.clip) is not bool:
            raise FormatError(f"codec fp16: clip: expected true or false, got {self.clip!r}")

    def to_json(self) -> dict[str, Any]:
        """Plain form."""
        return {"name": self.name, "clip": self.clip}

    def assets(self) -> Mapping[str, NDArray[np.generic]]:
        """None."""
        return {}

    def parts(self, level: LevelSpec, /, *, index: int = 0) -> Mapping[str, PartSpec]:
        """``values``: the map in half precision."""
        return {"values": PartSpec(shape=level.shape, dtype="float16")}

    def encode(self, feat_NCHW: Array, /, *, level: int = 0) -> dict[str, Array]:
        """Round to half precision.

        Raises:
            StoreError: A value is not finite, or beyond 65504 and ``clip`` is off.
        """
        xp = array_namespace(feat_NCHW)
        values_NCHW = xp.astype(feat_NCHW, xp.float32)
        require_finite(values_NCHW, level=level)
        largest = float(xp.max(xp.abs(values_NCHW)))
        if largest > FP16_MAX and not self.clip:
            raise StoreError(
                f"level {level}: expected values of at most {FP16_MAX:.0f} for codec fp16, got {largest:.6g}; "
                "use codec fp32 or int8, or {name: fp16, clip: true}"
            )
        # xp.float16 is not part of the array API standard, yet NumPy and torch both have it.
        return {"values": xp.astype(xp.clip(values_NCHW, -FP16_MAX, FP16_MAX), xp.float16)}

    def decode(self, parts: Mapping[str, Array], /, *, level: int = 0) -> Array:
        """Widen to float32.

        Raises:
            FormatError: The parts are not this codec's.
        """
        require_parts(parts, names=("values",), codec=self.name)
        xp = array_namespace(parts["values"])
        return xp.astype(parts["values"], xp.float32)
