"""Which arrays and files make up a column, and the files that describe them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from store.backends.base import Backend, LevelArray
from store.backends.registry import backend_of
from store.backends.zarr3 import array_metadata, chunk_key, decode_row, encode_row, group_metadata
from store.codecs.base import PartSpec
from store.commits import ObjectDigest, digest_objects, parse_digest
from store.document import MAX_DOCUMENT_BYTES, parse_document, render_document
from store.errors import CorruptShardError, FormatError
from store.fingerprint import digest_bytes
from store.root import Root
from store.spec import ColumnSpec, ViewSetSpec

__all__ = [
    "ColumnRecord",
    "LoadedColumn",
    "check_metadata",
    "column_files",
    "level_arrays",
    "load_column",
    "load_record",
]

_MAX_ASSET_BYTES = 256 << 20
_MAX_ASSETS_BYTES = 1 << 30
_ASSET_TYPES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "float16", "float32", "float64")
_RECORD = "column.json"


def level_arrays(spec: ColumnSpec, /) -> tuple[LevelArray, ...]:
    """All arrays of a column: ``level_0`` for the main part of level 0, ``level_0_scale`` for its part ``scale``."""
    return tuple(
        LevelArray(level, part, f"level_{level}" if part == "values" else f"level_{level}_{part}", part_spec)
        for level, level_spec in enumerate(spec.levels)
        for part, part_spec in spec.codec.parts(level_spec, index=level).items()
    )


def column_files(spec: ColumnSpec, view_set: ViewSetSpec, /, *, backend: Backend) -> dict[str, bytes]:
    """Files that a new column begins with, ``column.json`` last: with it the column exists.

    Codec assets are Zarr arrays in every backend.
    """
    arrays = backend.metadata(level_arrays(spec), rows=view_set.array_rows, rows_per_shard=view_set.rows_per_shard)
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
    body = {"spec": spec.to_json(), "backend": backend.name, "assets": assets, "objects": objects}
    files[_RECORD] = render_document("column", body)
    return files


class ColumnRecord(NamedTuple):
    """What ``column.json`` says: the spec as JSON, shapes and types of assets, digests of the other files.

    The backend stands beside the spec and not in it: how features are stored does not change what they are.
    """

    spec: Mapping[str, Any]
    backend: Backend
    assets: Mapping[str, tuple[tuple[int, ...], np.dtype[np.generic]]]
    objects: Mapping[str, ObjectDigest]


def load_record(root: Root, folder: str, /) -> ColumnRecord:
    """Read ``column.json`` and nothing else.

    Raises:
        FormatError: It is malformed or of a newer version.
        CorruptShardError: Its bytes have changed.
    """
    relative = f"{folder}/{_RECORD}"
    where = root.where(relative)
    body = parse_document(root.read_bytes(relative, max_bytes=MAX_DOCUMENT_BYTES), kind="column", where=where)
    unknown = sorted(set(body) - {"spec", "backend", "assets", "objects"})
    if unknown:
        raise FormatError(f"{where}: not a column description of this version (unknown {unknown})")
    try:
        objects = {path: parse_digest(item) for path, item in body["objects"].items()}
        assets = {name: (tuple(item["shape"]), _asset_type(item["dtype"])) for name, item in body["assets"].items()}
        # Columns of the first days have no word on it.
        return ColumnRecord(body["spec"], backend_of(body.get("backend", "zarr"), where=where), assets, objects)
    except FormatError:
        raise
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise FormatError(f"{where}: not a column description of this version ({error})") from error


class LoadedColumn(NamedTuple):
    """A column's spec, how it is stored, and digests of the files that describe its arrays."""

    spec: ColumnSpec
    backend: Backend
    objects: Mapping[str, ObjectDigest]


def load_column(root: Root, folder: str, /) -> LoadedColumn:
    """Read and check a column's description and codec assets.

    Raises:
        FormatError: It is malformed, of a newer version, or belongs to another folder.
        CorruptShardError: Bytes have changed.
    """
    where = root.where(f"{folder}/{_RECORD}")
    record = load_record(root, folder)
    _check_assets(record, where=where)
    assets = {
        name: _load_asset(root, folder, record.objects, name=name, shape=shape, dtype=dtype)
        for name, (shape, dtype) in record.assets.items()
    }
    try:
        spec = ColumnSpec.from_json(record.spec, assets=assets)
        level_arrays(spec)
    except FormatError as error:
        raise FormatError(f"{where}: {error}") from error
    if folder != f"columns/{spec.view_set}/{spec.name}":
        raise FormatError(f"{where}: expected the column {folder}, got {spec.view_set}/{spec.name}; a folder was moved")
    return LoadedColumn(spec, record.backend, record.objects)


def _asset_type(name: object) -> np.dtype[np.generic]:
    # Not whatever NumPy takes for a type, which may be a program of its own.
    if name not in _ASSET_TYPES:
        raise ValueError(f"expected a type of {', '.join(_ASSET_TYPES)}, got {name!r}")
    return np.dtype(str(name))


def _check_assets(record: ColumnRecord, *, where: str) -> None:
    """Refuse shapes that nobody could have fitted before anything is allocated."""
    total = 0
    for name, (shape, dtype) in record.assets.items():
        sane = 1 <= len(shape) <= 8 and all(type(size) is int and 1 <= size <= _MAX_ASSET_BYTES for size in shape)
        size = math.prod(shape) * dtype.itemsize if sane else 0
        total += size
        if not sane or size > _MAX_ASSET_BYTES or total > _MAX_ASSETS_BYTES:
            raise FormatError(f"{where}: refused codec asset {name!r} of shape {shape} and type {dtype}")


def check_metadata(root: Root, folder: str, spec: ColumnSpec, view_set: ViewSetSpec, /, *, backend: Backend) -> None:
    """Compare ``zarr.json`` files with those that we write: libraries obey them, and they could name any codec.

    A column may know of fewer views than its view set: views were appended since.

    Raises:
        CorruptShardError: One says something else, whatever its digest.
    """
    views = view_set.views
    if backend.name == "zarr":
        first = root.read_bytes(f"{folder}/{level_arrays(spec)[0].name}/zarr.json", max_bytes=MAX_DOCUMENT_BYTES)
        views = _described_views(first, view_set) or views
    for path, data in column_files(spec, view_set.with_views(views), backend=backend).items():
        relative = f"{folder}/{path}"
        if path.endswith("zarr.json") and root.read_bytes(relative, max_bytes=MAX_DOCUMENT_BYTES) != data:
            raise CorruptShardError(
                f"{root.where(relative)}: not what sak writes for this column; delete its column.json, and the same "
                "sak extract writes both again"
            )


def _described_views(data: bytes, view_set: ViewSetSpec) -> int | None:
    """How many views an array's ``zarr.json`` tells of; None where it tells nothing sane."""
    try:
        rows = json.loads(data)["shape"][0]
    except (ValueError, RecursionError, LookupError, TypeError):
        return None
    return view_set.array_views(rows) if type(rows) is int and 1 <= rows <= view_set.array_rows else None


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
    where = root.where(f"{folder}/{relative}")
    data = root.read_bytes(f"{folder}/{relative}", max_bytes=_MAX_ASSET_BYTES)
    if relative not in objects or digest_bytes(data) != objects[relative].sha256:
        raise CorruptShardError(f"{where}: its SHA-256 differs from column.json; run sak store verify")
    array = np.empty(shape, dtype=dtype)
    try:
        decode_row(data, array.reshape(-1).view(np.uint8))
    except ValueError as error:
        raise CorruptShardError(f"{where}: {error}; run sak store verify") from error
    return array
