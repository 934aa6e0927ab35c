"""Zarr v3 sharded arrays, one inner chunk per row, written and read without zarr's machinery.

The files are plain Zarr v3 (``sharding_indexed`` with ``bytes``, ``zstd``, ``crc32c`` inside and an index with its own
``crc32c`` at the end), and zarr and zarrs read them. Random rows are read here directly because a batch of them then
takes a third of what it takes the faster zarr pipeline (docs/studies/store_read.md), and because a missing shard can
then never come back as fill values.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import zstd  # type: ignore[import-untyped]
from numpy.typing import NDArray

from store.codecs.base import PartSpec
from store.errors import CorruptShardError
from store.root import Root, Stamp

__all__ = [
    "ObjectDigest",
    "ShardCache",
    "ShardFile",
    "array_metadata",
    "chunk_key",
    "decode_row",
    "encode_row",
    "encode_shard",
    "group_metadata",
]

ZSTD_LEVEL = 3
_CRC_BYTES = 4
_ENTRY_BYTES = 16
_EMPTY = 2**64 - 1
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectDigest:
    """What a commit record says about one file."""

    sha256: str
    size: int


def chunk_key(part: int, *, rank: int) -> str:
    """Zarr's path of a shard inside its array, for an array of a row axis and ``rank`` further axes."""
    return "/".join(["c", str(part), *["0"] * rank])


def group_metadata(arrays: Mapping[str, bytes], /) -> bytes:
    """``zarr.json`` of a group, with its arrays' own inside, so that zarr need not list the folder.

    Listing would meet the commit records, which zarr warns about because they are no part of its hierarchy.
    """
    inline = {name: json.loads(data) for name, data in sorted(arrays.items())}
    consolidated = {"kind": "inline", "metadata": inline, "must_understand": False}
    return _render({"attributes": {}, "consolidated_metadata": consolidated, "node_type": "group", "zarr_format": 3})


def array_metadata(spec: PartSpec, /, *, rows: int, rows_per_shard: int | None) -> bytes:
    """``zarr.json`` of a sharded array of rows, or of one unsharded chunk when ``rows_per_shard`` is None."""
    dtype = np.dtype(spec.dtype)
    little: dict[str, Any] = {"configuration": {"endian": "little"}, "name": "bytes"}
    inner = [
        little if dtype.itemsize > 1 else {"name": "bytes"},
        {"configuration": {"checksum": False, "level": ZSTD_LEVEL}, "name": "zstd"},
        {"name": "crc32c"},
    ]
    sharding = {
        "configuration": {
            "chunk_shape": [1, *spec.shape],
            "codecs": inner,
            "index_codecs": [little, {"name": "crc32c"}],
            "index_location": "end",
        },
        "name": "sharding_indexed",
    }
    chunk_rows = rows if rows_per_shard is None else rows_per_shard
    return _render(
        {
            "attributes": {},
            "chunk_grid": {"configuration": {"chunk_shape": [chunk_rows, *spec.shape]}, "name": "regular"},
            "chunk_key_encoding": {"configuration": {"separator": "/"}, "name": "default"},
            "codecs": inner if rows_per_shard is None else [sharding],
            "data_type": dtype.name,
            "fill_value": 0.0 if dtype.kind == "f" else 0,
            "node_type": "array",
            "shape": [rows, *spec.shape],
            "storage_transformers": [],
            "zarr_format": 3,
        }
    )


def encode_row(values: NDArray[np.generic], /) -> bytes:
    """One inner chunk: little-endian bytes, zstd, crc32c."""
    little = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<"), copy=False)
    packed: bytes = zstd.compress(little.tobytes(), ZSTD_LEVEL)
    return packed + _crc32c(packed)


def decode_row(data: bytes, out: NDArray[np.uint8], /) -> None:
    """Inverse of ``encode_row`` into a flat byte array of exactly the row's size.

    Raises:
        ValueError: The checksum fails, or the content has another size; nothing larger is ever allocated.
    """
    packed = memoryview(data)[:-_CRC_BYTES]
    if len(data) <= _CRC_BYTES or _crc32c(bytes(packed)) != data[-_CRC_BYTES:]:
        raise ValueError("its crc32c differs")
    size = _zstd_content_size(data)
    if size != out.size:
        raise ValueError(f"expected {out.size} bytes in it, got {size}")
    try:
        zstd.decompress(packed, out)
    except (RuntimeError, ValueError) as error:
        raise ValueError(str(error)) from error


def encode_shard(values: NDArray[np.generic], /, *, rows_per_shard: int) -> bytes:
    """Bytes of one shard; equal input gives equal bytes.

    Every row is stored, even one of zeros, so that an absent row is always an error. A short last shard has empty
    index entries for the rows that it lacks.

    Shapes:
        values: ``(n, ...)`` with ``n <= rows_per_shard``.
    """
    assert 1 <= len(values) <= rows_per_shard
    chunks = [encode_row(row) for row in values]
    entries = np.full((rows_per_shard, 2), _EMPTY, dtype="<u8")
    sizes = np.array([len(chunk) for chunk in chunks], dtype="<u8")
    entries[: len(chunks), 0] = np.cumsum(sizes) - sizes
    entries[: len(chunks), 1] = sizes
    index = entries.tobytes()
    return b"".join([*chunks, index, _crc32c(index)])


class ShardFile:
    """One open shard of one array; reads by position, so that threads may share it.

    Args:
        rows: The rows of the whole array that this shard holds, for messages.

    Raises:
        CorruptShardError: The file is missing, of another size than committed, or its index is damaged.
    """

    def __init__(
        self, root: Root, relative: str, *, spec: PartSpec, rows: range, rows_per_shard: int, size: int
    ) -> None:
        self.path = root.local(relative)
        self.rows = rows
        self._row_bytes = spec.row_bytes
        self._descriptor = -1
        try:
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            info = os.fstat(self._descriptor)
            self.stamp = Stamp(info.st_ino, info.st_size, info.st_mtime_ns)
            if info.st_size != size:
                raise self.corrupt(f"expected {size} bytes, got {info.st_size}")
            self._entries = self._read_index(rows_per_shard)
        except OSError as error:
            raise self.corrupt(f"cannot be read ({error.strerror})") from error

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def corrupt(self, problem: str, *, row: int | None = None) -> CorruptShardError:
        """The error for this file."""
        where = f"rows {self.rows.start} to {self.rows.stop - 1}" if row is None else f"row {row}"
        return CorruptShardError(f"{self.path}: {where}: {problem}; run sak store verify")

    def digest(self) -> str:
        """SHA-256 of the file as it is now."""
        state = hashlib.sha256()
        offset = 0
        while block := os.pread(self._descriptor, 1 << 20, offset):
            state.update(block)
            offset += len(block)
        return state.hexdigest()

    def read_row(self, row: int, out: NDArray[np.uint8], /) -> None:
        """Read one row, checked, into a flat byte array.

        Raises:
            CorruptShardError: The row is absent, truncated or damaged.
        """
        offset, size = self._entries[row - self.rows.start]
        if size == _EMPTY or offset + size > self.stamp.size:
            raise self.corrupt("the shard index does not locate it", row=row)
        try:
            data = os.pread(self._descriptor, size, offset)
            if len(data) != size:
                raise self.corrupt(f"expected {size} bytes, got {len(data)}", row=row)
            decode_row(data, out)
        except OSError as error:
            raise self.corrupt(f"cannot be read ({error.strerror})", row=row) from error
        except CorruptShardError:
            raise
        except ValueError as error:
            raise self.corrupt(str(error), row=row) from error

    def _read_index(self, rows_per_shard: int) -> list[tuple[int, int]]:
        length = rows_per_shard * _ENTRY_BYTES + _CRC_BYTES
        if self.stamp.size < length:
            raise self.corrupt(f"expected at least {length} bytes, got {self.stamp.size}")
        data = os.pread(self._descriptor, length, self.stamp.size - length)
        index = data[:-_CRC_BYTES]
        if len(data) != length or _crc32c(index) != data[-_CRC_BYTES:]:
            raise self.corrupt("its shard index is damaged")
        entries = np.frombuffer(index, dtype="<u8").reshape(rows_per_shard, 2)
        return [(int(offset), int(size)) for offset, size in entries]


class ShardCache:
    """A bounded number of open shards, and which files have been verified since this process began.

    Args:
        verify: ``shard`` compares a shard's digest with the commit record when it is first touched and whenever the
            file has changed since; ``row`` relies on each row's crc32c; ``size`` is ``row`` by another name here,
            because rows are always checked.
    """

    def __init__(self, root: Root, *, verify: str, capacity: int = 256) -> None:
        self._root = root
        self._verify = verify
        self._capacity = capacity
        self._open: OrderedDict[str, ShardFile] = OrderedDict()
        self._verified: dict[str, Stamp] = {}
        self._lock = threading.Lock()

    def get(
        self, relative: str, digest: ObjectDigest, /, *, spec: PartSpec, rows: range, rows_per_shard: int
    ) -> ShardFile:
        """An open, verified shard.

        Raises:
            CorruptShardError: It is missing or differs from its commit record.
        """
        with self._lock:
            found = self._open.get(relative)
            if found is not None:
                self._open.move_to_end(relative)
                return found
        shard = ShardFile(self._root, relative, spec=spec, rows=rows, rows_per_shard=rows_per_shard, size=digest.size)
        if self._verify == "shard" and self._verified.get(relative) != shard.stamp:
            if shard.digest() != digest.sha256:
                raise shard.corrupt("its SHA-256 differs from the commit record")
            self._verified[relative] = shard.stamp
        with self._lock:
            self._open[relative] = shard
            while len(self._open) > self._capacity:
                self._open.popitem(last=False)
        return shard


def _crc32c(data: bytes) -> bytes:
    checksum: int = google_crc32c.value(data)
    return checksum.to_bytes(_CRC_BYTES, "little")


def _zstd_content_size(data: bytes) -> int:
    """Content size that a zstd frame declares, -1 when it declares none.

    Asked before decompression, so that a hostile frame cannot make us allocate, and a short one cannot leave the end
    of a row unwritten. Source: RFC 8878, section 3.1.1.1.
    """
    if len(data) < 6 or data[:4] != _ZSTD_MAGIC:
        return -1
    descriptor = data[4]
    single = bool(descriptor & 0x20)
    field = descriptor >> 6
    start = 5 + (0 if single else 1) + (0, 1, 2, 4)[descriptor & 3]
    length = (1 if single else 0, 2, 4, 8)[field]
    if length == 0 or len(data) < start + length:
        return -1
    size = int.from_bytes(data[start : start + length], "little")
    return size + 256 if length == 2 else size


def _render(value: dict[str, Any]) -> bytes:
    assert math.prod(value.get("shape", [1])) > 0
    return json.dumps(value, indent=1, sort_keys=True).encode() + b"\n"
