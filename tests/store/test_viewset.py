from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import store_samples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from store.column import Column
from store.errors import CorruptShardError, FormatError, MissingRowsError
from store.fingerprint import digest_keys
from store.rows import ViewRow, parse_index, render_index
from store.store import Store
from store.viewset import ReadOptions, ViewSet


@pytest.fixture
def empty(tmp_path: Path) -> ViewSet:
    return Store.create(tmp_path / "store").create_view_set(store_samples.view_spec())


def part_rows(view_set: ViewSet, part: int) -> list[ViewRow]:
    return [store_samples.view_row(view_set.spec, row) for row in view_set.spec.part_rows(part)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=20)
@given(rows=st.lists(st.integers(0, 19), max_size=10))
def test_rows_come_back_as_written(filled: Column, rows: list[int]):
    assert filled.view_set.read_rows(rows) == [store_samples.view_row(filled.view_set.spec, row) for row in rows]


def test_parts_come_back_as_written(filled: Column):
    for part in range(3):
        assert filled.view_set.read_part(part) == part_rows(filled.view_set, part)


def test_parts_are_committed_one_by_one(empty: ViewSet):
    assert (empty.committed_parts(), empty.missing_parts()) == ((), (0, 1, 2))
    empty.write_part(1, part_rows(empty, 1))
    assert (empty.committed_parts(), empty.missing_parts()) == ((1,), (0, 2))
    with pytest.raises(MissingRowsError, match="rows 0 to 7, 16 to 19 are not committed"):
        empty.read_rows([9, 3, 17])
    assert [row.row for row in empty.read_rows([9, 8])] == [9, 8]


def test_a_planned_record_is_the_one_that_is_written(empty: ViewSet):
    rows = part_rows(empty, 1)
    planned = empty.planned_commit(1, rows)
    assert empty.committed_parts() == ()
    assert empty.write_part(1, rows) == planned
    assert empty.commits.load(1) == planned


def test_keys_and_their_digest(filled: Column):
    keys = [row.key for row in part_rows(filled.view_set, 1)]
    assert list(filled.view_set.keys(1)) == keys
    assert filled.view_set.commits.require([1])[0].keys_sha256 == digest_keys(keys)


def test_unreadable_images_are_recorded_and_left_out_of_usable_rows(filled: Column):
    views = filled.view_set
    unreadable = [row.row for part in range(3) for row in views.read_part(part) if row.error]
    assert len(unreadable) == 2
    assert sorted([*views.usable_rows().tolist(), *unreadable]) == list(range(20))
    (row,) = views.read_rows(unreadable[:1])
    assert (row.files, row.error) == ({}, "broken JPEG: img/003.jpg")
    assert views.summary().excluded_rows == 2


def test_usable_rows_of_an_empty_view_set(empty: ViewSet):
    assert empty.usable_rows().dtype == np.int64
    assert empty.usable_rows().size == 0


@pytest.mark.parametrize("verify", ["shard", "row"])
def test_flipped_image_bytes_are_never_read(filled: Column, verify: str):
    path = filled.view_set.tar_path(1)
    entry = filled.view_set.index(1)[2].files[0]
    data = bytearray(path.read_bytes())
    data[entry.offset + 3] ^= 4
    path.write_bytes(data)
    views = Store.open(path.parents[3], options=ReadOptions(verify=verify)).view_set("train")
    with pytest.raises(CorruptShardError, match=r"part-00001.tar: rows \d+ to \d+: .*run sak store verify"):
        views.read_rows([10])


@pytest.mark.parametrize("name", ["images/part-00001.tar", "index/part-00001.parquet"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "extended", "swapped"])
def test_damaged_files_are_never_read(filled: Column, name: str, damage: str):
    folder = filled.view_set.tar_path(0).parents[1]
    path = folder / name
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        other = (folder / name.replace("00001", "00000")).read_bytes()
        path.write_bytes({"truncated": data[:-600], "extended": data + bytes(512), "swapped": other}[damage])
    with pytest.raises(CorruptShardError, match="part-00001"):
        Store.open(folder.parents[1]).view_set("train").read_part(1)


def test_rows_must_be_exactly_the_parts(empty: ViewSet):
    rows = part_rows(empty, 1)
    for wrong in (rows[:-1], rows[::-1], part_rows(empty, 0)):
        with pytest.raises(FormatError, match="expected the rows 8 to 15 in order"):
            empty.write_part(1, wrong)
    with pytest.raises(FormatError, match=r"rows \[8\]: view differs"):
        empty.write_part(1, [dataclasses.replace(rows[0], view=1), *rows[1:]])
    with pytest.raises(FormatError, match="same key and view"):
        empty.write_part(1, [dataclasses.replace(rows[0], key=rows[1].key), *rows[1:]])
    with pytest.raises(FormatError, match="draw scale: expected float as in the rows before, got 3"):
        empty.write_part(1, [*rows[:-1], dataclasses.replace(rows[-1], draw={"scale": 3})])
    with pytest.raises(MissingRowsError, match="a part from 0 to 2, got 3"):
        empty.write_part(3, rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": ""}, "key: expected 1 to 4096"),
        ({"files": {}}, "either files or an error"),
        ({"error": "broken"}, "either files or an error"),
        ({"files": {"png": b"", "jpg": b""}}, "one image suffix without a dot"),
        ({"files": {"semseg.png": b""}}, "one image suffix without a dot"),
        ({"files": {"png": b"", "json": b""}}, "and not json"),
        ({"files": {"png": b"", "../x": b""}}, r"got \['../x'\]"),
        ({"draw": {"box": [1, 2]}}, "expected int, float, bool or str"),
    ],
)
def test_malformed_rows_are_refused(change: dict[str, object], message: str):
    good = ViewRow(row=5, key="a/b", view=0, files={"png": b"x"})
    with pytest.raises(FormatError, match=message):
        dataclasses.replace(good, **change)


def test_rows_without_draws_and_with_partial_draws(tmp_path: Path):
    for draws in ([{}, {}], [{"a": 1}, {}], [{"b": "x", "a": 1}, {"a": 2, "c": True}]):
        made = Store.create(tmp_path / str(len(str(draws))))
        views = made.create_view_set(store_samples.view_spec(images=2, views=1))
        rows = [ViewRow(row=i, key=f"k{i}", view=0, files={"jpg": b"x"}, draw=draw) for i, draw in enumerate(draws)]
        views.write_part(0, rows)
        assert made.view_set("train").read_part(0) == rows


def test_readers_travel_to_other_processes(filled: Column):
    again = pickle.loads(pickle.dumps(filled.view_set))
    assert again.read_rows([4]) == filled.view_set.read_rows([4])


def test_an_index_with_text_that_is_no_text_is_damage(filled: Column):
    table = pq.read_table(pa.BufferReader(render_index(filled.view_set.index(0))))
    keys = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff"))
    at = table.schema.get_field_index("key")
    sink = pa.BufferOutputStream()
    pq.write_table(table.slice(0, 1).set_column(at, "key", keys), sink)
    with pytest.raises(CorruptShardError, match="here: not a part's index"):
        parse_index(bytes(sink.getvalue()), rows=range(1), where="here")
