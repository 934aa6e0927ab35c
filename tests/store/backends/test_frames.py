from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs import zstd

from store.backends.frames import compress, largest_frame, unpack

SIZES = [1, 2, 255, 256, 257, 65535, 65536, 65791, 65792, 1 << 20, (1 << 21) + 3, (1 << 22) + 1]


@pytest.mark.parametrize("checksum", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_frames_of_every_header_form_come_back(size: int, checksum: bool):
    for data in (bytes(size), np.random.default_rng(size).bytes(size)):
        frame = compress(data, checksum=checksum)
        assert unpack(frame, size, checksum=checksum) == data
        assert len(frame) <= largest_frame(size)
        for wrong in {size - 1, size + 1, 2 * size} - {0}:
            with pytest.raises(ValueError, match=f"expected {wrong} bytes in it, got {size}"):
                unpack(frame, wrong, checksum=checksum)


def test_a_frame_without_the_checksum_asked_for_is_refused():
    with pytest.raises(ValueError, match="no checksum"):
        unpack(compress(bytes(300), checksum=False), 300, checksum=True)


@settings(max_examples=60)
@given(data=st.binary(min_size=1, max_size=200), position=st.integers(min_value=0), bit=st.integers(0, 7))
def test_no_flip_of_a_frame_with_checksum_is_read_as_something_else(data: bytes, position: int, bit: int):
    frame = bytearray(compress(data, checksum=True))
    frame[position % len(frame)] ^= 1 << bit
    try:
        assert unpack(bytes(frame), len(data), checksum=True) == data
    except ValueError:
        return


@settings(max_examples=150)
@given(data=st.binary(max_size=60), head=st.booleans())
def test_arbitrary_bytes_never_allocate_or_pass(data: bytes, head: bool):
    with pytest.raises(ValueError):
        unpack((b"\x28\xb5\x2f\xfd" if head else b"") + data, 4096, checksum=False)


def test_bombs_are_refused_by_their_header():
    bomb = zstd.compress(bytes(1 << 24), 19)
    assert len(bomb) < 2000
    with pytest.raises(ValueError, match=f"expected 64 bytes in it, got {1 << 24}"):
        unpack(bomb, 64, checksum=False)
    # The same content behind a header that declares 64 bytes: single segment, one byte of size.
    blocks = bomb[6 + (0, 2, 4, 8)[bomb[4] >> 6] :] if not bomb[4] & 0x20 else bomb[5 + (1, 2, 4, 8)[bomb[4] >> 6] :]
    with pytest.raises(ValueError, match=r"(?i)decompress"):
        unpack(b"\x28\xb5\x2f\xfd\x20\x40" + blocks, 64, checksum=False)
