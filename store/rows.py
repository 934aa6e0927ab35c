"""One row of a view set, and the Parquet index that describes a part's rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from store.errors import CorruptShardError, FormatError
from store.tarball import SUFFIX

__all__ = ["FileEntry", "IndexRow", "Scalar", "ViewRow", "image_suffix", "parse_index", "render_index"]

Scalar: TypeAlias = int | float | bool | str
_MAX_INDEX_BYTES = 1 << 30
_RESERVED = "json"
_TYPES: Mapping[type, pa.DataType] = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
_FILE = pa.struct([("suffix", pa.string()), ("offset", pa.int64()), ("size", pa.int64()), ("sha256", pa.string())])


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewRow:
    """One view of one image: exactly the pixels that the teachers saw, its label maps, and how it was drawn.

    ``files`` maps suffixes to file contents: one image suffix without a dot (``png``) and any number of label maps
    with one (``semseg.png``, ``normals.npy``). A row whose image could not be read has no files and an ``error``.

    Raises:
        FormatError: A field is malformed.
    """

    row: int
    key: str
    view: int
    files: Mapping[str, bytes]
    draw: Mapping[str, Scalar] = field(default_factory=dict)
    label: int | None = None
    error: str | None = None

    def __post_init__(self) -> None:
        where = f"row {self.row} ({self.key!r})"
        if not isinstance(self.key, str) or not 1 <= len(self.key) <= 4096:
            raise FormatError(f"row {self.row}: key: expected 1 to 4096 characters, got {self.key!r}")
        if bool(self.files) == (self.error is not None):
            raise FormatError(
                f"{where}: expected either files or an error, got {sorted(self.files)} and {self.error!r}"
            )
        bad = [suffix for suffix in self.files if not SUFFIX.fullmatch(suffix) or suffix == _RESERVED]
        if bad:
            raise FormatError(f"{where}: expected suffixes such as png or semseg.png, and not json, got {bad}")
        if self.files:
            image_suffix(self.files, where=where)
        odd = {name: value for name, value in self.draw.items() if type(value) not in _TYPES}
        if odd:
            raise FormatError(f"{where}: draw: expected int, float, bool or str, got {odd}")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """Where one file of a row lies in the part's tar, and what it must contain."""

    suffix: str
    offset: int
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexRow:
    """What the index says of one row."""

    row: int
    key: str
    view: int
    label: int | None
    draw: Mapping[str, Scalar]
    error: str | None
    image_sha256: str | None
    files: tuple[FileEntry, ...]


def image_suffix(suffixes: Mapping[str, object] | Sequence[str], /, *, where: str) -> str:
    """The one suffix without a dot.

    Raises:
        FormatError: There is none, or several.
    """
    found = [suffix for suffix in suffixes if "." not in suffix]
    if len(found) != 1:
        raise FormatError(f"{where}: expected one image suffix without a dot, got {found}")
    return found[0]


def render_index(rows: Sequence[IndexRow], /) -> bytes:
    """Parquet bytes of a part's index; equal rows give equal bytes.

    Raises:
        FormatError: A draw has one name with values of different types.
    """
    columns: dict[str, pa.Array] = {
        "row": pa.array([row.row for row in rows], pa.int64()),
        "key": pa.array([row.key for row in rows], pa.string()),
        "view": pa.array([row.view for row in rows], pa.int64()),
        "sha256": pa.array([row.image_sha256 for row in rows], pa.string()),
        "label": pa.array([row.label for row in rows], pa.int64()),
        "error": pa.array([row.error for row in rows], pa.string()),
        "files": pa.array([[_file_dict(entry) for entry in row.files] for row in rows], pa.list_(_FILE)),
    }
    draw_type = _draw_type(rows)
    if draw_type is not None:
        columns["draw"] = pa.array([dict(row.draw) or None for row in rows], draw_type)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, compression="zstd")
    return bytes(sink.getvalue())


def parse_index(data: bytes, /, *, where: str) -> tuple[IndexRow, ...]:
    """Inverse of ``render_index``.

    Raises:
        CorruptShardError: It is no such Parquet file, or unpacks to an absurd size.
    """
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        groups = (file.metadata.row_group(group) for group in range(file.metadata.num_row_groups))
        if sum(group.total_byte_size for group in groups) > _MAX_INDEX_BYTES:
            raise CorruptShardError(f"{where}: expected an index of at most {_MAX_INDEX_BYTES} bytes unpacked")
        return tuple(_index_row(row) for row in file.read().to_pylist())
    except (pa.ArrowException, OSError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise CorruptShardError(f"{where}: not a part's index ({error}); run sak store verify") from error


def _index_row(row: Mapping[str, Any]) -> IndexRow:
    numbers = [row["row"], row["view"], *(entry[name] for entry in row["files"] for name in ("offset", "size"))]
    if not all(type(number) is int and number >= 0 for number in numbers) or type(row["key"]) is not str:
        raise TypeError(f"row {row['row']!r} is malformed")
    return IndexRow(
        row=row["row"],
        key=row["key"],
        view=row["view"],
        label=row["label"],
        draw={name: value for name, value in (row.get("draw") or {}).items() if value is not None},
        error=row["error"],
        image_sha256=row["sha256"],
        files=tuple(FileEntry(**entry) for entry in row["files"]),
    )


def _file_dict(entry: FileEntry) -> dict[str, object]:
    return {"suffix": entry.suffix, "offset": entry.offset, "size": entry.size, "sha256": entry.sha256}


def _draw_type(rows: Sequence[IndexRow]) -> pa.DataType | None:
    """One struct for all rows: fields sorted by name, so that their order in the draws does not matter."""
    found: dict[str, type] = {}
    for row in rows:
        for name, value in row.draw.items():
            if found.setdefault(name, type(value)) is not type(value):
                raise FormatError(
                    f"row {row.row}: draw {name}: expected {found[name].__name__} as in the rows before, got {value!r}"
                )
    # Parquet has no struct without fields.
    return pa.struct([(name, _TYPES[found[name]]) for name in sorted(found)]) if found else None
