from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import store_samples
from hypothesis import given
from hypothesis import strategies as st

from store.errors import FormatError, MissingRowsError, StoreError
from store.spec import ColumnSpec, LevelSpec, ViewSetSpec


def test_json_round_trips():
    views, column = store_samples.view_spec(), store_samples.column_spec()
    assert ViewSetSpec.from_json(json.loads(json.dumps(views.to_json()))) == views
    assert ColumnSpec.from_json(json.loads(json.dumps(column.to_json()))) == column


def test_parts_cover_all_rows_once():
    spec = store_samples.view_spec(images=10, views=2)
    assert (spec.rows, spec.parts_per_view, spec.parts) == (20, 2, 4)
    assert [len(spec.part_rows(part)) for part in range(4)] == [8, 2, 8, 2]
    assert spec.positions([0, 9, 10, 19]).tolist() == [0, 9, 16, 25]
    assert spec.array_rows == 26
    with pytest.raises(MissingRowsError, match=r"rows from 0 to 19, got \[20\]"):
        spec.part_of(20)
    with pytest.raises(MissingRowsError, match="a part from 0 to 3, got 4"):
        spec.part_rows(4)


SPECS = st.builds(
    store_samples.view_spec,
    images=st.integers(1, 50),
    views=st.integers(1, 6),
    rows_per_shard=st.integers(1, 20),
)


@given(SPECS)
def test_rows_parts_and_positions_map_one_to_one(spec: ViewSetSpec):
    blocks = [spec.part_rows(part) for part in range(spec.parts)]
    assert [row for rows in blocks for row in rows] == list(range(spec.rows))
    assert all(1 <= len(rows) <= spec.rows_per_shard for rows in blocks)
    assert all(rows[0] // spec.images == rows[-1] // spec.images for rows in blocks), "a part of two views"
    parts_N, positions_N = spec.parts_of(range(spec.rows)), spec.positions(range(spec.rows))
    for row, part, position in zip(range(spec.rows), parts_N.tolist(), positions_N.tolist(), strict=True):
        assert row in blocks[part]
        assert spec.part_of(row) == part
        assert divmod(position, spec.rows_per_shard) == (part, row - blocks[part].start)
    assert len(set(positions_N.tolist())) == spec.rows
    assert spec.array_rows == positions_N.max() + 1
    assert spec.array_views(spec.array_rows) == spec.views


@given(SPECS, st.integers(1, 6))
def test_more_views_leave_rows_and_parts_as_they_are(spec: ViewSetSpec, views: int):
    other = spec.with_views(views)
    both = min(spec.parts, other.parts)
    assert [spec.part_rows(part) for part in range(both)] == [other.part_rows(part) for part in range(both)]
    rows = range(min(spec.rows, other.rows))
    assert spec.positions(rows).tolist() == other.positions(rows).tolist()


@given(SPECS)
def test_where_no_part_is_short_an_array_holds_the_rows_in_order(spec: ViewSetSpec):
    """As it was before views could be appended to any number of images: those stores stay as they are."""
    if spec.views > 1:
        spec = dataclasses.replace(spec, images=spec.images * spec.rows_per_shard)
    assert spec.array_rows == spec.rows
    assert spec.positions(range(spec.rows)).tolist() == list(range(spec.rows))
    assert spec.parts_of(range(spec.rows)).tolist() == [row // spec.rows_per_shard for row in range(spec.rows)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": 0}, "images: expected at least 1"),
        ({"rows_per_shard": True}, "rows_per_shard: expected at least 1"),
        ({"seed": 1.5}, "seed: expected an integer"),
        ({"view": {"scale": float("nan")}}, "finite JSON"),
        ({"source": {1: 2}}, "key 1 is not a string"),
        ({"tasks": (3,)}, "expected text"),
    ],
)
def test_malformed_view_sets_are_refused(change: dict[str, object], message: str):
    with pytest.raises(FormatError, match=message):
        store_samples.view_spec(**change)


@pytest.mark.parametrize("value", [{}, {"name": "x"}, [], {**store_samples.view_spec().to_json(), "extra": 1}])
def test_unknown_or_missing_keys_are_refused(value: dict[str, object]):
    with pytest.raises(FormatError, match="expected the keys"):
        ViewSetSpec.from_json(value)


def test_absurd_levels_are_refused():
    with pytest.raises(FormatError, match="expected sizes from 1"):
        LevelSpec(components=0, height=1, width=1)
    with pytest.raises(FormatError, match="1 to 64 levels, got 0"):
        dataclasses.replace(store_samples.column_spec(), levels=())


def test_encode_names_teacher_and_level():
    spec, first = store_samples.column_spec("fp16"), np.zeros((1, 6, 3, 4), np.float32)
    with pytest.raises(StoreError, match=r"teacher dino, level 1: expected features \(rows, 5, 2, 2\), got \(1, 6"):
        spec.encode_levels([first, np.zeros((1, 6, 3, 4), np.float32)])
    with pytest.raises(StoreError, match="teacher dino, level 1: expected values of at most 65504"):
        spec.encode_levels([first, np.full((1, 5, 2, 2), 1e5, np.float32)])
    with pytest.raises(StoreError, match="teacher dino: expected 2 levels, got 1"):
        spec.encode_levels([first])
    with pytest.raises(FormatError, match=r"levels from 0 to 1, got \[2\]"):
        spec.decode_levels({}, levels=[2])


def test_plain_size_of_a_row():
    assert store_samples.column_spec("int8").fp16_bytes_per_row == 2 * (6 * 12 + 5 * 4)
