from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.damage import Item, Rank, damage, merged
from store.store import Store
from store.verify import Finding
from tests.conftest import Finished
from tests.tiny_recipe import run_stages, tiny_recipe


@pytest.fixture
def store(finished: Finished) -> Store:
    return Store.open(finished.root / "store")


def found(path: str, *, severity: str = "error", stray: bool = False) -> Finding:
    return Finding(path=path, rows=None, problem="?", severity=severity, stray=stray)  # type: ignore[arg-type]


def test_what_others_are_made_from_comes_first_and_each_thing_once(store: Store) -> None:
    view_set = store.view_set_names()[0]
    column = f"columns/{view_set}/{store.column_names(view_set)[0]}"
    findings = [
        found(f"{column}/level_0/c/1/0/0/0"),
        found(f"{column}/level_1/c/1/0/0/0"),
        found(f"{column}/zarr.json"),
        found(f"{column}/codec_mean_0/c/0"),
        found(f"views/{view_set}/index/part-00000.parquet"),
        found(f"views/{view_set}/images/part-00000.tar"),
        found(f"{column}/costs/part-00001.json"),
        found("views/gone/view_set.json"),
    ]
    assert damage(store, findings) == [
        Item(Rank.COST, f"{column}/costs/part-00001.json"),
        Item(Rank.VIEWS, "views/gone"),
        Item(Rank.VIEW_PART, f"views/{view_set}", 0),
        Item(Rank.COLUMN, column),
        Item(Rank.COLUMN_PART, column, 1),
    ]


def test_a_column_waits_for_its_view_set(store: Store) -> None:
    assert damage(store, [found("columns/gone/first-0123456789abcdef/column.json")]) == [Item(Rank.VIEWS, "views/gone")]
    shard = "columns/gone/first-0123456789abcdef/level_0/c/1/0/0/0"
    assert damage(store, [found(shard)]) == [
        Item(Rank.VIEW_PART, "views/gone", 1),
        Item(Rank.COLUMN_PART, "columns/gone/first-0123456789abcdef", 1),
    ]


def test_what_belongs_to_nothing_is_nobodys_damage(store: Store) -> None:
    view_set = store.view_set_names()[0]
    shard = f"views/{view_set}/images/part-00000.tar"
    for harmless in (
        found("notes.txt", stray=True),
        found(shard, stray=True),
        found("uses/x.json"),
        found(shard, severity="info"),  # its record is there
        found(f"views/{view_set}/images/part-00099.tar", severity="info"),
        found(f"views/{view_set}/images/.tmp-host-1-1", severity="info"),
    ):
        assert damage(store, [harmless]) == []


def test_what_a_dead_writer_began_is_to_be_made_unless_somebody_is_at_it(tmp_path: Path) -> None:
    changes = ["data.eval=null", "finetune=null", "student.teachers=[first]"]
    run_stages(tiny_recipe(tmp_path, changes, only="sak"), ["extract"])
    store = Store.open(tmp_path / "store")
    (view_set,) = store.view_sets()
    view_set.discard(1)
    left = found(f"{view_set.folder}/images/part-00001.tar", severity="info")
    assert damage(store, [left]) == [Item(Rank.VIEW_PART, view_set.folder, 1)]
    with store.root.lock(f"{view_set.folder}/commits"):
        assert damage(store, [left]) == []


def test_findings_of_what_was_verified_again_are_replaced() -> None:
    before = [found("columns/a/b/column.json"), found("columns/a/bc/column.json"), found("views/a/view_set.json")]
    after = [found("columns/a/b/zarr.json")]
    assert merged(before, after, paths=["columns/a/b", "views/a/view_set.json"]) == [
        found("columns/a/b/zarr.json"),
        found("columns/a/bc/column.json"),
    ]
