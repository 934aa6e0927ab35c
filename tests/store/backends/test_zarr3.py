from __future__ import annotations

import google_crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from store.backends.base import locate
from store.backends.zarr3 import decode_row, encode_row, encode_shard, shard_index
from store.codecs.base import PartSpec

SPEC = PartSpec(shape=(3, 4), dtype="int16")


class MemoryFile:
    """Bytes as a file."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)

    def read(self, offset: int, size: int, /) -> bytes:
        return self.data[offset : offset + size]


def shard(rows: int = 3) -> bytes:
    return encode_shard(np.arange(rows * 12, dtype=np.int16).reshape(rows, 3, 4), rows_per_shard=4)


@settings(max_examples=100)
@given(data=st.binary(max_size=100))
def test_the_crc_of_anything_with_its_crc_is_one_constant(data: bytes):
    """What decode_row relies on instead of cutting the checksum off."""
    whole = data + int(google_crc32c.value(data)).to_bytes(4, "little")
    assert google_crc32c.value(whole) == 0x48674BC7


def test_every_flip_of_a_row_is_found():
    row = encode_row(np.arange(12, dtype=np.int16))
    out = np.empty(24, np.uint8)
    decode_row(row, out)
    np.testing.assert_array_equal(out.view(np.int16), np.arange(12))
    for position in range(len(row)):
        damaged = bytearray(row)
        damaged[position] ^= 32
        with pytest.raises(ValueError, match="crc32c differs"):
            decode_row(bytes(damaged), out)


@pytest.mark.parametrize("threads", [1, 4])
def test_short_shards_have_empty_entries(threads: int):
    values = np.arange(36, dtype=np.int16).reshape(3, 3, 4)
    data = encode_shard(values, rows_per_shard=4, threads=threads)
    assert data == shard()
    assert data[-20:-4] == b"\xff" * 16
    found = shard_index(MemoryFile(data), spec=SPEC, rows=4, rows_per_shard=4)
    assert list(found.sizes)[3] == 0
    assert sum(found.sizes) + 4 * 16 + 4 == len(data)


def test_every_flip_of_the_index_is_found():
    data = shard()
    for position in range(len(data) - 68, len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1
        with pytest.raises(ValueError, match="shard index is damaged"):
            shard_index(MemoryFile(bytes(damaged)), spec=SPEC, rows=3, rows_per_shard=4)
    with pytest.raises(ValueError, match="expected at least 68 bytes, got 60"):
        shard_index(MemoryFile(data[:60]), spec=SPEC, rows=3, rows_per_shard=4)


@given(offset=st.integers(0, 2**64 - 1), size=st.integers(0, 2**64 - 1))
def test_entries_that_lie_anywhere_else_are_as_good_as_absent(offset: int, size: int):
    found = locate(np.array([offset], np.uint64), np.array([size], np.uint64), end=1000, largest=200)
    inside = offset + size <= 1000 and size <= 200
    assert (list(found.offsets), list(found.sizes)) == (([offset], [size]) if inside else ([0], [0]))
