"""What every backend offers: where a column's rows lie in its files, and how a row's bytes become numbers."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from store.codecs.base import PartSpec

__all__ = ["Backend", "Decoder", "Extents", "LevelArray", "Readable", "ShardArray", "little_endian", "locate"]

Decoder: TypeAlias = Callable[[bytes, NDArray[np.uint8]], None]
"""Checks a row's stored bytes and unpacks them into a flat array of exactly the row's size; ValueError says what is
wrong. It never allocates more than that size, whatever the bytes claim."""


class LevelArray(NamedTuple):
    """One stored array of a column: which part of which level, and its name in the column."""

    level: int
    part: str
    name: str
    spec: PartSpec


class ShardArray(NamedTuple):
    """One stored array's rows of one part.

    Shapes:
        values: ``(rows of the part, ...)``.
    """

    array: LevelArray
    values: NDArray[np.generic]


class Extents(NamedTuple):
    """Where the rows of one array lie in one file, by row of the part; a size of 0 means that the file does not say.

    Compact arrays of integers: quicker than NumPy's where single numbers are taken out, and that is all that is done.
    """

    offsets: Sequence[int]
    sizes: Sequence[int]


class Readable(Protocol):
    """A file that is read by position; threads may share it."""

    @property
    def size(self) -> int:
        """Bytes in it."""
        ...

    def read(self, offset: int, size: int, /) -> bytes:
        """Bytes from a position; fewer only where the file ends."""
        ...


class Backend(Protocol):
    """How a column's stored arrays become files. It holds no state and touches no storage itself.

    Equal values give equal bytes. Every row is stored, even one of zeros, so that an absent row is always an error.
    """

    @property
    def name(self) -> str:
        """Name in the registry, and in ``column.json``."""
        ...

    @property
    def gap(self) -> int:
        """Bytes between rows that are neighbours in a file, at most; a sequential read takes them along."""
        ...

    def metadata(self, arrays: Sequence[LevelArray], /, *, rows: int, rows_per_shard: int) -> dict[str, bytes]:
        """Array name to its Zarr metadata; empty where the arrays are no Zarr arrays."""
        ...

    def path(self, array: LevelArray, part: int, /) -> str:
        """File inside the column that holds an array's rows of one part."""
        ...

    def pack(
        self, part: int, arrays: Sequence[ShardArray], /, *, rows: range, rows_per_shard: int, threads: int
    ) -> Iterator[tuple[str, bytes]]:
        """Paths and contents of one part's files, made one at a time."""
        ...

    def index(
        self, file: Readable, arrays: Sequence[LevelArray], /, *, rows: range, rows_per_shard: int
    ) -> Mapping[str, Extents]:
        """Where rows lie in one file, by name of array.

        Args:
            arrays: All that share the file, in the column's order.
            rows: The file's rows of the whole array.

        Raises:
            ValueError: The file is not what ``pack`` writes.
            OSError: It cannot be read.
        """
        ...

    def decoder(self, spec: PartSpec, /) -> Decoder:
        """What unpacks a row of an array; threads may share it."""
        ...


def little_endian(values: NDArray[np.generic], /) -> NDArray[np.generic]:
    """The same numbers, contiguous and in little-endian order."""
    return np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<"), copy=False)


def locate(offsets: NDArray[np.uint64], sizes: NDArray[np.uint64], /, *, end: int, largest: int) -> Extents:
    """Extents of what lies before ``end`` and is no larger than a row can be; what does not is as good as absent."""
    limit = np.uint64(end)
    inside = (offsets <= limit) & (sizes <= np.uint64(largest))
    inside &= sizes <= limit - np.minimum(offsets, limit)  # a sum of hostile numbers could wrap around
    kept = [np.where(inside, numbers, np.uint64(0)).astype(np.int64) for numbers in (offsets, sizes)]
    return Extents(*(array("q", numbers.tobytes()) for numbers in kept))
