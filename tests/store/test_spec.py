from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import store_samples

from store.errors import FormatError, MissingRowsError, StoreError
from store.spec import ColumnSpec, LevelSpec, ViewSetSpec


def test_json_round_trips():
    views, column = store_samples.view_spec(), store_samples.column_spec()
    assert ViewSetSpec.from_json(json.loads(json.dumps(views.to_json()))) == views
    assert ColumnSpec.from_json(json.loads(json.dumps(column.to_json()))) == column


def test_parts_cover_all_rows_once():
    spec = store_samples.view_spec()
    assert (spec.rows, spec.parts) == (20, 3)
    assert [row for part in range(spec.parts) for row in spec.part_rows(part)] == list(range(20))
    assert all(row in spec.part_rows(spec.part_of(row)) for row in range(20))
    with pytest.raises(MissingRowsError, match="a row from 0 to 19, got 20"):
        spec.part_of(20)


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
