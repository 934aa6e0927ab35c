"""Zstandard frames whose content size is known before they are unpacked."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import zstandard
from numcodecs import zstd  # type: ignore[import-untyped]

__all__ = ["ZSTD_LEVEL", "compress", "largest_frame", "unpack"]

ZSTD_LEVEL = 3
_MAGIC = b"\x28\xb5\x2f\xfd"
_CHECKSUM = 0x04
_DICTIONARY = 0x03
_UNUSED = 0x18
_SINGLE = 0x20

_of_thread = threading.local()


def compress(data: bytes, /, *, checksum: bool, cuts: Sequence[int] = ()) -> bytes:
    """One frame that declares its content size and, on request, ends in a checksum of its content.

    Args:
        cuts: Offsets at which the statistics of the content change. A new block begins at each, because the symbols of
            a block share one Huffman table, and hardly any repetitions are looked for: on packed integers of ``klt``
            this saves a fifth (docs/studies/codec_search.md).
    """
    if not cuts:
        packed: bytes = zstd.compress(data, ZSTD_LEVEL, checksum)
        return packed
    stream = zstandard.ZstdCompressor(compression_params=_entropy_only(checksum=checksum)).compressobj(size=len(data))
    blocks = []
    for start, stop in pairwise([0, *cuts, len(data)]):
        blocks.append(stream.compress(data[start:stop]))
        if stop < len(data):
            blocks.append(stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
    return b"".join([*blocks, stream.flush()])


@lru_cache(maxsize=2)
def _entropy_only(*, checksum: bool) -> zstandard.ZstdCompressionParameters:
    """Settings under which nearly every byte is coded by itself: integers that look random repeat by chance alone."""
    return zstandard.ZstdCompressionParameters.from_level(
        1,
        strategy=zstandard.STRATEGY_FAST,
        min_match=7,
        hash_log=6,
        chain_log=6,
        search_log=1,
        write_checksum=checksum,
        write_content_size=True,
    )


def largest_frame(size: int, /) -> int:
    """A bound on the frame that ``compress`` makes of so many bytes, whatever they are."""
    return size + size // 128 + 1024


def unpack(data: bytes | memoryview, size: int, /, *, checksum: bool) -> bytes:
    """Content of a frame, of exactly so many bytes.

    The declared size is compared first, so that a hostile frame cannot make us allocate, and a short one cannot leave
    the end of a row unwritten.

    Raises:
        ValueError: It is no such frame, declares another size, lacks the checksum asked for, or is damaged.
    """
    usual = _usual_start(size, checksum)
    if data[: len(usual)] != usual:
        declared = _content_size(data)
        if declared != size:
            raise ValueError(f"expected {size} bytes in it, got {declared}")
        if checksum and not data[4] & _CHECKSUM:
            raise ValueError("its frame has no checksum")
    try:
        return _context().decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error


def _context() -> zstandard.ZstdDecompressor:
    """This thread's decompressor: making one for each row would take as long as unpacking 10 KiB."""
    found: zstandard.ZstdDecompressor | None = getattr(_of_thread, "context", None)
    if found is None:
        found = _of_thread.context = zstandard.ZstdDecompressor()
    return found


@lru_cache(maxsize=256)
def _usual_start(size: int, checksum: bool, /) -> bytes:
    """What a frame begins with nearly always; comparing it saves reading the header field by field."""
    field = 0 if size < 1 << 8 else 1 if size < (1 << 16) + 256 else 2
    descriptor = field << 6 | _SINGLE | (_CHECKSUM if checksum else 0)
    coded = min(size - 256 if field == 1 else size, (1 << 32) - 1)
    return _MAGIC + bytes([descriptor]) + coded.to_bytes(1 << field, "little")


def _content_size(data: bytes | memoryview) -> int:
    """Content size that a frame declares, -1 when it declares none. Source: RFC 8878, section 3.1.1.1."""
    if len(data) < 6 or data[:4] != _MAGIC:
        return -1
    descriptor = data[4]
    if descriptor & _UNUSED:
        return -1
    single = bool(descriptor & _SINGLE)
    field = descriptor >> 6
    start = 5 + (0 if single else 1) + (0, 1, 2, 4)[descriptor & _DICTIONARY]
    length = (1 if single else 0, 2, 4, 8)[field]
    if length == 0 or len(data) < start + length:
        return -1
    size = int.from_bytes(data[start : start + length], "little")
    return size + 256 if length == 2 else size
