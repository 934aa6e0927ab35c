"""Parquet files that hold images as bytes, as data hubs give them: a column ``image`` of bytes, or of bytes and path.

Rows are read a row group at a time, and the last few groups stay in memory. In the random order of a view set nearly
every image costs its whole group, so small groups (100 rows or fewer) are what makes this source fast.
"""

from __future__ import annotations

import io
import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from hashlib import sha256
from posixpath import splitext

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import BadImageError, DataError
from pipeline.images.files import SUFFIXES, choose, decode_rgb
from pipeline.images.indices import Keys, indices, joined
from pipeline.images.packed import MAX_IMAGE_BYTES
from pipeline.images.ranges import RangeFile, open_range
from pipeline.images.sample import ImageSample, Unlabelled
from pipeline.images.shards import expand
from pipeline.images.tarscan import TAIL
from store.errors import UnreachableError, one_line

__all__ = ["LAYOUT", "ParquetImages"]

LAYOUT = (
    "Parquet files: a folder, paths with {00000..00293} or *, or http(s):// or s3:// addresses; each with a column"
    " 'image' of bytes, or of structs with bytes and path; {split} in it stands for the split, as train and val"
)
_COLUMN = "image"
_MAX_GROUP_BYTES = 1 << 30
_HELD_BYTES = 512 << 20
_ROWS_AT_ONCE = 16
_MAX_KEY = 1024
_SMALLER = "write the file again with row groups of 100 rows"
_SCHEMA = pa.schema(
    [
        ("key", pa.large_string()),
        ("name", pa.large_string()),
        ("group", pa.int32()),
        ("row", pa.int32()),
        ("size", pa.int64()),
        ("tail", pa.uint32()),
    ]
)


class ParquetImages(Unlabelled):
    """Images in Parquet files.

    A key is the column named as ``key``; else the image's path without suffix, where all have one and no two the same;
    else the file's name and the row's number in it.
    """

    def __init__(
        self, root: str, *, split: str = "all", images: int | None = None, seed: int = 0, key: str | None = None
    ) -> None:
        """Find the rows; nothing is decoded yet.

        Raises:
            DataError: No such file, split or column, a damaged file, a row group that is too large, or two rows with
                one key.
            UnreachableError: The network fails.
        """
        names = expand(root, split=split, suffix=".parquet")
        self._files = [open_range(name) for name in names]
        made = indices(self._files, kind=f"parquet {key or ''}", schema=_SCHEMA, build=lambda f, _: _index(f, key=key))
        rows = joined(_keyed(made, names, declared=key is not None), names=names)
        chosen = choose(len(rows), images=images, seed=seed, where=f"{root} ({split})")
        self._rows = rows if chosen is None else rows.take(pa.array(chosen, pa.int64()))
        self._groups = _Groups(self._files)
        self._keys = Keys(self._rows["key"])

    def fingerprint(self) -> str:
        """Digest of all keys, and of the size and last bytes of the row groups they are in; reads no image."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        state = sha256(b"parquet\0")
        for key in self._keys:
            state.update(f"{key}\n".encode())
        for name, kind in (("size", "<i8"), ("tail", "<u4"), ("row", "<i4")):
            state.update(self._rows[name].to_numpy().astype(kind).tobytes())
        return state.hexdigest()

    def keys(self) -> Sequence[str]:
        """Keys of the rows, sorted."""
        return self._keys

    def read(self, index: int, /, *, labels: bool = True) -> ImageSample:
        """Decode one image.

        Raises:
            BadImageError: It cannot be decoded, or its row has none; the message names it.
            DataError: Its file has changed, or cannot be read.
            UnreachableError: The network fails.
        """
        key = self._keys[index]
        file, group, row = (int(self._rows[name][index].as_py()) for name in ("file", "group", "row"))
        data = self._groups.image(file, group, row)
        if not data:
            raise BadImageError(f"{key}: its row has no bytes of an image; the file holds a path alone, or nothing")
        if len(data) > MAX_IMAGE_BYTES:
            raise BadImageError(f"{key}: refused, {len(data)} bytes, at most {MAX_IMAGE_BYTES}; shrink the image first")
        return ImageSample(key=key, image=decode_rgb(data, where=key))


class _Reader(io.RawIOBase):
    """A file as pyarrow reads it."""

    def __init__(self, file: RangeFile) -> None:
        self._file, self._position = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._file.size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self._file.size - self._position)
        data = self._file.read(self._position, left if size is None or size < 0 else min(size, left))
        self._position += len(data)
        return data


class _Groups:
    """Images of row groups, the last ones used held; threads may share it."""

    def __init__(self, files: Sequence[RangeFile]) -> None:
        self._files = files
        self._held: OrderedDict[tuple[int, int], pa.Array] = OrderedDict()
        self._lock = threading.Lock()

    def image(self, file: int, group: int, row: int) -> bytes | None:
        """Bytes of one image."""
        with self._lock:
            found = self._held.pop((file, group), None)
            if found is None:
                found = self._load(self._files[file], group)
            self._held[file, group] = found
            while len(self._held) > 1 and sum(array.nbytes for array in self._held.values()) > _HELD_BYTES:
                self._held.popitem(last=False)
            if row >= len(found):
                raise DataError(
                    f"{self._files[file].where}: its row group {group} ends before row {row}; copy it again"
                )
            data: bytes | None = found[row].as_py()
            return data

    def _load(self, file: RangeFile, group: int) -> pa.Array:
        with _opened(file) as parquet:
            leaf, pieces, size = _leaf(parquet, file), [], 0
            # A few rows at a time: repeated values take a byte in the file, and what a footer says of sizes is a claim.
            for some in parquet.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=[leaf], use_threads=False):
                values = some.column(_COLUMN)
                pieces.append(pc.struct_field(values, "bytes") if pa.types.is_struct(values.type) else values)
                size += pieces[-1].nbytes
                if size > _MAX_GROUP_BYTES:
                    raise DataError(f"{file.where}: a row group of more than {_MAX_GROUP_BYTES} bytes; {_SMALLER}")
            return pa.concat_arrays(pieces).cast(pa.large_binary())


@contextmanager
def _opened(file: RangeFile) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(pa.PythonFile(_Reader(file), mode="r"), page_checksum_verification=True) as parquet:
            yield parquet
    except (DataError, UnreachableError):
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, IndexError, MemoryError) as error:
        raise DataError(one_line(f"{file.where}: cannot be read as Parquet ({error}); copy the file again")) from error


def _leaf(parquet: pq.ParquetFile, file: RangeFile) -> str:
    """Name of the column of bytes."""
    schema = parquet.schema_arrow
    kind = schema.field(_COLUMN).type if _COLUMN in schema.names else None
    if kind is not None and pa.types.is_struct(kind) and "bytes" in (part.name for part in kind):
        leaf, kind = f"{_COLUMN}.bytes", kind.field("bytes").type
    else:
        leaf = _COLUMN
    if kind is None or not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        found = ", ".join(f"{item.name} ({item.type})" for item in schema)[:300]
        raise DataError(one_line(f"{file.where}: expected a column {_COLUMN!r} of image bytes, found {found}"))
    return leaf


def _index(file: RangeFile, *, key: str | None) -> pa.Table:
    """Where each row is, and what it is called."""
    with _opened(file) as parquet:
        leaf, meta = _leaf(parquet, file), parquet.metadata
        names = _names(parquet, file, key=key)
        rows = []
        for group in range(meta.num_row_groups):
            info = meta.row_group(group)
            chunk = next((c for c in map(info.column, range(info.num_columns)) if c.path_in_schema == leaf), None)
            if chunk is None:
                raise ValueError(f"row group {group} has no column {leaf}")
            if chunk.total_uncompressed_size > _MAX_GROUP_BYTES:
                size = chunk.total_uncompressed_size
                raise DataError(f"{file.where}: a row group of {size} bytes, at most {_MAX_GROUP_BYTES}; {_SMALLER}")
            rows.append((info.num_rows, chunk.total_compressed_size, _tail(file, chunk)))
        counted = [count for count, _, _ in rows]
        if min(counted, default=0) < 0 or sum(counted) != len(names):
            raise ValueError(f"its row groups have {counted[:8]} rows, its columns {len(names)}")
    table = np.array(rows, np.int64).reshape(-1, 3)
    counts, starts = table[:, 0], np.cumsum(table[:, 0]) - table[:, 0]
    groups = np.repeat(np.arange(len(rows)), counts)
    total = len(groups)
    columns = {
        "key": pa.array((f"{row:09d}" for row in range(total)), pa.large_string()),
        "name": names,
        "group": groups.astype(np.int32),
        "row": (np.arange(total) - starts[groups]).astype(np.int32),
        "size": table[groups, 1],
        "tail": table[groups, 2].astype(np.uint32),
    }
    return pa.table(columns, schema=_SCHEMA)


def _tail(file: RangeFile, chunk: pq.ColumnChunkMetaData) -> int:
    """CRC-32 of a column chunk's last bytes."""
    start = chunk.data_page_offset
    if chunk.has_dictionary_page and chunk.dictionary_page_offset:
        start = min(start, chunk.dictionary_page_offset)
    end = start + chunk.total_compressed_size
    size = min(TAIL, chunk.total_compressed_size)
    return zlib.crc32(file.read(end - size, size))


def _names(parquet: pq.ParquetFile, file: RangeFile, *, key: str | None) -> pa.Array:
    """The declared key of each row, or its path without suffix; null where it has none that can be a key."""
    schema = parquet.schema_arrow
    if key is None:
        kind = schema.field(_COLUMN).type
        if not pa.types.is_struct(kind) or "path" not in (part.name for part in kind):
            return pa.nulls(parquet.metadata.num_rows, pa.large_string())
        paths = pc.struct_field(parquet.read(columns=[f"{_COLUMN}.path"])[_COLUMN].combine_chunks(), "path")
        return pa.array(map(_stem, paths.to_pylist()), pa.large_string())
    if key not in schema.names or not (pa.types.is_integer(kind := schema.field(key).type) or _is_text(kind)):
        found = ", ".join(f"{item.name} ({item.type})" for item in schema)[:300]
        raise DataError(one_line(f"{file.where}: key: expected a column of texts or integers {key!r}, found {found}"))
    values = parquet.read(columns=[key])[key].combine_chunks().cast(pa.large_string())
    if values.null_count or not pc.all(pc.greater(pc.utf8_length(values), 0)).as_py():
        raise DataError(f"{file.where}: key: column {key!r} is empty in some rows; name another column")
    short, plain = pc.less_equal(pc.utf8_length(values), _MAX_KEY), pc.utf8_is_printable(values)
    if not pc.all(pc.and_(short, plain)).as_py():
        raise DataError(
            f"{file.where}: key: column {key!r} has keys of more than {_MAX_KEY} characters or with control characters;"
            " name another column"
        )
    return values


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _stem(path: str | None) -> str | None:
    if not path or path.startswith("/") or not path.isprintable() or {"", ".", ".."} & {*path.split("/")}:
        return None
    stem, suffix = splitext(path)
    return stem if suffix.lower() in SUFFIXES else path


def _keyed(made: Sequence[pa.RecordBatch], names: Sequence[str], *, declared: bool) -> list[pa.RecordBatch]:
    """The indices with the keys that the source gives: those that rows have of their own, or file and row."""
    own = pa.chunked_array([batch["name"] for batch in made], pa.large_string())
    if declared or (own.null_count == 0 and pc.count_distinct(own).as_py() == len(own)):
        return [_with_key(batch, batch["name"]) for batch in made]
    paths = [name.removesuffix(".parquet").split("/") for name in names]
    while min(map(len, paths)) > 1 and len({path[0] for path in paths}) == 1:
        paths = [path[1:] for path in paths]
    files = ["/".join(path) for path in paths]
    kind = pa.large_string()
    slash = pa.scalar("/", kind)
    return [
        _with_key(batch, pc.binary_join_element_wise(pa.scalar(file, kind), batch["key"], slash))
        for batch, file in zip(made, files, strict=True)
    ]


def _with_key(batch: pa.RecordBatch, key: pa.Array) -> pa.RecordBatch:
    return batch.set_column(batch.schema.get_field_index("key"), "key", key).replace_schema_metadata(None)
