"""PNGs in image shards that claim or unpack to more than they may: refused in one line, nothing large allocated."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from pipeline.errors import BadImageError
from pipeline.pixels import decode_sample

SIGN = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def head(width: int, height: int, *, depth: int = 8, colour: int = 2) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))


def body(size: int) -> bytes:
    return chunk(b"IDAT", zlib.compress(bytes(size), 9)) + chunk(b"IEND", b"")


def text_bomb() -> bytes:
    about = PngImagePlugin.PngInfo()
    for place in range(80):
        about.add_text(f"t{place}", "x" * 1_000_000, zip=True)
    sink = io.BytesIO()
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(sink, "PNG", pnginfo=about)
    return sink.getvalue()


BOMBS: dict[str, Callable[[], bytes]] = {
    "huge": lambda: SIGN + head(2**31 - 1, 2**31 - 1) + body(1000),
    "wide": lambda: SIGN + head(2**26, 2) + body(1000),
    "empty": lambda: SIGN + head(0, 4) + body(16),
    "two headers": lambda: SIGN + head(2, 2) + head(12_000, 12_000) + body(1 << 20),
    "two headers, absurd": lambda: SIGN + head(2, 2) + head(60_000, 60_000) + body(1 << 20),
    "text": text_bomb,
    "profile": lambda: SIGN + head(2, 2) + chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(1 << 28), 9)) + body(14)[:-1],
    "short": lambda: SIGN + head(4000, 4000) + body(100),
    "alpha": lambda: SIGN + head(2, 2, colour=6) + body(18),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused(name: str):
    data = BOMBS[name]()
    assert len(data) < 1 << 20
    tracemalloc.start()
    try:
        with pytest.raises(BadImageError, match=r"^k\.png: ") as caught:
            decode_sample({"png": data}, key="k", tasks=[])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(caught.value).isprintable()
    assert peak < 100 << 20


def test_data_beyond_the_image_is_not_unpacked():
    """The rest of a stream that would go on for a gigabyte is left alone."""
    packer = zlib.compressobj(9)
    stream = packer.compress(bytes(14)) + b"".join(packer.compress(bytes(1 << 20)) for _ in range(256)) + packer.flush()
    data = SIGN + head(2, 2) + chunk(b"IDAT", stream) + chunk(b"IEND", b"")
    tracemalloc.start()
    try:
        sample = decode_sample({"png": data}, key="k", tasks=[])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sample.image.shape == (2, 2, 3)
    assert peak < 4 << 20
