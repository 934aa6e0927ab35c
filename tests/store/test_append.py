from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_store
import zarr

from store.errors import FormatError, MissingColumnError, MissingRowsError
from store.store import Store
from store.uses import commits_of, make_use
from store.verify import verify
from store.viewset import ReadOptions, ViewSet


def digests(store: Store) -> dict[str, str]:
    """Of every file but costs, wherever the store is."""
    return {path: store.root.digest(path) for path in store.root.files() if "/costs/" not in path}


def grow(store: Store, *, views: int) -> Store:
    """Append views and make their parts, of the view set and of its column."""
    tiny_store.write_view_parts(store.extend_view_set("t", views=views))
    tiny_store.write_column(store)
    return store


# With 5 images the last part of each view is a short one.
@pytest.mark.parametrize("images", [4, 5])
@pytest.mark.parametrize("backend", ["zarr", "webdataset"])
def test_appended_views_touch_nothing_that_is_committed(place: str, backend: str, images: int):
    store = tiny_store.fill(place, backend=backend, images=images)
    before = digests(store)
    old = store.columns("t")[0]
    column = grow(store, views=3).columns("t")[0]
    assert (column.name, column.backend.name) == (old.name, backend)
    after = digests(store)
    described = {path for path in before if after[path] != before[path]}
    assert {path.rsplit("/", 1)[-1] for path in described} <= {"view_set.json", "column.json", "zarr.json"}
    rows = range(3 * images)
    assert [row.row for row in column.view_set.read_rows(rows)] == list(rows)
    for row, values in enumerate(column.read_floats(rows)[0]):
        np.testing.assert_array_equal(
            values,
            column.spec.codec.decode({k: v[None] for k, v in tiny_store.expected(column.spec, row, 0).items()})[0],
        )
    with pytest.raises(MissingRowsError, match=f"rows from 0 to {images - 1}"):
        old.read([images])
    assert verify(store) == []


@pytest.mark.parametrize("images", [1, 2, 5])
def test_views_appended_one_by_one_give_the_store_made_at_once(tmp_path: Path, images: int):
    grown = tiny_store.fill(tmp_path / "grown", images=images)
    for views in (2, 3):
        grow(grown, views=views)
    once = Store.create(tmp_path / "once", options=tiny_store.OPTIONS)
    tiny_store.write_views(once, tiny_store.view_spec(images=images, views=3))
    tiny_store.write_column(once)
    assert tiny_store.tree(tmp_path / "grown") == tiny_store.tree(tmp_path / "once")


@pytest.mark.parametrize("engine", ["zarr", "zarrs"])
@pytest.mark.parametrize(("images", "length"), [(4, 8), (5, 11)])
def test_zarr_reads_the_new_rows_too(tmp_path: Path, engine: str, images: int, length: int):
    if engine == "zarrs":
        pytest.importorskip("zarrs")
    column = grow(tiny_store.fill(tmp_path, images=images), views=2).columns("t")[0]
    group = zarr.open_group(tmp_path / column.folder, mode="r")
    assert group["level_0"].shape == (length, 2, 1, 2)
    rows = np.random.default_rng(0).permutation(2 * images)
    engines = Store.open(tmp_path, options=ReadOptions(engine=engine))
    for views in (2, 1):  # what is stored, and less
        other, wanted = engines.column("t", column.name, views=views), rows[rows < views * images]
        np.testing.assert_array_equal(other.read(wanted)[1]["values"], column.read(wanted)[1]["values"])


def test_it_may_be_done_again(tmp_path: Path):
    store = tiny_store.fill(tmp_path, images=5)
    store.extend_view_set("t", views=2)
    before = tiny_store.tree(tmp_path)
    assert store.extend_view_set("t", views=2).missing_parts() == (3, 4, 5)
    assert store.create_view_set(tiny_store.view_spec(images=5, views=2)).missing_parts() == (3, 4, 5)
    assert tiny_store.tree(tmp_path) == before
    with pytest.raises(FormatError, match="expected at least its 2 views, got 1"):
        store.extend_view_set("t", views=1)


def test_creating_it_with_more_views_appends_them_and_with_fewer_shows_those(tmp_path: Path):
    store = tiny_store.fill(tmp_path, images=5)
    assert store.create_view_set(tiny_store.view_spec(images=5, views=3)).missing_parts() == tuple(range(3, 9))
    assert store.view_set("t").spec.views == 3
    few = store.create_view_set(tiny_store.view_spec(images=5, views=2))
    assert (few.spec.views, few.stored.views, few.missing_parts()) == (2, 3, (3, 4, 5))
    assert store.view_set("t").spec.views == 3
    with pytest.raises(FormatError, match=r"exists with another order_seed \(3 there, 9 asked\); choose"):
        store.create_view_set(replace(tiny_store.view_spec(images=5, views=4), order_seed=9))
    assert store.view_set("t").spec.views == 3


def test_the_first_views_are_seen_as_if_there_were_no_others(tmp_path: Path):
    alone = tiny_store.fill(tmp_path / "alone", images=5)
    store = grow(tiny_store.fill(tmp_path / "grown", images=5), views=3)
    wanted = alone.columns("t")[0]
    views, column = store.view_set("t", views=1), store.column("t", wanted.name, views=1)
    assert views.spec == wanted.view_set.spec
    np.testing.assert_array_equal(views.usable_rows(), range(5))
    assert column.committed_parts() == wanted.committed_parts() == (0, 1, 2)
    assert column.summary().rows == 5
    seen = pickle.loads(pickle.dumps(store.column("t", wanted.name, views=1)))
    assert (seen.view_set.spec.views, seen.committed_parts()) == (1, (0, 1, 2))
    with pytest.raises(MissingRowsError, match="rows from 0 to 4, got"):
        seen.read([5])
    assert commits_of([seen.view_set, seen]) == commits_of([wanted.view_set, wanted])
    items = [store.view_set("t", views=1), store.column("t", wanted.name, views=1)]
    use = make_use(store, experiment="e", folder="/e", items=items)
    assert use == make_use(alone, experiment="e", folder="/e", items=[wanted.view_set, wanted])


def test_views_that_nobody_appended_are_missing_parts(tmp_path: Path):
    store = tiny_store.fill(tmp_path, images=5)
    (name,) = store.column_names("t")
    wide, column = store.view_set("t", views=2), store.column("t", name, views=2)
    assert wide.missing_parts() == column.missing_parts() == (3, 4, 5)
    with pytest.raises(MissingRowsError, match="rows 5 to 6 are not committed"):
        wide.read_rows([5])
    with pytest.raises(MissingRowsError, match="rows 9 to 9 are not committed"):
        column.read([0, 9])
    before = tiny_store.tree(tmp_path)
    rows = [tiny_store.view_row(wide.spec, row) for row in wide.spec.part_rows(3)]
    with pytest.raises(MissingRowsError, match="a part from 0 to 2, got 3"):
        wide.write_part(3, rows)
    assert tiny_store.tree(tmp_path) == before
    with pytest.raises(FormatError, match="views: expected at least 1"):
        ViewSet(store.root, "t", views=0)


def test_a_view_set_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(MissingColumnError, match="no view set 'x', found t"):
        tiny_store.fill(tmp_path).extend_view_set("x", views=2)
    assert not (tmp_path / "views/x").exists()


def test_a_half_grown_column_is_no_damage(tmp_path: Path):
    """Killed between two descriptions: verify explains it, and a rerun completes it."""
    store = tiny_store.fill(tmp_path, images=5)
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


def test_a_summary_counts_whole_views(tmp_path: Path):
    store = tiny_store.fill(tmp_path, images=5)
    tiny_store.write_view_parts(store.extend_view_set("t", views=3))
    store.view_set("t").discard(4)
    (column,) = store.columns("t")
    assert [(item.views, item.committed_views) for item in (store.view_set("t").summary(), column.summary())] == [
        (3, 2),
        (3, 1),
    ]
