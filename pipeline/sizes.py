"""Bytes: as people write them, and those of a row of maps under a codec that is not made yet."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

from store.codecs.base import LevelSpec
from store.codecs.registry import CodecChoice, choice_json, choose_codec, is_fitted

__all__ = ["KLT_BITS", "Basis", "RowSize", "nominal_bits", "parse_bytes", "row_size"]

KLT_BITS = 1.3
"""Bits a value of ``klt`` at its default error, measured on SAM2-Hiera maps (docs/studies/codec_search.md)."""

_KLT_DEFAULT_ERROR = 0.15
_KLT_COARSE = (0.3, 0.48)  # another error and its bits, from the same study: their logarithm falls about evenly
_MOST_BITS = 16.0

Basis: TypeAlias = Literal["counted", "measured", "stored", "nominal"]
"""How a size is known: from shapes alone, from a sample, from rows that are stored, or from other teachers' maps."""

_BYTES = re.compile(r"\s*(?P<count>\d+(?:\.\d*)?|\.\d+)\s*(?P<unit>[kmgtp]?)(?P<binary>i?)b?\s*", re.IGNORECASE)
_UNITS = "kmgtp"


class RowSize(NamedTuple):
    """Bytes that a row of maps takes.

    Attributes:
        stored: In the store; of codecs that are not fitted before the byte codec, which takes some off.
        held: In memory, before the byte codec.
    """

    stored: float
    held: float
    basis: Basis


def parse_bytes(value: str | int | float, /, *, key: str) -> int:
    """A number of bytes: ``2TB``, ``1.5 GiB``, ``500``.

    Raises:
        ValueError: It is no such number, or 0.
    """
    found = _BYTES.fullmatch(str(value))
    if found is None:
        raise ValueError(f"{key}: expected bytes such as 2TB, 16GB or 512MiB, got {value!r}")
    unit, base = found["unit"].lower(), 1024 if found["binary"] else 1000
    count = int(float(found["count"]) * base ** (_UNITS.index(unit) + 1 if unit else 0))
    if count < 1:
        raise ValueError(f"{key}: expected at least one byte, got {value!r}")
    return count


def row_size(levels: Sequence[LevelSpec], /, *, codec: CodecChoice) -> RowSize:
    """What a row takes, from its shapes alone; nominal for codecs that are fitted to data.

    Raises:
        FormatError: The choice is no codec's.
    """
    if is_fitted(codec):
        values = sum(level.values for level in levels)
        # Fitted codecs pack integers of at most a byte.
        return RowSize(values * nominal_bits(codec) / 8, values, "nominal")
    made = choose_codec(codec)
    parts = [part for index, level in enumerate(levels) for part in made.parts(level, index=index).values()]
    size = sum(part.row_bytes for part in parts)
    return RowSize(size, size, "counted")


def nominal_bits(codec: CodecChoice, /) -> float:
    """Bits a value of a fitted codec: what ``klt`` took on SAM2-Hiera maps at two errors, carried to its own."""
    error = float(choice_json(codec).get("error", _KLT_DEFAULT_ERROR))
    coarse_error, coarse_bits = _KLT_COARSE
    share = (error - _KLT_DEFAULT_ERROR) / (coarse_error - _KLT_DEFAULT_ERROR)
    return float(min(_MOST_BITS, KLT_BITS * (coarse_bits / KLT_BITS) ** share))
