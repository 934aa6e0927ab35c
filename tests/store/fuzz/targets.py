"""What is fuzzed: each target reads bytes as a part of a store and may only accept them or raise what it documents.

Bytes that come with a checksum or digest in a store get a right one here: whoever can write a store can compute it, and
a fuzzer cannot guess it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from store.backends.base import LevelArray
from store.backends.tar import WebDataset, npy_header
from store.backends.zarr3 import Zarr3, decode_row, encode_row
from store.codecs.base import LevelSpec, PartSpec
from store.codecs.klt import Klt
from store.codecs.registry import make_fitter
from store.commits import PartCommit
from store.document import parse_document, render_document
from store.errors import StoreError
from store.layout import load_column
from store.rows import parse_index
from store.spec import ViewSetSpec
from store.tarball import build_tar, scan_tar
from store.uses import Use

__all__ = ["CORPUS", "REGRESSIONS", "TARGETS", "klt_assets"]

HERE = Path(__file__).resolve().parent
CORPUS, REGRESSIONS = HERE / "corpus", HERE / "regressions"
ARRAYS = (
    LevelArray(0, "values", "level_0", PartSpec(shape=(3, 2), dtype="int8")),
    LevelArray(0, "scale", "level_0_scale", PartSpec(shape=(2,), dtype="float32")),
)
ROWS = 4


class Memory:
    """Bytes as a file of a store."""

    def __init__(self, data: bytes) -> None:
        self.data, self.size = data, len(data)

    def read(self, offset: int, size: int, /) -> bytes:
        assert offset >= 0
        assert size >= 0
        return self.data[offset : offset + size]


class MemoryRoot:
    """A dictionary as a root, as far as descriptions of columns need one."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = files

    def where(self, relative: str, /) -> str:
        return relative

    def read_bytes(self, relative: str, /, *, max_bytes: int) -> bytes:
        if relative not in self._files:
            raise StoreError(f"{relative}: missing")
        return self._files[relative]


def documents(data: bytes) -> None:
    """Any bytes as a document, and any JSON as the body of one of every kind."""
    for kind in ("store", "commit"):
        with contextlib.suppress(StoreError):
            assert render_document(kind, parse_document(data, kind=kind, where="x")) == data
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        return
    if isinstance(body, dict):
        for kind, parse in BODIES.items():
            with contextlib.suppress(StoreError):
                document = render_document(kind, body)
                again = parse(document)
                assert again is None or again == document, kind


def _view_set(document: bytes) -> bytes:
    spec = ViewSetSpec.from_json(parse_document(document, kind="view_set", where="x"))
    assert spec.part_rows(spec.parts - 1).stop == spec.rows
    return render_document("view_set", spec.to_json())


def _commit(document: bytes) -> bytes:
    commit = PartCommit.parse(document, where="x")
    assert all(commit.start <= row < commit.stop for row in commit.excluded)
    return commit.render()


def _use(document: bytes) -> bytes:
    return Use.parse(document, where="x").render()


def _column(document: bytes) -> None:
    body = json.loads(document)["body"]
    files = {"columns/a/b/column.json": document}
    with contextlib.suppress(TypeError, KeyError):
        for name in body["assets"]:  # all there and right, so that what comes after them is reached
            path = f"columns/a/b/codec_{name}/c/0"
            files |= {f"{path}{'/0' * rank}": encode_row(np.zeros(4, np.float32)) for rank in range(4)}
    load_column(MemoryRoot(files), "columns/a/b")  # type: ignore[arg-type]


BODIES: Mapping[str, Callable[[bytes], bytes | None]] = {
    "view_set": _view_set,
    "commit": _commit,
    "use": _use,
    "column": _column,
}


def tar(data: bytes) -> None:
    """Any bytes as the tar of a view set's part, and of a column's."""
    with contextlib.suppress(StoreError):
        members = scan_tar(Memory(data), where="x")  # type: ignore[arg-type]
        triples = [(row, suffix, data[offset : offset + size]) for row, suffix, offset, size in members]
        assert build_tar(triples).data == _without_padding(data, members)
    with contextlib.suppress(ValueError):
        found = WebDataset().index(Memory(data), ARRAYS, rows=range(ROWS), rows_per_shard=ROWS)
        for extents in found.values():
            assert all(
                0 < start < start + size <= len(data)
                for start, size in zip(extents.offsets, extents.sizes, strict=True)
            )


def _without_padding(data: bytes, members: Any) -> bytes:
    """What fills up a member's last block means nothing; zeros are what we write."""
    clean = bytearray(data)
    for member in members:
        end = member.offset + member.size
        clean[end : end + -end % 512] = bytes(-end % 512)
    return bytes(clean)


def member(data: bytes) -> None:
    """Any bytes as a row of a tar: as the frame itself, and as what is in it."""
    spec = ARRAYS[0].spec
    decode = WebDataset().decoder(spec)
    out = np.empty(spec.row_bytes, np.uint8)
    for frame in (data, _framed(data)):
        with contextlib.suppress(ValueError):
            decode(frame, out)
            continue
        assert frame != _framed(npy_header(spec) + data[-6:])


def _framed(data: bytes) -> bytes:
    from store.backends.frames import compress

    return compress(data, checksum=True)


def shard(data: bytes) -> None:
    """Any bytes as a shard with a right checksum of its index, and as rows with a right checksum."""
    whole = data + _crc(data[-16 * ROWS :])
    array = LevelArray(0, "values", "level_0", PartSpec(shape=(40,), dtype="uint8"))
    out = np.empty(40, np.uint8)
    with contextlib.suppress(ValueError):
        extents = Zarr3().index(Memory(whole), [array], rows=range(ROWS), rows_per_shard=ROWS)["level_0"]
        for start, size in zip(extents.offsets, extents.sizes, strict=True):
            assert 0 <= start <= start + size <= len(data)
            chunk = whole[start : start + size]
            for row in (chunk, chunk + _crc(chunk)):
                with contextlib.suppress(ValueError):
                    decode_row(row, out)


def _crc(data: bytes) -> bytes:
    return int(google_crc32c.value(data)).to_bytes(4, "little")


def index(data: bytes) -> None:
    """Any bytes as a part's index."""
    for rows in (range(2), range(8, 16)):
        with contextlib.suppress(StoreError):
            found = parse_index(data, rows=rows, where="x")
            assert [row.row for row in found] == list(rows)


@cache
def klt_assets() -> dict[str, np.ndarray]:
    """Assets of a small sound codec of two levels, the second predicted."""
    levels = [LevelSpec(components=6, height=4, width=2)] * 2
    fitter = make_fitter({"name": "klt", "error": 0.05, "block": 2}, levels)
    generator = np.random.default_rng(0)
    first = generator.normal(0, 3, (32, 6, 4, 2)).astype(np.float32)
    maps = [first, (first + generator.normal(0, 0.3, first.shape)).astype(np.float32)]
    for _ in range(fitter.passes):
        fitter.add(maps)
        fitter.end_pass()
    return dict(fitter.codec().assets())


def klt(data: bytes) -> None:
    """Assets with some of their bytes overwritten: 4 bytes say which asset, where and what; the rest is a row."""
    assets = {name: values.copy() for name, values in klt_assets().items()}
    count = data[0] % 8 if data else 0
    names = sorted(assets)
    for place in range(1, 1 + 4 * count, 4):
        edit = data[place : place + 4]
        if len(edit) == 4:
            raw = assets[names[edit[0] % len(names)]].reshape(-1).view(np.uint8)
            raw[(edit[1] << 8 | edit[2]) % len(raw)] = edit[3]
    levels = [LevelSpec(components=6, height=4, width=2)] * 2
    with contextlib.suppress(StoreError):
        codec = Klt(error=0.05, block=2, fitted=assets)
        for level, spec in enumerate(levels):
            (size,) = codec.parts(spec, index=level)["values"].shape
            assert size < 1 << 20
        parts = {}
        for level, spec in enumerate(levels):
            (size,) = codec.parts(spec, index=level)["values"].shape
            row = np.frombuffer(data[-size:].ljust(size, b"\0"), np.uint8)
            parts[level] = {"values": row[None]}
        with np.errstate(over="ignore", invalid="ignore"):
            for maps in codec.decode_levels(parts, levels=[0, 1]):
                assert maps.shape == (1, 6, 4, 2)
                assert maps.dtype == np.float32


TARGETS: Mapping[str, Callable[[bytes], None]] = {
    "documents": documents,
    "tar": tar,
    "member": member,
    "shard": shard,
    "index": index,
    "klt": klt,
}
