"""One row of a view set, and the Parquet index that describes a part's rows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from store.errors import CorruptShardError, FormatError
from store.parquet_pages import unpacked_size
from store.tarball import SUFFIX

__all__ = ["FileEntry", "IndexRow", "Scalar", "ViewRow", "image_suffix", "parse_index", "render_index"]

Scalar: TypeAlias = int | float | bool | str
_MAX_INDEX_BYTES = 256 << 20
_MAX_KEY = 4096
_MAX_FILE_BYTES = 256 << 20
_MAX_FILES = 64
_BATCH_BYTES = 64 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")
_RESERVED = "json"
# RuntimeError and the two after it are what exceptions of Arrow's own C++ that it does not translate become.
_PARQUET_ERRORS = (
    pa.ArrowException,
    OSError,
    LookupError,
    TypeError,
    AttributeError,
    ValueError,
    RuntimeError,
    ArithmeticError,
    MemoryError,
)
_TYPES: Mapping[type, pa.DataType] = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
_FILE = pa.struct([("suffix", pa.string()), ("offset", pa.int64()), ("size", pa.int64()), ("sha256", pa.string())])
_COLUMNS: Mapping[str, pa.DataType] = {
    "row": pa.int64(),
    "key": pa.string(),
    "view": pa.int64(),
    "sha256": pa.string(),
    "label": pa.int64(),
    "error": pa.string(),
    "files": pa.list_(_FILE),
}


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
        if not isinstance(self.key, str) or not 1 <= len(self.key) <= _MAX_KEY:
            raise FormatError(f"row {self.row}: key: expected 1 to {_MAX_KEY} characters, got {self.key!r}")
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


def parse_index(data: bytes, /, *, rows: range, where: str) -> tuple[IndexRow, ...]:
    """Inverse of ``render_index``.

    Args:
        rows: Those that it must describe, in order.

    Raises:
        CorruptShardError: It is no such Parquet file, describes other rows, or unpacks to an absurd size.
    """
    try:
        size = unpacked_size(data)
        if size.rows != len(rows):
            raise ValueError(f"expected {len(rows)} rows, got {size.rows}")
        if size.bytes > _MAX_INDEX_BYTES or size.values > _MAX_FILES * len(rows):
            raise ValueError(f"unpacks to {size.bytes} bytes, and up to {size.values} values in a column")
        file = pq.ParquetFile(pa.BufferReader(data))
        _check_columns(file.schema_arrow)
        # A text that is stored once may stand in every row of a batch.
        batch = max(1, min(len(rows), _BATCH_BYTES // max(1, size.largest)))
        return tuple(_index_rows(file, rows, batch=batch))
    except _PARQUET_ERRORS as error:
        raise CorruptShardError(f"{where}: not a part's index ({error}); run sak store verify") from error


def _check_columns(schema: pa.Schema) -> None:
    found = {field.name: field.type for field in schema}
    draw = found.pop("draw", pa.struct([]))
    if found != _COLUMNS or not pa.types.is_struct(draw) or not {field.type for field in draw} <= {*_TYPES.values()}:
        raise TypeError(f"its columns are {', '.join(f'{name} {kind}' for name, kind in found.items())}")


def _index_rows(file: pq.ParquetFile, rows: range, *, batch: int) -> Iterator[IndexRow]:
    expected = iter(rows)
    end = held = 0
    for table in file.iter_batches(batch_size=batch):
        for raw in table.to_pylist():
            row = _index_row(raw)
            if row.row != next(expected):
                raise ValueError(f"row {row.row} is out of order")
            for entry in row.files:
                if entry.offset < end:
                    raise ValueError(f"row {row.row}: {entry.suffix} overlaps what is before it")
                end = entry.offset + entry.size
            held += len(row.key) + len(row.error or "") + sum(len(str(item)) for item in row.draw.values())
            if held > _MAX_INDEX_BYTES:
                raise ValueError(f"its texts take more than {_MAX_INDEX_BYTES} bytes")
            yield row


def _index_row(row: Mapping[str, Any]) -> IndexRow:
    files = tuple(FileEntry(**entry) for entry in row["files"])
    numbers = [row["row"], row["view"], *(number for entry in files for number in (entry.offset, entry.size))]
    sound = all(type(number) is int and number >= 0 for number in numbers)
    sound = sound and isinstance(row["key"], str) and 1 <= len(row["key"]) <= _MAX_KEY
    sound = sound and bool(files) == (row["error"] is None) and len({entry.suffix for entry in files}) == len(files)
    if not sound or not all(_is_sound(entry) for entry in files):
        raise ValueError(f"row {row['row']!r} is malformed")
    if files:
        image_suffix([entry.suffix for entry in files], where=f"row {row['row']}")
    return IndexRow(
        row=row["row"],
        key=row["key"],
        view=row["view"],
        label=row["label"],
        draw={name: value for name, value in (row.get("draw") or {}).items() if value is not None},
        error=row["error"],
        image_sha256=row["sha256"],
        files=files,
    )


def _is_sound(entry: FileEntry) -> bool:
    named = SUFFIX.fullmatch(entry.suffix or "") is not None and entry.suffix != _RESERVED
    return named and _SHA256.fullmatch(entry.sha256 or "") is not None and entry.size <= _MAX_FILE_BYTES


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
