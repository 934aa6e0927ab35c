"""What a tar holds, from its headers alone, whoever wrote it.

Nothing is unpacked to a disk, and members that could mean a file elsewhere are refused: links, devices, absolute names
and names with ``..``. A compressed tar is refused too, for nothing in it can be read by itself.
"""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from pipeline.errors import DataError
from pipeline.images.ranges import RangeFile
from store.errors import one_line

__all__ = ["TAIL", "Member", "read_member", "scan_tar"]

TAIL = 512
"""Bytes at the end of a member that its checksum covers: they come with the next header at no further cost."""

_BLOCK = 512
_MAX_HEADER = 1 << 20
_MAX_NAME = 1024
_MAX_END = 1 << 20
_PAX_RECORD = re.compile(rb"(\d{1,7}) ([^=\n]{1,200})=")
_PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_KINDS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}


class Member(NamedTuple):
    """A plain file: its normalised name, where its content lies, and the CRC-32 of the content's last bytes."""

    name: str
    offset: int
    size: int
    tail: int


def scan_tar(
    file: RangeFile, /, *, nested: bool = False, progress: Callable[[int], object] = lambda position: None
) -> Iterator[Member]:
    """List the plain files of a tar in order.

    Args:
        nested: Whether a member ``a.tar`` stands for its own members, as ``a/name``; one level deep.
        progress: Told the position reached, in bytes.

    Raises:
        DataError: It is no tar, cut short, or holds what is refused; the message names the member.
        UnreachableError: The network fails.
    """
    window = _Window(file)
    if window.read(0, 4).startswith(_PACKED):
        raise DataError(f"{file.where}: a compressed tar cannot be read at random; unpack it to a plain .tar")
    scan = _Scan(window, stop=file.size, progress=progress)
    for member in scan.members(0):
        if nested and member.name.endswith(".tar"):
            stop = member.offset + member.size
            inner = _Scan(window, stop=stop, prefix=f"{member.name.removesuffix('.tar')}/", progress=progress)
            yield from inner.members(member.offset)
        else:
            yield member


def read_member(file: RangeFile, /, *, name: str, offset: int, size: int) -> bytes:
    """A member's content, if its header is still where it was.

    Raises:
        DataError: Something else is there, or the file cannot be read.
        UnreachableError: The network fails.
    """
    data = file.read(offset - _BLOCK, _BLOCK + size)
    try:
        info = tarfile.TarInfo.frombuf(data[:_BLOCK], "utf-8", "replace")
        # The size of a member of 8 GiB or more may stand in an extended header; no image is that large.
        found = info.isreg() and info.size == size and _may_be(info.name, name)
    except (tarfile.TarError, ValueError):
        found = False
    if not found:
        raise DataError(f"{file.where}: {name} is not where the index says; the tar has changed, run the command again")
    return data[_BLOCK:]


def _may_be(found: str, name: str) -> bool:
    """Whether a header is of this name; an extended header before it may have told a long or foreign one in full."""
    whole = found.isascii() and "?" not in found and len(found) < 100
    return not whole or name.endswith("/".join(part for part in found.split("/") if part not in ("", ".")))


class _Window:
    """The last bytes read and some beyond: headers of small files come many at a time where a request is dear."""

    def __init__(self, file: RangeFile) -> None:
        self.file = file
        self._start, self._data = 0, b""

    def read(self, offset: int, size: int) -> bytes:
        """Bytes from a position; fewer only where the file ends."""
        stop = min(offset + size, self.file.size)
        if not self._start <= offset <= stop <= self._start + len(self._data):
            self._start = offset
            self._data = self.file.read(offset, min(max(size, self.file.window), self.file.size - offset))
        return self._data[offset - self._start : stop - self._start]


@dataclass(slots=True)
class _Scan:
    """One archive: the file itself, or a member of it."""

    window: _Window
    stop: int
    progress: Callable[[int], object]
    prefix: str = ""
    _records: dict[str, str] = field(default_factory=dict)

    def members(self, start: int) -> Iterator[Member]:
        position = start
        while True:
            block = self._read(position, _BLOCK)
            if block == bytes(_BLOCK):
                self._check_end(position)
                return
            info = self._header(block, position)
            offset = position + _BLOCK
            if info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME):
                self._extend(info, offset)
            elif info.type != tarfile.GNUTYPE_LONGLINK:
                size = self._size(info)
                member = self._member(info, offset, size)
                if member is not None:
                    yield member
                info.size = size
                self._records.clear()
            position = offset + info.size + -info.size % _BLOCK
            if position > self.stop:
                raise self._cut(position)
            self.progress(position)

    def _member(self, info: tarfile.TarInfo, offset: int, size: int) -> Member | None:
        name = self._name(self._records.get("path", info.name))
        if info.type == tarfile.DIRTYPE:
            return None
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE):
            kind = _KINDS.get(info.type, f"of type {info.type!r}")
            raise self._refused(name, f"{kind}; pack the files again with tar --dereference --hard-dereference")
        if any(key.startswith("GNU.sparse") for key in self._records):
            raise self._refused(name, "a sparse file; pack the files again without --sparse")
        if offset + size > self.stop:
            raise self._cut(offset + size)
        # Before the content's padding and the next header, so that one read serves all three.
        last = self.window.read(offset + max(0, size - TAIL), min(size, TAIL))
        return Member(f"{self.prefix}{name}", offset, size, zlib.crc32(last))

    def _name(self, name: str) -> str:
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if name.startswith("/") or ".." in parts:
            raise self._refused(name, "a name that leads out of the folder; pack the files again with relative names")
        if not name.isprintable() or len(name) > _MAX_NAME:
            raise self._refused(name[:80], "a name that is too long, not UTF-8 or not printable; rename the file")
        return "/".join(parts)

    def _size(self, info: tarfile.TarInfo) -> int:
        text = self._records.get("size", str(info.size))
        if not text.isascii() or not text.isdigit() or len(text) > 18:
            raise self._refused(info.name, f"a size of {text[:40]!r}; the tar is damaged, copy it again")
        return int(text)

    def _extend(self, info: tarfile.TarInfo, offset: int) -> None:
        """Keep what an extended header says of the member after it."""
        if not 0 <= info.size <= _MAX_HEADER:
            raise self._refused(info.name, f"an extended header of {info.size} bytes; the tar is damaged")
        data = self._read(offset, info.size)
        if info.type == tarfile.GNUTYPE_LONGNAME:
            self._records["path"] = self._text(data.rstrip(b"\0"), offset)
            return
        records = self._pax(data, offset)
        if info.type != tarfile.XGLTYPE:
            self._records.update(records)
        elif {"path", "size"} & {*records}:
            raise self._refused(info.name, "a global name or size; pack the files again")

    def _pax(self, data: bytes, offset: int) -> Mapping[str, str]:
        records, position = {}, 0
        while position < len(data) and data[position : position + 1] != b"\0":
            match = _PAX_RECORD.match(data, position)
            length = int(match[1]) if match else 0
            end = position + length - 1
            if match is None or data[end : end + 1] != b"\n" or match.end() > end:
                raise DataError(f"{self.window.file.where}: bad extended header at byte {offset}; copy the tar again")
            key = self._text(match[2], offset)
            # Times and owners of any encoding may stand here too, and nobody asks for them.
            if key in ("path", "size") or key.startswith("GNU.sparse"):
                records[key] = self._text(data[match.end() : end], offset)
            position = end + 1
        return records

    def _text(self, data: bytes, offset: int) -> str:
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self.window.file.where}: a name at byte {offset} is not UTF-8; rename the file and pack again"
            ) from error

    def _header(self, block: bytes, position: int) -> tarfile.TarInfo:
        try:
            # GNU tar cuts a long name anywhere, also in a character, and tells it whole in a header before this one.
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.TarError, ValueError) as error:
            where, reason = self.window.file.where, one_line(str(error))
            raise DataError(f"{where}: no tar header at byte {position} ({reason}); copy the tar again") from error
        if info.size < 0:
            raise self._refused(info.name, f"a size of {info.size}; the tar is damaged, copy it again")
        info.size = 0 if info.type == tarfile.DIRTYPE else info.size
        return info

    def _read(self, offset: int, size: int) -> bytes:
        if offset + size > self.stop:
            raise self._cut(offset + size)
        return self.window.read(offset, size)

    def _check_end(self, position: int) -> None:
        """A second tar behind the end would otherwise be lost without a word."""
        rest = self.stop - position
        if rest < 2 * _BLOCK:
            raise self._cut(position + 2 * _BLOCK)
        if rest > _MAX_END or any(self.window.read(position, rest)):
            raise DataError(
                f"{self.window.file.where}: bytes after the end of the tar at {position}; was another appended to it?"
                " keep them as two shards, or pack the files again"
            )

    def _cut(self, wanted: int) -> DataError:
        where = f"{self.window.file.where}{f', {self.prefix}' if self.prefix else ''}"
        return DataError(f"{where}: cut short at byte {self.stop}, expected {wanted}; the copy is incomplete")

    def _refused(self, name: str, what: str) -> DataError:
        return DataError(one_line(f"{self.window.file.where}: refused member {self.prefix}{name}: {what}"))
