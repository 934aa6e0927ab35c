"""WebDataset tars: one a part, of one compressed ``.npy`` file per row and array; plain ``webdataset`` reads them.

A member is ``<row>.<array>.npy.zst``: a Zstandard frame, with a checksum of its content, over a ``.npy`` file of the
row. Rows follow each other, and the arrays of a row in the column's order.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from store.backends.base import Decoder, Extents, LevelArray, Readable, ShardArray, little_endian
from store.backends.frames import compress, largest_frame, unpack
from store.codecs.base import PartSpec
from store.tarball import build_tar, member_name
from store.workers import map_threads

__all__ = ["WebDataset", "npy_header", "tar_header"]

_SUFFIX = ".npy.zst"
_BLOCK = 512
_END = bytes(2 * _BLOCK)
_ZEROS = bytes(_BLOCK)
_NAME, _SIZE, _CHECKSUM = slice(0, 100), slice(124, 136), slice(148, 156)


@dataclass(frozen=True, slots=True)
class WebDataset:
    """One tar per part, for clusters that read sequentially and for other programs."""

    @property
    def name(self) -> str:
        """Name in the registry."""
        return "webdataset"

    @property
    def gap(self) -> int:
        """Padding to a block, and the next member's header."""
        return 2 * _BLOCK - 1

    def metadata(self, arrays: Sequence[LevelArray], /, *, rows: int, rows_per_shard: int) -> dict[str, bytes]:
        """Nothing: the arrays are no Zarr arrays."""
        return {}

    def path(self, array: LevelArray, part: int, /) -> str:
        """The part's tar."""
        return f"shards/part-{part:05d}.tar"

    def pack(
        self, part: int, arrays: Sequence[ShardArray], /, *, rows: range, rows_per_shard: int, threads: int
    ) -> Iterator[tuple[str, bytes]]:
        """The part's tar."""
        jobs = [
            (row, f"{one.name}{_SUFFIX}", partial(_encode, one.spec), values[index])
            for index, row in enumerate(rows)
            for one, values in arrays
        ]
        members = map_threads(lambda job: (job[0], job[1], job[2](job[3])), jobs, threads=threads)
        yield self.path(arrays[0].array, part), build_tar(members).data

    def index(
        self, file: Readable, arrays: Sequence[LevelArray], /, *, rows: range, rows_per_shard: int
    ) -> dict[str, Extents]:
        """Walk over the tar's headers, reading nothing else.

        A header must be, byte for byte, the one that belongs there. That rules out links, devices, absolute paths,
        ``..``, extended headers, other rows and sparse files at one stroke.

        Raises:
            ValueError: A header is anything else, a member reaches past the end, or bytes follow the end.
        """
        found = [(array("q"), array("q")) for _ in arrays]
        largest = [largest_frame(one.spec.row_bytes + len(npy_header(one.spec))) for one in arrays]
        position = 0
        for row in rows:
            for (offsets, sizes), one, most in zip(found, arrays, largest, strict=True):
                size = _member_size(file, position, member_name(row, f"{one.name}{_SUFFIX}"), most)
                offsets.append(position + _BLOCK)
                sizes.append(size)
                position += _BLOCK + size + -size % _BLOCK
        if file.read(position, len(_END) + 1) != _END:
            raise ValueError(f"expected the end of the tar at byte {position}")
        return {one.name: Extents(*numbers) for one, numbers in zip(arrays, found, strict=True)}

    def decoder(self, spec: PartSpec, /) -> Decoder:
        """What unpacks a member and takes off its ``.npy`` header, which must be the one expected."""
        return partial(_decode, npy_header(spec))


@lru_cache(maxsize=256)
def npy_header(spec: PartSpec, /) -> bytes:
    """What a ``.npy`` file of one row begins with, format version 1.0; written out, since NumPy pads as it likes."""
    described = np.dtype(spec.dtype).newbyteorder("<").str
    shape = f"({', '.join(map(str, spec.shape))}{',' if len(spec.shape) == 1 else ''})"
    text = f"{{'descr': '{described}', 'fortran_order': False, 'shape': {shape}, }}"
    padded = text + " " * (-(10 + len(text) + 1) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded.encode("ascii")


def tar_header(name: str, size: int, /) -> bytes:
    """The header of a member, as ``store.tarball`` writes it; built here because a shard has thousands to check."""
    block = bytearray(_template())
    block[: len(name)] = name.encode("ascii")
    block[_SIZE] = b"%011o\0" % size
    block[_CHECKSUM] = b"%06o\0 " % sum(block)
    return bytes(block)


@lru_cache(maxsize=1)
def _template() -> bytes:
    """A header without name and size, and with spaces for the checksum, as it counts itself."""
    block = bytearray(build_tar([(0, "x", b"")]).data[:_BLOCK])
    block[_NAME], block[_SIZE], block[_CHECKSUM] = bytes(100), bytes(12), b" " * 8
    return bytes(block)


def _member_size(file: Readable, position: int, name: str, largest: int) -> int:
    block = file.read(position, _BLOCK)
    digits = block[_SIZE][:-1]
    # isdigit first: int() also takes spaces, signs and underscores.
    size = int(digits, 8) if len(block) == _BLOCK and digits.isdigit() and not {*digits} & {*b"89"} else 0
    if size == 0 or block != tar_header(name, size):
        raise ValueError(f"expected the tar member {name} at byte {position}, got {_describe(block)}")
    if size > largest or position + _BLOCK + size > file.size:
        raise ValueError(f"tar member {name}: its size {size} is not one that sak writes")
    return size


def _describe(block: bytes) -> str:
    if len(block) < _BLOCK or block == _ZEROS:
        return "the end of the tar"
    return repr(block[_NAME].rstrip(b"\0").decode("ascii", "replace"))


def _encode(spec: PartSpec, values: NDArray[np.generic]) -> bytes:
    header = npy_header(spec)
    cuts = [len(header) + cut for cut in spec.cuts]
    return compress(header + little_endian(values).tobytes(), checksum=True, cuts=cuts)


def _decode(header: bytes, data: bytes, out: NDArray[np.uint8], /) -> None:
    content = unpack(data, len(header) + out.size, checksum=True)
    if not content.startswith(header):
        raise ValueError(f"expected the .npy header {header[10:].decode().strip()}, got another")
    out.data[:] = memoryview(content)[len(header) :]
