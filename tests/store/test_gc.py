from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_store

from store import gc
from store.column import Column
from store.du import disk_usage
from store.errors import MissingColumnError, StoreError
from store.root import temporary_name
from store.store import Store
from store.uses import make_use, save_use
from store.verify import verify


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Columns ``a``, which an experiment uses, and ``b``."""
    store = tiny_store.fill(tmp_path / "store")
    tiny_store.write_column(store, "b")
    save_use(store, make_use(store, experiment="kept", folder="/kept", items=[store.view_set("t"), column(store, "a")]))
    return store


def column(store: Store, teacher: str) -> Column:
    (found,) = [item for item in store.columns("t") if item.spec.teacher == teacher]
    return found


def removed(plan: gc.Plan) -> list[tuple[str, str]]:
    return [(item.kind, item.path) for item in plan.garbage]


def size(path: Path) -> int:
    return sum(item.stat().st_size for item in path.rglob("*") if item.is_file())


def test_only_what_no_record_references_goes(store: Store, tmp_path: Path):
    before = tiny_store.tree(tmp_path)
    unused = column(store, "b")
    planned = gc.plan(store, grace=0)
    assert removed(planned) == [("column", unused.folder)]
    assert planned.bytes == size(tmp_path / "store" / unused.folder)
    assert dict(planned.kept) == {column(store, "a").folder: "1 experiment uses it", "views/t": "1 experiment uses it"}
    assert tiny_store.tree(tmp_path) == before, "a plan removed something"
    assert gc.collect(store, grace=0) == planned
    assert tiny_store.tree(tmp_path) == {path: item for path, item in before.items() if unused.folder not in path}
    assert verify(store) == []
    assert removed(gc.collect(store, grace=0)) == []


def test_what_is_young_stays_unless_asked(store: Store):
    unused = column(store, "b").folder
    assert removed(gc.collect(store)) == []
    assert dict(gc.plan(store).kept)[unused] == "written to within the last 168 hours"
    assert removed(gc.plan(store, now=time.time() + gc.GRACE_SECONDS + 60)) == [("column", unused)]


def test_what_is_being_written_stays(store: Store):
    unused = column(store, "b").folder
    for place in (unused, f"{unused}/commits"):
        with store.root.lock(place):
            assert dict(gc.plan(store, grace=0).kept)[unused] == "being written"
    assert removed(gc.plan(store, grace=0)) == [("column", unused)]


def test_what_is_written_between_plan_and_removal_stays(store: Store, monkeypatch: pytest.MonkeyPatch):
    unused = column(store, "b")
    unused.discard(1)
    real = gc.plan

    def late(*arguments: object, **options: object) -> gc.Plan:
        found: gc.Plan = real(*arguments, **options)  # type: ignore[arg-type]
        tiny_store.write_part(unused, 1)
        return found

    monkeypatch.setattr(gc, "plan", late)
    collected = gc.collect(store, grace=0)
    assert (unused.folder, "written to just now") in collected.kept
    assert removed(collected) == []
    assert unused.committed_parts() == (0, 1)


def test_a_writer_whose_column_was_removed_is_told(store: Store):
    unused = column(store, "b")
    unused.discard(1)
    keys = unused.view_set.keys(1)
    assert keys
    gc.collect(store, grace=0)
    with pytest.raises(MissingColumnError, match="was removed while it was being written; run this again"):
        tiny_store.write_part(unused, 1)
    assert verify(store) == []


def test_a_forgotten_use_protects_nothing(store: Store, tmp_path: Path):
    (name,) = store.root.names("uses")
    found = gc.collect(store, grace=0, forget=[name.removesuffix(".json")])
    assert [kind for kind, _ in removed(found)] == ["use", "column", "column", "view set"]
    assert store.root.files() == ["store.json"]
    assert not (tmp_path / "store/columns/t").exists()
    tiny_store.fill(tmp_path / "store")
    assert verify(store) == []


def test_a_damaged_use_stops_it(store: Store):
    (name,) = store.root.names("uses")
    store.root.local(f"uses/{name}").write_text("{")
    before = store.root.files()
    with pytest.raises(StoreError, match=f"uses/{name}"):
        gc.collect(store, grace=0)
    assert store.root.files() == before


def test_leftovers_go(store: Store, tmp_path: Path):
    used, root = column(store, "a"), tmp_path / "store"
    used.discard(1)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    temporary = temporary_name().replace(f"-{os.getpid()}-", f"-{dead.pid}-")
    for folder in (root, root / used.folder / "commits"):
        (folder / temporary).write_bytes(b"half")
    found = removed(gc.collect(store, grace=0))
    assert ("part", f"{used.folder} part 1") in found
    assert sorted(path for kind, path in found if kind == "temporary") == [
        temporary,
        f"{used.folder}/commits/{temporary}",
    ]
    (missed,) = [found for found in verify(store) if found.severity == "error"]
    assert (missed.path, missed.unrecorded) == (used.commits.path(1), True), "an experiment reads it"
    assert used.read_part(0)
    tiny_store.write_column(store)
    assert verify(store) == []


def test_a_column_without_its_record_is_not_garbage(store: Store):
    """It is damage: ``sak store verify`` says so, and the same extraction writes the record again."""
    unused = column(store, "b").folder
    store.root.remove(f"{unused}/column.json")
    assert dict(gc.plan(store, grace=0).kept)[unused] == "its own record is missing; sak store verify"


def test_a_folder_that_cannot_be_listed_is_not_taken_for_empty(store: Store, monkeypatch: pytest.MonkeyPatch):
    def refuse(path: object) -> object:
        raise PermissionError(13, "Permission denied", str(path))

    real = os.scandir
    hidden = str(store.root.local(column(store, "b").folder))
    monkeypatch.setattr(os, "scandir", lambda path: refuse(path) if str(path) == hidden else real(path))
    with pytest.raises(StoreError, match="Permission denied"):
        gc.collect(store, grace=0)


@pytest.mark.parametrize("backend", ["zarr", "webdataset"])
def test_every_byte_is_counted_once(tmp_path: Path, backend: str):
    store = tiny_store.fill(tmp_path / "store", backend=backend)
    item = column(store, "a")
    usage = {found.path: found for found in disk_usage(store)}
    assert sum(found.bytes for found in usage.values()) == size(tmp_path / "store")
    assert usage[item.folder].bytes == size(tmp_path / "store" / item.folder)
    assert [found.dead for found in usage.values()] == [0, 0, 0]
    folder = tmp_path / "store" / item.folder
    level = size(folder / "level_1") + size(folder / "level_1_scale")
    assert dict(usage[item.folder].levels).get(1, 0) == level
    part = sum((tmp_path / "store" / item.folder / path).stat().st_size for path in item.part_files(1))
    item.discard(1)
    (tmp_path / "store" / temporary_name()).write_bytes(b"half")
    usage = {found.path: found for found in disk_usage(store)}
    assert usage[item.folder].dead == part + store.root.stamp(item.commits.cost_path(1)).size  # type: ignore[union-attr]
    assert usage[""].dead == 4


def test_a_killed_removal_is_sound_at_every_step(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The sweep kills it at every operation; this one also tells that a reader sees fewer and fewer whole parts."""
    unused = column(store, "b").folder
    seen: list[int] = []
    real: Callable[..., None] = type(store.root).remove

    def step(root: object, relative: str, /) -> None:
        real(root, relative)
        assert [found for found in verify(store) if found.severity == "error"] == []
        seen.append(len(store.column("t", unused.rsplit("/", 1)[1]).committed_parts()) if len(seen) < 2 else -1)

    monkeypatch.setattr(type(store.root), "remove", step)
    gc.collect(store, grace=0)
    assert seen == [1, 0, -1]


def test_views_uses_and_collection_are_the_same_on_every_kind_of_root(place: str):
    store = tiny_store.fill(place)
    tiny_store.write_view_parts(store.extend_view_set("t", views=2))
    tiny_store.write_column(store)
    tiny_store.write_column(store, "b")
    use = make_use(store, experiment="kept", folder="/kept", items=[store.view_set("t"), column(store, "a")])
    for _ in range(2):
        save_use(store, use)
    save_use(store, make_use(store, experiment="kept", folder="/kept", items=[store.view_set("t")]))
    save_use(store, use)
    unused = column(store, "b").folder
    assert removed(gc.plan(store)) == []
    assert removed(gc.collect(store, grace=0)) == [("column", unused)]
    assert not [path for path in store.root.files() if path.startswith(unused)]
    assert len(column(Store.open(place), "a").read(range(8))[0]["values"]) == 8
    assert verify(Store.open(place)) == []
    assert sum(found.dead for found in disk_usage(store)) == 0
    assert len(gc.collect(store, grace=0, forget=[use.id]).garbage) == 3
    assert store.root.files() == ["store.json"]
