"""How much a Parquet file unpacks to, added up from its page headers.

A reader allocates what the header of each page says. The sums in the file's footer need not agree with them, and a
few bytes can stand for gigabytes, so they are added up here before anything is unpacked. The footer is read here too:
pyarrow's own view of it ends the process on statistics that contradict each other. Both are Thrift structs in the
compact protocol. Source: the Parquet format's ``parquet.thrift``, and Thrift's compact protocol.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

__all__ = ["Unpacked", "unpacked_size"]

_MAGIC = b"PAR1"
_MAX_FOOTER_BYTES = 4 << 20
_MAX_DEPTH = 12
_STOP, _TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(13)
# Fields, by the struct that they are in.
_FILE_ROWS, _FILE_GROUPS, _GROUP_COLUMNS, _CHUNK_METADATA = 3, 4, 1, 3
_STORED, _DATA_PAGE, _DICTIONARY_PAGE = 7, 9, 11
_PAGE_BYTES, _PAGE_STORED = 2, 3
_PAGE_KINDS = (5, 7, 8)  # data page, dictionary page, data page of version 2; each begins with its number of values


class Unpacked(NamedTuple):
    """Rows that the footer tells of, bytes of all pages and of the largest one, and the most values in one column."""

    rows: int
    bytes: int
    largest: int
    values: int


class _Reader:
    """A position in a struct. Raises ValueError at the end of the data, and for what Thrift does not know."""

    def __init__(self, data: bytes, position: int, end: int) -> None:
        self._data, self.position, self._end = data, position, end

    def byte(self) -> int:
        if not 0 <= self.position < self._end:
            raise ValueError("a header is cut short")
        self.position += 1
        return self._data[self.position - 1]

    def varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self.byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a header has an endless number")

    def number(self) -> int:
        value = self.varint()
        return value >> 1 ^ -(value & 1)

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Integers, lists and structs of a struct by field; all else is passed over."""
        fields: dict[int, Any] = {}
        last = 0
        while (head := self.byte()) != _STOP:
            last = last + (head >> 4) if head >> 4 else self.number()
            kind = head & 15
            fields[last] = None if kind in (_TRUE, _FALSE) else self._value(kind, depth + 1)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise ValueError("a header is nested too deep")
        if kind in (_I16, _I32, _I64):
            return self.number()
        if kind == _STRUCT:
            return self.struct(depth)
        if kind in (_LIST, _SET):
            head = self.byte()
            count = head >> 4 if head >> 4 < 15 else self.varint()
            # Every element takes a byte at least, so the end of the data ends this.
            return [self._value(head & 15, depth + 1) for _ in range(count)]
        if kind in (_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY):
            size = self.varint() if kind == _BINARY else {_DOUBLE: 8}.get(kind, 1)
            self.position += size
            if self.position > self._end:
                raise ValueError("a header is cut short")
            return None
        raise ValueError(f"a header has a field of kind {kind}")


def unpacked_size(data: bytes, /) -> Unpacked:
    """Add up the pages of all columns.

    Raises:
        ValueError: It is no Parquet file, a header is malformed, or a column reaches beyond the file.
    """
    length = int.from_bytes(data[-8:-4], "little")
    start = len(data) - 8 - length
    if data[:4] != _MAGIC or data[-4:] != _MAGIC or start < 4 or length > _MAX_FOOTER_BYTES:
        raise ValueError("no Parquet file, or one with an absurd footer")
    footer = _Reader(data, start, len(data) - 8).struct()
    total = largest = 0
    values: dict[int, int] = {}
    for group in _structs(footer, _FILE_GROUPS):
        for column, chunk in enumerate(_structs(group, _GROUP_COLUMNS)):
            for page in _pages(data, chunk.get(_CHUNK_METADATA), end=start):
                total, largest = total + page.bytes, max(largest, page.bytes)
                values[column] = values.get(column, 0) + page.values
    return Unpacked(_number(footer, _FILE_ROWS), total, largest, max(values.values(), default=0))


class _Page(NamedTuple):
    bytes: int
    values: int
    next: int


def _pages(data: bytes, chunk: Any, *, end: int) -> Iterator[_Page]:
    """Pages of one column of one row group, in the order of the file."""
    position = _number(chunk, _DATA_PAGE)
    if chunk.get(_DICTIONARY_PAGE) is not None:
        position = min(position, _number(chunk, _DICTIONARY_PAGE))  # readers begin with whichever comes first
    stop = position + _number(chunk, _STORED)
    if stop > end:
        raise ValueError("a column reaches beyond the file")
    while position < stop:
        page = _page(data, position, stop)
        yield page
        position = page.next


def _page(data: bytes, position: int, end: int) -> _Page:
    header = _Reader(data, position, end)
    fields = header.struct()
    kinds = [kind for place in _PAGE_KINDS if isinstance(kind := fields.get(place), dict)]
    if len(kinds) != 1:
        raise ValueError("a page header is that of no page we know")
    size, stored = _number(fields, _PAGE_BYTES), _number(fields, _PAGE_STORED)
    return _Page(size, _number(kinds[0], 1), header.position + stored)


def _number(fields: Any, place: int) -> int:
    number = fields.get(place) if isinstance(fields, dict) else None
    if type(number) is not int or number < 0:
        raise ValueError("a header lacks a number")
    return number


def _structs(fields: dict[int, Any], place: int) -> list[dict[int, Any]]:
    found = fields.get(place)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise ValueError("a header lacks a list")
    return found
