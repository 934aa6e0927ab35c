"""Codec ``fp32``: exact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from store.codecs.base import Array, LevelSpec, LevelwiseCodec, PartSpec, require_finite, require_parts

__all__ = ["Fp32"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp32(LevelwiseCodec):
    """Exact: float32 in, the same float32 out."""

    name: ClassVar[str] = "fp32"

    def to_json(self) -> dict[str, Any]:
        """Plain form."""
        return {"name": self.name}

    def assets(self) -> Mapping[str, NDArray[np.generic]]:
        """None."""
        return {}

    def parts(self, level: LevelSpec, /, *, index: int = 0) -> Mapping[str, PartSpec]:
        """``values``: the map itself."""
        return {"values": PartSpec(shape=level.shape, dtype="float32")}

    def encode(self, feat_NCHW: Array, /, *, level: int = 0) -> dict[str, Array]:
        """Cast to float32.

        Raises:
            StoreError: A value is not finite.
        """
        xp = array_namespace(feat_NCHW)
        values_NCHW = xp.astype(feat_NCHW, xp.float32)
        require_finite(values_NCHW, level=level)
        return {"values": values_NCHW}

    def decode(self, parts: Mapping[str, Array], /, *, level: int = 0) -> Array:
        """Return the values.

        Raises:
            FormatError: The parts are not this codec's.
        """
        require_parts(parts, names=("values",), codec=self.name)
        xp = array_namespace(parts["values"])
        return xp.astype(parts["values"], xp.float32)
