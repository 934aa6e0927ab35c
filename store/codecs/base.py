"""What every codec offers, and the checks that all of them share.

N is rows, C components, H and W the token grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from store.errors import FormatError, StoreError

__all__ = ["Array", "Codec", "Fitter", "LevelSpec", "PartSpec", "require_finite", "require_parts"]

Array: TypeAlias = Any
"""A NumPy array or a torch tensor on any device: whatever the array API standard covers."""


_MAX_LEVEL_VALUES = 1 << 28
"""A bound on what a hostile store can make a reader allocate for one row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelSpec:
    """Shape of one level's map: ``(components, height, width)``.

    Raises:
        FormatError: A size is not a positive integer of a sane magnitude.
    """

    components: int
    height: int
    width: int

    def __post_init__(self) -> None:
        for size in self.shape:
            if type(size) is not int or not 1 <= size <= 1 << 20:
                raise FormatError(f"level: expected sizes from 1 to {1 << 20}, got {self.shape}")
        if self.values > _MAX_LEVEL_VALUES:
            raise FormatError(f"level: expected at most {_MAX_LEVEL_VALUES} values a row, got {self.shape}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(C, H, W)``."""
        return (self.components, self.height, self.width)

    @property
    def values(self) -> int:
        """Numbers in one row's map."""
        return self.components * self.height * self.width

    def to_json(self) -> dict[str, int]:
        """Plain form."""
        return {"components": self.components, "height": self.height, "width": self.width}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], /) -> LevelSpec:
        """Inverse of ``to_json``.

        Raises:
            FormatError: Keys are missing or unknown, or a size is not sane.
        """
        if not isinstance(value, Mapping) or set(value) != {"components", "height", "width"}:
            raise FormatError(f"level: expected components, height and width, got {value!r}")
        return cls(components=value["components"], height=value["height"], width=value["width"])


@dataclass(frozen=True, slots=True, kw_only=True)
class PartSpec:
    """One stored array of an encoded level, without its leading row axis."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def row_bytes(self) -> int:
        """Bytes of one row before the byte codec."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


class Codec(Protocol):
    """How a float feature map becomes stored numbers and back.

    Implementations are frozen dataclasses that validate themselves. ``encode`` and ``decode`` are written once against
    the array API, so that they run where the teacher or the loss is; ``level`` selects fitted assets and names the
    level in messages. A fitted codec takes its arrays as a field named ``fitted`` and returns them from ``assets``.
    """

    @property
    def name(self) -> str:
        """Name in the registry."""
        ...

    def to_json(self) -> dict[str, Any]:
        """``{"name": ..., options}``; with ``assets`` all that decoding needs."""
        ...

    def assets(self) -> Mapping[str, NDArray[np.generic]]:
        """Fitted arrays that decoding needs beyond the options; empty for most codecs."""
        ...

    def parts(self, level: LevelSpec, /) -> Mapping[str, PartSpec]:
        """Stored arrays of one level, the main one first under ``values``."""
        ...

    def encode(self, feat_NCHW: Array, /, *, level: int = 0) -> dict[str, Array]:
        """Stored arrays of a batch, in the input's namespace and on its device.

        Raises:
            StoreError: A value cannot be represented; the message names the level.
        """
        ...

    def decode(self, parts: Mapping[str, Array], /, *, level: int = 0) -> Array:
        """Float32 ``(N, C, H, W)``, in the parts' namespace and on their device.

        Raises:
            FormatError: The parts are not this codec's.
        """
        ...


class Fitter(Protocol):
    """Fits a codec to a sample of rows, in bounded memory.

    Give it the same rows ``passes`` times, in batches of any size and the same order, and end each pass.
    """

    @property
    def rows(self) -> int:
        """Calibration rows wanted; fewer are used where there are fewer."""
        ...

    @property
    def passes(self) -> int:
        """How often the sample is to be shown."""
        ...

    def add(self, feats: Sequence[Array], /) -> None:
        """Take one batch: for each level float ``(N, C, H, W)``, NumPy or torch on any device.

        Raises:
            StoreError: The shapes are not the levels', or a value is not finite.
        """
        ...

    def end_pass(self) -> None:
        """End a pass over the sample."""
        ...

    def codec(self) -> Codec:
        """The fitted codec, after the last pass.

        Raises:
            StoreError: A pass is missing, or the sample was empty.
        """
        ...


def require_finite(feat_NCHW: Array, /, *, level: int) -> None:
    """Refuse NaN and infinity: stored, they would poison a loss long after their cause is gone.

    Raises:
        StoreError: A value is not finite.
    """
    xp = array_namespace(feat_NCHW)
    finite = xp.isfinite(feat_NCHW)
    if not bool(xp.all(finite)):
        bad = int(xp.sum(xp.astype(~finite, xp.int64)))
        raise StoreError(
            f"level {level}: expected finite features, got {bad} NaN or infinite values of {feat_NCHW.shape}; "
            "run the teacher in float32 or check its weights"
        )


def require_parts(parts: Mapping[str, Array], /, *, names: tuple[str, ...], codec: str) -> None:
    """Check that an encoded level has exactly a codec's arrays.

    Raises:
        FormatError: An array is missing or unknown.
    """
    if set(parts) != set(names):
        raise FormatError(f"codec {codec}: expected parts {sorted(names)}, got {sorted(parts)}")
