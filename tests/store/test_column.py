from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import store_samples
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import store
from store.backends import zarr3
from store.column import Column
from store.costs import Spent
from store.document import render_document
from store.errors import CorruptShardError, FormatError, MissingRowsError, StoreError
from store.fingerprint import digest_keys
from store.local_root import LocalRoot
from store.store import Store
from store.viewset import ReadOptions

ENGINES = ("direct", "zarr", "zarrs")
CHUNK = "level_0/c/1/0/0/0"


def reopen(column: Column, **options: str) -> Column:
    root = column.view_set.tar_path(0).parents[3]
    return Store.open(root, options=ReadOptions(**options)).column("train", column.name)


def path_of(column: Column, relative: str) -> Path:
    return column.view_set.tar_path(0).parents[3] / column.folder / relative


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
@given(rows=st.lists(st.integers(0, 19), max_size=12), levels=st.sampled_from([None, (0,), (1,), (1, 0)]))
@pytest.mark.parametrize("engine", ENGINES)
def test_read_equals_encoding_each_row_by_itself(
    filled: Column, rows: list[int], levels: tuple[int, ...] | None, engine: str
):
    read = reopen(filled, engine=engine).read(rows, levels=levels)
    for level, parts in zip(levels or (0, 1), read, strict=True):
        assert set(parts) == {"values", "scale"}
        for part, values in parts.items():
            assert len(values) == len(rows)
            for row, value in zip(rows, values, strict=True):
                expected = filled.spec.codec.encode(store_samples.features(row, level)[None], level=level)[part][0]
                assert value.dtype == expected.dtype
                np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize("codec", ["fp32", "fp16", "int8"])
def test_floats_come_back_as_the_codec_gives_them(tmp_path: Path, codec: str):
    column = store_samples.fill(tmp_path / "store", codec)
    rows = [19, 0, 7, 8, 7]
    read = store.open(tmp_path / "store").read("train", columns=[column.name], rows=rows, levels=[1])
    (maps,) = read[column.name]
    feat_NCHW = np.stack([store_samples.features(row, 1) for row in rows])
    assert maps.dtype == np.float32
    expected = column.spec.codec.decode(column.spec.codec.encode(feat_NCHW, level=1), level=1)
    np.testing.assert_array_equal(maps, expected)


def test_decode_keeps_torch_tensors_torch(filled: Column):
    parts = filled.read([3, 1], levels=[0])[0]
    tensors = {0: {name: torch.from_numpy(values) for name, values in parts.items()}}
    (tensor,) = filled.spec.decode_levels(tensors, levels=[0])
    assert isinstance(tensor, torch.Tensor)
    np.testing.assert_array_equal(tensor.numpy(), filled.spec.decode_levels({0: parts}, levels=[0])[0])


def test_rows_of_uncommitted_parts_are_refused_and_named(filled: Column):
    filled.discard(1)
    with pytest.raises(MissingRowsError, match=r"rows 8 to 15 are not committed$"):
        reopen(filled).read([0, 9])
    assert filled.missing_parts() == (1,)
    store_samples.write_column_part(filled, 1)
    assert len(reopen(filled).read([0, 9])[0]["values"]) == 2


@pytest.mark.parametrize("row", [-1, 20])
def test_rows_that_do_not_exist_are_refused(filled: Column, row: int):
    with pytest.raises(MissingRowsError, match="rows from 0 to 19"):
        filled.read([0, row])


@pytest.mark.parametrize("levels", [[2], [-1], [0, 0]])
def test_levels_that_do_not_exist_are_refused(filled: Column, levels: list[int]):
    with pytest.raises(FormatError, match="different levels from 0 to 1"):
        filled.read([0], levels=levels)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("verify", ["shard", "row", "size"])
def test_a_flipped_byte_is_never_read(filled: Column, engine: str, verify: str):
    path = path_of(filled, CHUNK)
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)
    column = reopen(filled, verify=verify, engine=engine)
    with pytest.raises(CorruptShardError, match=r"level_0.*8.*run sak store verify"):
        column.read([8])
    assert len(column.read([0])[0]["values"]) == 1
    if verify != "shard":
        assert len(column.read([15])[0]["values"]) == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_a_byte_flipped_after_the_shard_was_verified_is_never_read(filled: Column, engine: str):
    column = reopen(filled, engine=engine)
    column.read([8])
    with open(path_of(filled, CHUNK), "r+b") as file:
        byte = file.read(1)
        file.seek(0)
        file.write(bytes([byte[0] ^ 255]))
    with pytest.raises(CorruptShardError):
        column.read([8])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("damage", ["missing", "truncated", "extended", "swapped", "folder"])
def test_a_shard_that_is_not_whole_never_reads_as_fill_values(filled: Column, engine: str, damage: str):
    path, other = path_of(filled, CHUNK), path_of(filled, "level_0/c/0/0/0/0")
    data = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes({"truncated": data[:-7], "extended": data + b"\0", "swapped": other.read_bytes()}[damage])
    with pytest.raises(CorruptShardError, match=r"level_0/c/1.*rows 8 to 15"):
        reopen(filled, engine=engine).read([8])


def test_single_rows_touch_only_their_own_bytes(filled: Column):
    """Other rows of the shard may even be damaged: with ``verify: row`` nobody looks."""
    path = path_of(filled, CHUNK)
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    column = reopen(filled, verify="row")
    for row in range(9, 16):
        column.read([row])


def test_a_committed_part_is_left_alone(filled: Column):
    before = store_samples.tree(path_of(filled, "."))
    rows = filled.view_set.spec.part_rows(0)
    levels = store_samples.encoded(filled.spec, rows)
    levels[0]["values"][:] = 1
    standing = filled.write_part(0, levels, keys=filled.view_set.keys(0))
    assert standing == filled.commits.load(0)
    assert store_samples.tree(path_of(filled, ".")) == before


def test_keys_of_other_rows_are_refused(filled: Column):
    filled.discard(0)
    levels = store_samples.encoded(filled.spec, filled.view_set.spec.part_rows(0))
    keys = list(filled.view_set.keys(0))
    for wrong in ([*keys[1:], keys[0]], keys[:-1], filled.view_set.keys(1)):
        with pytest.raises(FormatError, match="keys are not those of view set train, rows 0 to 7"):
            filled.write_part(0, levels, keys=wrong)
    assert digest_keys(["ab", "c"]) != digest_keys(["a", "bc"])


def test_a_part_needs_its_images_first(filled: Column):
    filled.discard(0)
    keys = filled.view_set.keys(0)
    filled.view_set.discard(0)
    with pytest.raises(MissingRowsError, match="views/train: rows 0 to 7"):
        filled.write_part(0, store_samples.encoded(filled.spec, range(8)), keys=keys)


def test_malformed_levels_are_refused(filled: Column):
    filled.discard(0)
    good = store_samples.encoded(filled.spec, range(8))

    def refused(levels: list[dict[str, np.ndarray]], message: str) -> None:
        with pytest.raises(StoreError, match=message):
            filled.write_part(0, levels, keys=filled.view_set.keys(0))

    refused(good[:1], "expected 2 levels, got 1")
    refused([{"values": good[0]["values"]}, good[1]], "expected the codec's parts")
    short, typed, infinite = (copy.deepcopy(good) for _ in range(3))
    short[0]["values"] = short[0]["values"][:7]
    refused(short, r"level_0: expected int8 \(8, 6, 3, 4\), got int8 \(7")
    typed[1]["scale"] = typed[1]["scale"].astype(np.float64)
    refused(typed, "level_1_scale: expected float32")
    infinite[1]["scale"][0] = np.inf
    refused(infinite, "level_1_scale: expected finite numbers")


def test_check_join_refuses_a_column_of_other_images(filled: Column, tmp_path: Path):
    filled.check_join(filled.view_set)
    other = Store.create(tmp_path / "other").create_view_set(store_samples.view_spec(seed=12))
    with pytest.raises(FormatError, match="has no such part"):
        filled.check_join(other)
    for part in other.missing_parts():
        rows = [store_samples.view_row(other.spec, row) for row in other.spec.part_rows(part)]
        changed = [
            type(row)(row=row.row, key=row.key, view=row.view, files=row.files and {"png": b"x"}, error=row.error)
            for row in rows
        ]
        other.write_part(part, changed)
    with pytest.raises(FormatError, match=r"part 0: made from other images.*discard"):
        filled.check_join(other)


def test_summary_counts_and_averages(filled: Column):
    summary = filled.summary()
    assert (summary.rows, summary.committed_rows, summary.excluded_rows) == (20, 20, 2)
    assert (summary.parts, summary.committed_parts) == (3, 3)
    assert summary.fp16_bytes == 20 * 2 * (6 * 3 * 4 + 5 * 2 * 2)
    assert summary.bytes == sum(
        path.stat().st_size for path in path_of(filled, ".").glob("level_*/c/**/0") if path.is_file()
    )
    assert summary.spent.total == pytest.approx(1.5 + 2.5 + 3.5)
    assert summary.stats["level_0"]["cosine"] == pytest.approx((0.5 * 8 + 1.5 * 8 + 2.5 * 4) / 20)
    assert (summary.timed_rows, summary.spent.encode, summary.spent.decode) == (0, 0.0, 0.0)
    filled.discard(2)
    assert filled.summary().stats["level_0"]["cosine"] == pytest.approx(1.0)


def test_times_of_the_codec_are_kept_beside_the_record(filled: Column):
    levels, keys = filled.read(range(8)), filled.view_set.keys(0)
    before = filled.commits.require([0])[0]
    filled.discard(0)
    filled.write_part(0, levels, keys=keys, stats=before.stats, spent=Spent(9.0, 0.25, 0.125))
    summary = filled.summary()
    assert summary.spent[:3] == pytest.approx((9.0 + 2.5 + 3.5, 0.25, 0.125))
    assert (summary.timed_rows, summary.decoded_rows) == (8, 8)
    assert summary.spent.write > 0
    assert summary.spent.written_bytes == summary.bytes
    assert summary.spent.read_bytes == summary.bytes, "every file is read back once"
    assert filled.commits.require([0])[0].render() == before.render()


@pytest.mark.parametrize("value", [-1.0, "1", True, None])
def test_a_cost_that_is_no_time_is_refused(filled: Column, value: object):
    path = path_of(filled, filled.commits.cost_path(1).removeprefix(f"{filled.folder}/"))
    path.write_bytes(render_document("cost", {"seconds": 1.0, "encode_seconds": value}))
    with pytest.raises(FormatError, match=r"encode_seconds: expected a number, got .*delete the file"):
        filled.summary()


def test_readers_travel_to_other_processes(filled: Column):
    filled.read([0])
    again = pickle.loads(pickle.dumps(filled))
    np.testing.assert_array_equal(again.read([5])[0]["values"], filled.read([5])[0]["values"])


def test_few_shards_stay_open(filled: Column):
    column = reopen(filled)
    column._shards._capacity = 2
    for rows in ([0], [8], [16], [0, 8, 16]):
        column.read(rows)
    assert len(column._shards._open) == 2


def test_a_part_is_packed_and_written_array_by_array(filled: Column, monkeypatch: pytest.MonkeyPatch):
    """So that no more than one array's compressed bytes are in memory."""
    events: list[str] = []
    pack, write = zarr3.encode_shard, LocalRoot.write_atomic

    def packing(values: NDArray[np.generic], *, rows_per_shard: int, threads: int, cuts: tuple[int, ...] = ()) -> bytes:
        events.append("pack")
        return pack(values, rows_per_shard=rows_per_shard, threads=threads, cuts=cuts)

    def writing(root: LocalRoot, relative: str, data: bytes, /, *, replace: bool = False) -> None:
        events.append("write" if "level_" in relative else "record")
        write(root, relative, data, replace=replace)

    monkeypatch.setattr(zarr3, "encode_shard", packing)
    monkeypatch.setattr(LocalRoot, "write_atomic", writing)
    filled.discard(1)
    store_samples.write_column_part(filled, 1)
    assert events == [*["pack", "write"] * 4, "record", "record"]
    events.clear()
    store_samples.write_column_part(filled, 1)
    assert events == [], "a committed part is not even packed"
