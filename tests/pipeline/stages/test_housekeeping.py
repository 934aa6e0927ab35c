from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from pipeline.stages.housekeeping import collect_garbage, list_store, measure_store, short_identity
from store.errors import StoreError
from store.store import Store
from store.uses import all_uses
from store.verify import verify
from tests.conftest import Finished


def lines_of(table: Table) -> list[str]:
    console = Console(width=400, file=io.StringIO(), record=True)
    console.print(table)
    return console.export_text().splitlines()


@pytest.fixture
def root(finished: Finished, tmp_path: Path) -> Path:
    shutil.copytree(finished.root / "store", tmp_path / "store")
    return tmp_path / "store"


def age(root: Path) -> None:
    for path in root.rglob("*"):
        os.utime(path, (0, 0))


def test_ls_tells_who_uses_a_column_and_who_could(root: Path) -> None:
    store = Store.open(root)
    columns = [column for view_set in store.view_sets() for column in store.columns(view_set.name)]
    lines = [line for line in lines_of(list_store(root)) if "(fp32)" in line]
    uses = all_uses(store.root)
    for column, line in zip(columns, lines, strict=True):
        users = sum(column.folder in use.commits for use in uses)
        assert users >= 1
        assert line.split("│")[1].strip() == f"{column.name} (fp32)"
        assert line.split("│")[7].strip() == str(users)
        assert short_identity(column) in line
    about = short_identity(column)
    assert about.startswith("vit_tiny_patch16_224, levels 0 1 2 3, grid 4x4")
    assert "mean 0.5 0.5 0.5, std 0.5 0.5 0.5" in about


def test_du_adds_up(root: Path) -> None:
    store = Store.open(root)
    lines = lines_of(measure_store(root))
    for view_set in store.view_sets():
        assert any(view_set.folder in line for line in lines)
        for column in store.columns(view_set.name):
            (line,) = [line for line in lines if column.folder in line]
            assert all(f"{level}: " in line for level in range(4))
    total = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    assert f"{total / 1e6:.1f} MB" in lines[-1] or f"{total / 1e6:.1f} MB" in lines[-2]


def test_gc_keeps_what_is_used_and_says_what_would_go(root: Path) -> None:
    shutil.rmtree(root / "uses")
    age(root)
    store = Store.open(root)
    before = store.root.files()
    planned = collect_garbage(root, dry_run=True, grace_hours=168, forget_missing=False)
    assert store.root.files() == before
    assert planned.lines[-1].startswith("would remove ")
    assert sum(line.startswith("would remove column ") for line in planned.lines) == 6
    assert sum(line.startswith("would remove view set ") for line in planned.lines) == 3
    done = collect_garbage(root, dry_run=False, grace_hours=168, forget_missing=False)
    assert done.bytes == planned.bytes
    assert [line.replace("would remove", "removed") for line in planned.lines] == list(done.lines)
    assert store.root.files() == ["store.json"]


def test_gc_removes_nothing_that_experiments_use(root: Path) -> None:
    age(root)
    before = Store.open(root).root.files()
    done = collect_garbage(root, dry_run=False, grace_hours=0, forget_missing=False)
    assert Store.open(root).root.files() == before
    assert done.bytes == 0
    assert all("use" in line for line in done.lines if line.startswith("kept "))


def test_gc_forgets_experiments_whose_folder_is_gone_when_asked(root: Path, finished: Finished, tmp_path: Path) -> None:
    """Of this host alone; others must judge theirs."""
    store = Store.open(root)
    uses = all_uses(store.root)
    away = [use for use in uses if not Path(use.folder).is_dir()]
    gone = next(use for use in uses if use not in away and "unlabeled" in str(use.commits))
    shutil.move(gone.folder, tmp_path / "moved")
    try:
        done = collect_garbage(root, dry_run=True, grace_hours=0, forget_missing=True)
    finally:
        shutil.move(tmp_path / "moved", gone.folder)
    forgotten = [line for line in done.lines if line.startswith("would remove use ")]
    assert len(forgotten) == len(away) + 1
    assert any(gone.path in line for line in forgotten)
    path = store.root.local(gone.path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(StoreError, match=gone.path):
        collect_garbage(root, dry_run=True, grace_hours=0, forget_missing=False)
    assert [found.path for found in verify(store) if found.severity == "error"] == [gone.path]
