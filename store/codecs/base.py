"""What every codec offers, and the checks that all of them share.

N is rows, C components, H and W the token grid.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from store.errors import FormatError, StoreError

__all__ = [
    "Array",
    "Codec",
    "Fitter",
    "LevelSpec",
    "LevelwiseCodec",
    "PartSpec",
    "require_finite",
    "require_levels",
    "require_parts",
]

Array: TypeAlias = Any
"""A NumPy array or a torch tensor on any device: whatever the array API standard covers."""


_MAX_LEVEL_VALUES = 1 << 26
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
    cuts: tuple[int, ...] = ()
    """Byte offsets at which a row's statistics change: the byte codec starts a new table there."""
    bfloat: bool = False
    """Whether the integers are the bits of bfloat16 numbers."""

    @property
    def exponent(self) -> int:
        """The bits of a number that are all set in NaN and infinity; 0 where every pattern is a number."""
        return 0x7F80 if self.bfloat else {"float16": 0x7C00, "float32": 0x7F800000}.get(self.dtype, 0)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row before the byte codec."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


class Codec(Protocol):
    """How float feature maps become stored numbers and back.

    Implementations are frozen dataclasses that validate themselves. Their arithmetic is written once against the array
    API, so that it runs where the teacher or the loss is. A row's levels are encoded together, because a codec may
    predict one from another; most treat each alone (``LevelwiseCodec``). A fitted codec takes its arrays as a field
    named ``fitted`` and returns them from ``assets``.
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

    def parts(self, level: LevelSpec, /, *, index: int = 0) -> Mapping[str, PartSpec]:
        """Stored arrays of level ``index``, the main one first under ``values``.

        Raises:
            FormatError: The codec was fitted to other levels.
        """
        ...

    def needed_levels(self, levels: Sequence[int], /) -> tuple[int, ...]:
        """Levels whose parts decoding these takes, ascending."""
        ...

    def encode_levels(self, feats: Sequence[Array], /) -> list[dict[str, Array]]:
        """Stored arrays of a batch: of each level, float ``(N, C, H, W)``, in the input's namespace and on its device.

        Raises:
            StoreError: A value cannot be represented; the message names the level.
        """
        ...

    def decode_levels(self, parts: Mapping[int, Mapping[str, Array]], /, *, levels: Sequence[int]) -> list[Array]:
        """For each asked level float32 ``(N, C, H, W)``, in the parts' namespace and on their device.

        Args:
            parts: Stored arrays of at least ``needed_levels(levels)``.

        Raises:
            FormatError: The parts are not this codec's, or a needed level is absent.
        """
        ...


class LevelwiseCodec(ABC):
    """A codec that treats every level alone: subclasses encode and decode one."""

    @abstractmethod
    def encode(self, feat_NCHW: Array, /, *, level: int = 0) -> dict[str, Array]:
        """Stored arrays of a batch of one level.

        Raises:
            StoreError: A value cannot be represented; the message names the level.
        """

    @abstractmethod
    def decode(self, parts: Mapping[str, Array], /, *, level: int = 0) -> Array:
        """Float32 ``(N, C, H, W)``.

        Raises:
            FormatError: The parts are not this codec's.
        """

    def needed_levels(self, levels: Sequence[int], /) -> tuple[int, ...]:
        """The levels themselves."""
        return tuple(sorted(levels))

    def encode_levels(self, feats: Sequence[Array], /) -> list[dict[str, Array]]:
        """Each level on its own.

        Raises:
            StoreError: As in ``encode``.
        """
        return [self.encode(feat, level=level) for level, feat in enumerate(feats)]

    def decode_levels(self, parts: Mapping[int, Mapping[str, Array]], /, *, levels: Sequence[int]) -> list[Array]:
        """Each level on its own.

        Raises:
            FormatError: As in ``decode``, or a level is absent.
        """
        require_levels(parts, levels=levels)
        return [self.decode(parts[level], level=level) for level in levels]


class Fitter(Protocol):
    """Fits a codec to a sample of rows, in bounded memory.

    Give it the same rows ``passes`` times, in batches of any size and the same order, and end each pass. Several may
    share a pass: each share goes to a ``part`` of its own, in whatever process, and the parts' ``sums`` are merged in
    the order of the rows, so that who took which share shows in no bit of the codec.
    """

    @property
    def sums(self) -> Mapping[str, NDArray[np.float64]]:
        """What was added in this pass: all that another fitter needs to know of it."""
        ...

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

    def part(self) -> Fitter:
        """A fitter in the same pass that has seen nothing of it."""
        ...

    def merge(self, sums: Mapping[str, NDArray[np.float64]], /) -> None:
        """Add the ``sums`` of a part."""
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


def require_levels(parts: Mapping[int, Mapping[str, Array]], /, *, levels: Sequence[int]) -> None:
    """Check that the parts of all levels are there.

    Raises:
        FormatError: Some are absent.
    """
    absent = [level for level in levels if level not in parts]
    if absent:
        raise FormatError(f"decoding: expected the parts of levels {sorted(levels)}, got none of {absent}")
