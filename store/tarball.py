"""Deterministic WebDataset tars, and a scanner that accepts nothing but what this module writes."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Sequence
from typing import NamedTuple

from store.errors import CorruptShardError
from store.root import StoredFile

__all__ = ["SUFFIX", "Tar", "TarMember", "build_tar", "member_name", "scan_tar"]

SUFFIX = re.compile(r"[a-z0-9_]{1,32}(\.[a-z0-9_]{1,32}){0,2}")
_MEMBER = re.compile(rf"(?P<row>\d{{9,15}})\.(?P<suffix>{SUFFIX.pattern})")
_BLOCK = 512
_END = bytes(2 * _BLOCK)
_MAX_MEMBER_BYTES = (8 << 30) - 1


class TarMember(NamedTuple):
    """Where one member's content lies in its tar."""

    row: int
    suffix: str
    offset: int
    size: int


class Tar(NamedTuple):
    """A tar's bytes and its members in order."""

    data: bytes
    members: tuple[TarMember, ...]


def member_name(row: int, suffix: str) -> str:
    """WebDataset name of a row's file."""
    return f"{row:09d}.{suffix}"


def build_tar(files: Sequence[tuple[int, str, bytes]], /) -> Tar:
    """Pack (row, suffix, content) triples; equal input gives equal bytes."""
    blocks: list[bytes] = []
    members: list[TarMember] = []
    position = 0
    for row, suffix, content in files:
        header = _header(member_name(row, suffix), len(content))
        padding = bytes(-len(content) % _BLOCK)
        members.append(TarMember(row, suffix, position + _BLOCK, len(content)))
        blocks += [header, content, padding]
        position += _BLOCK + len(content) + len(padding)
    return Tar(b"".join([*blocks, _END]), tuple(members))


def scan_tar(file: StoredFile, /, *, where: str) -> tuple[TarMember, ...]:
    """List a tar's members without reading their content.

    A header must be, byte for byte, the one that ``build_tar`` writes for its name and size. That rules out links,
    devices, absolute paths, ``..``, extended headers and sparse files at one stroke.

    Raises:
        CorruptShardError: A header is anything else, a member reaches past the end, or there is no end.
        OSError: The file cannot be read.
    """
    members: list[TarMember] = []
    position = 0
    while True:
        block = file.read(position, _BLOCK)
        if block == _END[:_BLOCK]:
            if file.read(position + _BLOCK, _BLOCK + 1) != _END[_BLOCK:]:
                raise CorruptShardError(f"{where}: bytes after the end of the tar; run sak store verify")
            return tuple(members)
        member = _parse_header(block, position, where)
        position += _BLOCK + member.size + -member.size % _BLOCK
        if position > file.size:
            raise CorruptShardError(f"{where}: member at byte {member.offset} is cut short; run sak store verify")
        members.append(member)


def _parse_header(block: bytes, position: int, where: str) -> TarMember:
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    except (tarfile.TarError, ValueError) as error:
        raise CorruptShardError(f"{where}: no tar member at byte {position} ({error}); run sak store verify") from error
    match = _MEMBER.fullmatch(info.name)
    sane = match is not None and 0 <= info.size <= _MAX_MEMBER_BYTES
    if match is None or not sane or _header(info.name, info.size) != block:
        raise CorruptShardError(
            f"{where}: refused tar member {info.name!r}: only plain files named <row>.<suffix> belong here; "
            "this shard was not written by sak"
        )
    return TarMember(int(match["row"]), match["suffix"], position + _BLOCK, info.size)


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o644
    return info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")
