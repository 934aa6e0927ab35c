from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_store
import zarr

from store.errors import FormatError, MissingColumnError, MissingRowsError
from store.store import Store
from store.verify import verify
from store.viewset import ReadOptions


@pytest.mark.parametrize("backend", ["zarr", "webdataset"])
def test_appended_views_touch_nothing_that_is_committed(tmp_path: Path, backend: str):
    store = tiny_store.fill(tmp_path, backend=backend)
    before = tiny_store.tree(tmp_path)
    old = store.columns("t")[0]
    tiny_store.write_view_parts(store.extend_view_set("t", views=3))
    column = tiny_store.write_column(store)
    assert (column.name, column.backend.name) == (old.name, backend)
    after = tiny_store.tree(tmp_path)
    described = {path for path in before if after[path] != before[path]}
    assert {path.rsplit("/", 1)[-1] for path in described} <= {"view_set.json", "column.json", "zarr.json"}
    assert len(column.read(range(12))[0]["values"]) == 12
    for row, values in enumerate(column.read_floats(range(12))[0]):
        np.testing.assert_array_equal(
            values,
            column.spec.codec.decode({k: v[None] for k, v in tiny_store.expected(column.spec, row, 0).items()})[0],
        )
    with pytest.raises(MissingRowsError, match="rows from 0 to 3"):
        old.read([4])
    assert verify(store) == []


@pytest.mark.parametrize("engine", ["zarr", "zarrs"])
def test_zarr_reads_the_new_rows_too(tmp_path: Path, engine: str):
    if engine == "zarrs":
        pytest.importorskip("zarrs")
    store = tiny_store.fill(tmp_path)
    tiny_store.write_view_parts(store.extend_view_set("t", views=2))
    column = tiny_store.write_column(store)
    group = zarr.open_group(tmp_path / column.folder, mode="r")
    assert group["level_0"].shape == (8, 2, 1, 2)
    other = Store.open(tmp_path, options=ReadOptions(engine=engine)).columns("t")[0]
    np.testing.assert_array_equal(other.read(range(8))[1]["values"], column.read(range(8))[1]["values"])


def test_it_may_be_done_again(tmp_path: Path):
    store = tiny_store.fill(tmp_path)
    store.extend_view_set("t", views=2)
    before = tiny_store.tree(tmp_path)
    assert store.extend_view_set("t", views=2).missing_parts() == (2, 3)
    assert tiny_store.tree(tmp_path) == before
    with pytest.raises(FormatError, match="expected at least its 2 views, got 1"):
        store.extend_view_set("t", views=1)


def test_a_short_last_part_is_not_changed(tmp_path: Path):
    store = tiny_store.fill(tmp_path, images=5)
    before = tiny_store.tree(tmp_path)
    with pytest.raises(
        FormatError, match="its last part holds 1 of 2 rows, which more views would change; make another"
    ):
        store.extend_view_set("t", views=2)
    assert tiny_store.tree(tmp_path) == before
    assert store.extend_view_set("t", views=1).missing_parts() == ()


def test_a_view_set_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(MissingColumnError, match="no view set 'x', found t"):
        tiny_store.fill(tmp_path).extend_view_set("x", views=2)
    assert not (tmp_path / "views/x").exists()


def test_a_half_grown_column_is_no_damage(tmp_path: Path):
    """Killed between two descriptions: verify explains it, and a rerun completes it."""
    store = tiny_store.fill(tmp_path)
    store.extend_view_set("t", views=2)
    column = store.columns("t")[0]
    record = tmp_path / column.folder / "column.json"
    kept = record.read_bytes()
    store.create_column(column.spec)
    assert {(item.severity, item.path) for item in verify(store)} == {
        ("info", "views/t/view_set.json"),
        ("info", f"{column.folder}/column.json"),
    }
    record.write_bytes(kept)
    found = verify(store)
    assert {item.severity for item in found} == {"info"}
    assert {item.path.rsplit("/", 1)[-1] for item in found} == {"zarr.json", "column.json", "view_set.json"}
    store.create_column(column.spec)
    tiny_store.write_view_parts(store.view_set("t"))
    tiny_store.write_column(store)
    assert verify(store) == []
