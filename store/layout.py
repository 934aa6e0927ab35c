"""Which arrays and files make up a column, and the files that describe them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from store.codecs.base import PartSpec
from store.commits import digest_objects
from store.document import MAX_DOCUMENT_BYTES, parse_document, render_document
from store.errors import CorruptShardError, FormatError
from store.fingerprint import digest_bytes
from store.root import Root
from store.shard import ObjectDigest, array_metadata, chunk_key, decode_row, encode_row, group_metadata
from store.spec import ColumnSpec, ViewSetSpec

__all__ = ["ColumnRecord", "LevelArray", "LoadedColumn", "column_files", "level_arrays", "load_column", "load_record"]

_MAX_ASSET_BYTES = 4 << 30
_RECORD = "column.json"


class LevelArray(NamedTuple):
    """One Zarr array of a column: which part of which level, and its folder inside the column."""

    level: int
    part: str
    name: str
    spec: PartSpec

    def chunk(self, part: int) -> str:
        """Path of one shard inside the column."""
        return f"{self.name}/{chunk_key(part, rank=len(self.spec.shape))}"


def level_arrays(spec: ColumnSpec, /) -> tuple[LevelArray, ...]:
    """All arrays of a column: ``level_0`` for the main part of level 0, ``level_0_scale`` for its part ``scale``."""
    return tuple(
        LevelArray(level, part, f"level_{level}" if part == "values" else f"level_{level}_{part}", part_spec)
        for level, level_spec in enumerate(spec.levels)
        for part, part_spec in spec.codec.parts(level_spec).items()
    )


def column_files(spec: ColumnSpec, view_set: ViewSetSpec, /) -> dict[str, bytes]:
    """Files that a new column begins with, ``column.json`` last: with it the column exists."""
    arrays = {
        array.name: array_metadata(array.spec, rows=view_set.rows, rows_per_shard=view_set.rows_per_shard)
        for array in level_arrays(spec)
    }
    chunks: dict[str, bytes] = {}
    assets: dict[str, Any] = {}
    for name, values in spec.codec.assets().items():
        part = PartSpec(shape=values.shape[1:], dtype=values.dtype.name)
        arrays[f"codec_{name}"] = array_metadata(part, rows=len(values), rows_per_shard=None)
        chunks[_asset_chunk(name, values.ndim)] = encode_row(values)
        assets[name] = {"shape": list(values.shape), "dtype": values.dtype.name}
    files = {"zarr.json": group_metadata(arrays), **chunks}
    files.update({f"{name}/zarr.json": data for name, data in arrays.items()})
    objects = {path: {"sha256": item.sha256, "size": item.size} for path, item in digest_objects(files).items()}
    files[_RECORD] = render_document("column", {"spec": spec.to_json(), "assets": assets, "objects": objects})
    return files


class ColumnRecord(NamedTuple):
    """What ``column.json`` says: the spec as JSON, shapes and types of assets, digests of the other files."""

    spec: Mapping[str, Any]
    assets: Mapping[str, tuple[tuple[int, ...], np.dtype[np.generic]]]
    objects: Mapping[str, ObjectDigest]


def load_record(root: Root, folder: str, /) -> ColumnRecord:
    """Read ``column.json`` and nothing else.

    Raises:
        FormatError: It is malformed or of a newer version.
        CorruptShardError: Its bytes have changed.
    """
    relative = f"{folder}/{_RECORD}"
    where = str(root.local(relative))
    body = parse_document(root.read_bytes(relative, max_bytes=MAX_DOCUMENT_BYTES), kind="column", where=where)
    try:
        objects = {path: ObjectDigest(**item) for path, item in body["objects"].items()}
        assets = {name: (tuple(item["shape"]), np.dtype(item["dtype"])) for name, item in body["assets"].items()}
        return ColumnRecord(body["spec"], assets, objects)
    except (TypeError, KeyError, AttributeError) as error:
        raise FormatError(f"{where}: not a column description of this version ({error})") from error


class LoadedColumn(NamedTuple):
    """A column's spec, and digests of the files that describe its arrays."""

    spec: ColumnSpec
    objects: Mapping[str, ObjectDigest]


def load_column(root: Root, folder: str, /) -> LoadedColumn:
    """Read and check a column's description and codec assets.

    Raises:
        FormatError: It is malformed, of a newer version, or belongs to another folder.
        CorruptShardError: Bytes have changed.
    """
    where = str(root.local(f"{folder}/{_RECORD}"))
    record = load_record(root, folder)
    assets = {
        name: _load_asset(root, folder, record.objects, name=name, shape=shape, dtype=dtype)
        for name, (shape, dtype) in record.assets.items()
    }
    spec = ColumnSpec.from_json(record.spec, assets=assets)
    if folder != f"columns/{spec.view_set}/{spec.name}":
        raise FormatError(f"{where}: expected the column {folder}, got {spec.view_set}/{spec.name}; a folder was moved")
    return LoadedColumn(spec, record.objects)


def _asset_chunk(name: str, rank: int) -> str:
    return f"codec_{name}/{chunk_key(0, rank=rank - 1)}"


def _load_asset(
    root: Root,
    folder: str,
    objects: Mapping[str, ObjectDigest],
    *,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[np.generic],
) -> NDArray[np.generic]:
    relative = _asset_chunk(name, len(shape))
    where = str(root.local(f"{folder}/{relative}"))
    values = [type(size) is int and size > 0 for size in shape]
    if not values or not all(values) or dtype.kind not in "iuf" or np.prod(shape) * dtype.itemsize > _MAX_ASSET_BYTES:
        raise FormatError(f"{where}: refused codec asset of shape {shape} and type {dtype}")
    data = root.read_bytes(f"{folder}/{relative}", max_bytes=_MAX_ASSET_BYTES)
    if relative not in objects or digest_bytes(data) != objects[relative].sha256:
        raise CorruptShardError(f"{where}: its SHA-256 differs from column.json; run sak store verify")
    array = np.empty(shape, dtype=dtype)
    try:
        decode_row(data, array.reshape(-1).view(np.uint8))
    except ValueError as error:
        raise CorruptShardError(f"{where}: {error}; run sak store verify") from error
    return array
