"""A few bytes that stand for gigabytes, numbers that are none, and an index that lies: refused before they are used."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs import zstd

from store import rows as rows_module
from store.backends.zarr3 import encode_shard
from store.codecs.base import PartSpec
from store.errors import CorruptShardError
from store.parquet_pages import unpacked_size
from store.rows import parse_index
from store.shards import require_numbers
from tests.store.hostile_stores import COLUMN, copy, found, pristine, refused, replace_object, said

INDEX = "index/part-00000.parquet"
SHARD = "level_0/c/0/0/0/0"
FILE = pa.struct([("suffix", pa.string()), ("offset", pa.int64()), ("size", pa.int64()), ("sha256", pa.string())])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pristine(tmp_path_factory.mktemp("model") / "store")


@pytest.fixture
def root(model: Path, tmp_path: Path) -> Path:
    return copy(model, tmp_path / "store")


# The index


def columns_of(count: int = 2, **changes: Any) -> dict[str, Any]:
    """An index's columns, sound but for the changes."""
    entries = [[{"suffix": "png", "offset": 512 + 2048 * row, "size": 9, "sha256": "0" * 64}] for row in range(count)]
    return {
        "row": pa.array(range(count), pa.int64()),
        "key": pa.array([f"k{row}" for row in range(count)], pa.string()),
        "view": pa.array([0] * count, pa.int64()),
        "sha256": pa.array(["0" * 64] * count, pa.string()),
        "label": pa.array([None] * count, pa.int64()),
        "error": pa.array([None] * count, pa.string()),
        "files": pa.array(entries, pa.list_(FILE)),
        **changes,
    }


def parquet(columns: dict[str, Any], **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, compression="zstd", **options)
    return bytes(sink.getvalue())


def parse(data: bytes, count: int = 2) -> Any:
    return parse_index(data, rows=range(count), where="some/index.parquet")


def files(*entries: dict[str, Any]) -> pa.Array:
    sound = {"suffix": "png", "offset": 512, "size": 9, "sha256": "0" * 64}
    return pa.array([[{**sound, **entry}] for entry in entries], pa.list_(FILE))


def test_a_sound_index_is_read():
    assert [row.key for row in parse(parquet(columns_of()))] == ["k0", "k1"]
    draw = pa.array([{"flip": True, "top": 1, "scale": 0.5, "mode": "a"}, None])
    assert parse(parquet(columns_of(draw=draw)))[0].draw == {"flip": True, "top": 1, "scale": 0.5, "mode": "a"}


ODD: dict[str, dict[str, Any]] = {
    "key as integers": {"key": pa.array([1, 2])},
    "key as bytes": {"key": pa.array([b"a", b"b"])},
    "key as a dictionary": {"key": pa.array(["a", "b"]).dictionary_encode()},
    "row as floats": {"row": pa.array([0.0, 1.0])},
    "row as int32": {"row": pa.array([0, 1], pa.int32())},
    "no files": {"files": pa.array(["a", "b"])},
    "files of files": {"files": pa.array([[["a"]], [["b"]]])},
    "draw of lists": {"draw": pa.array([{"a": [1]}, {"a": [2]}])},
    "draw of times": {"draw": pa.array([{"a": 1}, {"a": 2}]).cast(pa.struct([("a", pa.timestamp("s"))]))},
    "draw of bytes": {"draw": pa.array([{"a": b"x"}, {"a": b"y"}])},
    "extra": {"pickle": pa.array([b"\x80\x04.", b"\x80\x04."])},
    "absent rows": {"row": pa.array([0, None], pa.int64())},
    "absent keys": {"key": pa.array(["a", None])},
    "empty keys": {"key": pa.array(["a", ""])},
    "long keys": {"key": pa.array(["a", "b" * 4097])},
    "other rows": {"row": pa.array([0, 2], pa.int64())},
    "rows out of order": {"row": pa.array([1, 0], pa.int64())},
    "negative views": {"view": pa.array([0, -1], pa.int64())},
    "no image": {"files": pa.array([[], []], pa.list_(FILE))},
    "absent files": {"files": pa.array([None, None], pa.list_(FILE))},
    "image and error": {"error": pa.array(["x", None])},
    "negative offset": {"files": files({"offset": -512}, {})},
    "negative size": {"files": files({"size": -1}, {"offset": 1024})},
    "absent size": {"files": files({"size": None}, {"offset": 1024})},
    "large size": {"files": files({"size": 1 << 40}, {"offset": 1 << 50})},
    "overflow": {"files": files({"offset": 2**63 - 1}, {"offset": 2**63 - 1})},
    "overlap": {"files": files({"size": 600}, {"offset": 1024})},
    "the same bytes": {"files": files({}, {})},
    "suffix that leads out": {"files": files({"suffix": "../x"}, {"offset": 1024})},
    "suffix with a line": {"files": files({"suffix": "png\n"}, {"offset": 1024})},
    "suffix that is reserved": {"files": files({"suffix": "json"}, {"offset": 1024})},
    "suffix of a label alone": {"files": files({"suffix": "semseg.png"}, {"offset": 1024})},
    "digest": {"files": files({"sha256": "abc"}, {"offset": 1024})},
    "absent digest": {"files": files({"sha256": None}, {"offset": 1024})},
}


@pytest.mark.parametrize("name", ODD)
def test_an_index_of_anything_else_is_refused(name: str):
    with pytest.raises(CorruptShardError, match=r"^some/index\.parquet: not a part's index") as caught:
        parse(parquet(columns_of(**ODD[name])))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1" * 3, b"\x80\x04.", b"PAR1" + b"\xff" * 60 + b"PAR1"])
def test_other_files_are_no_index(data: bytes):
    with pytest.raises(CorruptShardError, match="not a part's index"):
        parse(data)


def test_an_index_of_more_rows_than_the_part_is_not_unpacked():
    count = 1 << 20
    nothing = {name: pa.nulls(count, kind) for name, kind in rows_module._COLUMNS.items()}
    data = parquet(nothing)
    assert len(data) < 50_000
    before = pa.default_memory_pool().bytes_allocated()
    with pytest.raises(CorruptShardError, match=f"expected 2 rows, got {count}"):
        parse(data)
    assert pa.default_memory_pool().bytes_allocated() <= before


def test_pages_are_added_up_whatever_the_footer_says(monkeypatch: pytest.MonkeyPatch):
    data = parquet(columns_of(key=pa.array(["a", "b" * 3_000_000])), use_dictionary=False)
    assert len(data) < 10_000
    honest = pq.ParquetFile(pa.BufferReader(data)).metadata
    small = rewritten(data, honest)
    lying = pq.ParquetFile(pa.BufferReader(small)).metadata
    assert honest.row_group(0).total_byte_size > 3_000_000
    assert lying.row_group(0).total_byte_size < 10_000
    assert unpacked_size(small) == unpacked_size(data)
    assert unpacked_size(small).bytes > 3_000_000
    monkeypatch.setattr(rows_module, "_MAX_INDEX_BYTES", 1 << 20)
    for file in (data, small):
        with pytest.raises(CorruptShardError, match=r"unpacks to 3\d{6} bytes"):
            parse(file)


def rewritten(data: bytes, metadata: Any) -> bytes:
    """The same file with a footer that calls its pages small."""
    for number in {metadata.row_group(0).total_byte_size, metadata.row_group(0).column(1).total_uncompressed_size}:
        data = data.replace(varint(2 * number, 0), varint(100, len(varint(2 * number, 0))))
    return data


def varint(value: int, length: int) -> bytes:
    """Thrift's form of a number, filled up to a length."""
    digits = bytearray()
    while value > 127 or len(digits) + 1 < length:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes([*digits, value])


def test_lists_of_very_many_are_refused_by_their_page_headers():
    many = pa.ListArray.from_arrays([0, 1 << 20, 1 << 20], pa.nulls(1 << 20, FILE))
    data = parquet(columns_of(files=many))
    assert len(data) < 50_000
    with pytest.raises(CorruptShardError, match=f"up to {(1 << 20) + 1} values in a column"):
        parse(data)


def test_a_text_that_is_stored_once_does_not_fill_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rows_module, "_MAX_INDEX_BYTES", 1 << 20)
    count = 2000
    draw = pa.array([{"a": "x" * 100_000}] * count)
    data = parquet(columns_of(count, draw=draw))
    assert len(data) < 100_000
    with pytest.raises(CorruptShardError, match="texts take more than"):
        parse(data, count)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_page_headers_of_any_bytes_are_read_or_refused(data: st.DataObject):
    sound = parquet(columns_of())
    changed = bytearray(sound)
    for position in data.draw(st.lists(st.integers(0, len(sound) - 1), min_size=1, max_size=8)):
        changed[position] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ValueError):
        assert unpacked_size(bytes(changed)).bytes >= 0


# Rows


def shard(rows: np.ndarray) -> bytes:
    return encode_shard(rows, rows_per_shard=8)


def test_rows_that_unpack_to_something_else_are_refused(root: Path):
    """Records agree with the file, and each chunk has its checksum: only what it unpacks to is wrong."""
    for rows in (np.zeros((8, 1 << 22), np.int8), np.zeros((8, 3), np.int8)):
        replace_object(root, COLUMN, SHARD, shard(rows))
        refused(root, r"level_0/c/0/0/0/0: row 0: expected 128 bytes in it, got", by="features")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scales_that_are_no_numbers_are_refused(root: Path, value: float):
    scale = np.ones((8, 1, 4, 4), np.float32)
    scale[3, 0, 2, 1] = value
    replace_object(root, COLUMN, "level_0_scale/c/0/0/0/0", shard(scale))
    refused(root, "level_0_scale/c/0/0/0/0: row 3: expected finite numbers, found NaN or infinity", by="features")


@pytest.mark.parametrize(("codec", "bits"), [("fp32", 0x7FC00000), ("fp16", 0xFC00), ("bf16", 0x7F80)])
def test_features_that_are_no_numbers_are_refused(tmp_path: Path, codec: str, bits: int):
    root = pristine(tmp_path / "store", codec=codec)
    kind = "<u4" if codec == "fp32" else "<u2"
    rows = np.zeros((8, 8, 4, 4), kind)
    rows[5, 7, 3, 3] = bits
    replace_object(root, COLUMN, SHARD, shard(rows))
    refused(root, "level_0/c/0/0/0/0: row 5: expected finite numbers, found NaN or infinity", by="features")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_all_other_numbers_pass(dtype: str):
    limits = np.finfo(dtype)
    values = np.array([0, -0.0, limits.max, limits.min, limits.tiny, limits.smallest_subnormal, 1], dtype)

    def decode(data: bytes, out: np.ndarray) -> None:
        out[:] = np.frombuffer(data, np.uint8)

    check = require_numbers(decode, PartSpec(shape=(7,), dtype=dtype))
    out = np.empty(values.nbytes, np.uint8)
    check(values.tobytes(), out)
    assert require_numbers(decode, PartSpec(shape=(7,), dtype="int16")) is decode


def test_a_shard_index_that_points_elsewhere_locates_nothing(root: Path):
    import google_crc32c

    good = found(root, f"{COLUMN}/{SHARD}").read_bytes()
    for offset, size in ((2**64 - 1, 5), (2**64 - 2, 2**63), (0, 2**64 - 1), (len(good), 4), (0, 0), (2**63, 2**63)):
        index = bytearray(good[-132:-4])
        index[:16] = offset.to_bytes(8, "little") + size.to_bytes(8, "little")
        checksum = google_crc32c.value(bytes(index)).to_bytes(4, "little")
        replace_object(root, COLUMN, SHARD, good[:-132] + bytes(index) + checksum)
        refused(root, "row 0: the shard index does not locate it", by="features")


def test_rows_may_not_be_read_from_beside_the_row(root: Path):
    """Two rows of one chunk: each is sound, and only their digests tell."""
    import google_crc32c

    good = found(root, f"{COLUMN}/{SHARD}").read_bytes()
    index = bytearray(good[-132:-4])
    index[16:32] = index[:16]
    replace_object(
        root, COLUMN, SHARD, good[:-132] + bytes(index) + google_crc32c.value(bytes(index)).to_bytes(4, "little")
    )
    assert "the numbers of level_0 are not those that were committed" in said(root, "verify")["verify"]


# All of memory

SCRIPT = """
import json, resource, sys
from pathlib import Path
from store.errors import StoreError
from tests.store.hostile_stores import attempts
answers = {}
sys.setswitchinterval(1)
for place in json.loads(sys.argv[1]):
    every = attempts(Path(place))
    used = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) << 10
    resource.setrlimit(resource.RLIMIT_AS, (used + (700 << 20), resource.RLIM_INFINITY))
    for name in ("pixels", "features", "verify"):
        try:
            answers[f"{Path(place).name} {name}"] = str(every[name]() and "read")
        except StoreError as error:
            answers[f"{Path(place).name} {name}"] = str(error)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(json.dumps(answers))
"""


def test_bombs_do_not_fill_memory(model: Path, tmp_path: Path):
    """In a process that may take 700 MB more than it has, which the bombs would exceed several times over."""
    rows = copy(model, tmp_path / "rows")
    chunk = zstd.compress(bytes(1 << 30), 1)
    replace_object(rows, COLUMN, SHARD, with_chunk(found(rows, f"{COLUMN}/{SHARD}").read_bytes(), chunk))
    index = copy(model, tmp_path / "index")
    text = pa.array(["k" * (36 << 20)] * 8)
    data = parquet(columns_of(8, key=text), use_dictionary=False, write_statistics=False)
    assert len(data) < 1 << 20
    replace_object(index, "views/train", INDEX, data)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps([str(rows), str(index)])],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=Path(__file__).resolve().parents[2],
        env={"PYTHONPATH": f"{Path(__file__).resolve().parents[2]}:{Path(__file__).parent}", "MALLOC_ARENA_MAX": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers = json.loads(done.stdout)
    assert "row 0: the shard index does not locate it" in answers["rows features"], "larger than any row of its size"
    assert answers["rows verify"] == "read"
    assert "unpacks to" in answers["index pixels"], answers
    assert answers["index verify"] == "read"


def with_chunk(shard: bytes, chunk: bytes) -> bytes:
    """A shard whose first row is another chunk, with its checksum."""
    import google_crc32c

    whole = chunk + google_crc32c.value(chunk).to_bytes(4, "little")
    index = bytearray(shard[-132:-4])
    index[:16] = (len(shard) - 132).to_bytes(8, "little") + len(whole).to_bytes(8, "little")
    return shard[:-132] + whole + bytes(index) + google_crc32c.value(bytes(index)).to_bytes(4, "little")
