from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import store_samples

from store.backends.registry import BACKENDS
from store.column import Column
from store.document import render_document
from store.errors import CorruptShardError, FormatError, MissingColumnError, MissingRowsError, StoreError
from store.store import Store
from store.transfer import ExportRecord, export_column, import_column, load_export
from store.verify import verify


def column_tree(root: Path, column: Column) -> dict[str, str]:
    return {path: digest for path, digest in store_samples.tree(root).items() if path.startswith(column.folder)}


def views_only(root: Path) -> Store:
    """A store with the same view set and no column."""
    store_samples.fill(root)
    shutil.rmtree(root / "columns")
    return Store.open(root)


def content(column: Column) -> list[object]:
    return [column.commits.load(part).content for part in column.committed_parts()]


@pytest.mark.parametrize("images", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_column_comes_home_as_it_left(filled: Column, tmp_path: Path, backend: str, images: bool):
    done: list[tuple[int, int]] = []
    out = export_column(
        filled, tmp_path / "out", backend=backend, images=images, progress=lambda *step: done.append(step)
    )
    assert (out.written, out.skipped, out.column.backend.name) == (3, 0, backend)
    assert done == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert out.column.name == filled.name
    assert content(out.column) == content(filled)
    home = views_only(tmp_path / "home")
    back = import_column(home, tmp_path / "out")
    assert column_tree(tmp_path / "home", filled) == column_tree(tmp_path / "store", filled)
    assert back.column.summary().spent == filled.summary().spent
    assert back.column.spec.fingerprint == filled.spec.fingerprint
    for mine, theirs in zip(filled.read([3, 17]), back.column.read([3, 17]), strict=True):
        np.testing.assert_array_equal(mine["values"], theirs["values"])
    for root in ("out", "home"):
        found = verify(Store.open(tmp_path / root))
        assert {(finding.severity, finding.problem) for finding in found} <= {("info", "left out of this export")}
        assert len(found) == (3 if root == "out" and not images else 0)


def test_an_export_is_a_store_of_its_own(filled: Column, tmp_path: Path):
    export_column(filled, tmp_path / "out", images=True)
    out = Store.open(tmp_path / "out")
    (column,) = out.columns("train")
    assert column.view_set.keys(1) == filled.view_set.keys(1)
    np.testing.assert_array_equal(column.read_floats([5])[0], filled.read_floats([5])[0])
    assert out.view_set("train").read_rows([5]) == filled.view_set.read_rows([5])
    assert load_export(out.root) == ExportRecord(
        view_set="train", column=filled.name, backend="webdataset", images=True
    )
    light = export_column(filled, tmp_path / "light").column
    assert light.view_set.keys(1) == filled.view_set.keys(1)
    with pytest.raises(CorruptShardError, match=r"images/part-00000\.tar.*cannot be read"):
        light.view_set.read_rows([5])
    # Two exports of one column are the same bytes.
    export_column(filled, tmp_path / "again")
    assert store_samples.tree(tmp_path / "again") == store_samples.tree(tmp_path / "light")


def test_exports_and_imports_resume(filled: Column, tmp_path: Path):
    class StopError(Exception):
        pass

    def stop(done: int, _: int) -> None:
        if done == 1:
            raise StopError

    with pytest.raises(StopError):
        export_column(filled, tmp_path / "out", progress=stop)
    done = export_column(filled, tmp_path / "out")
    assert (done.written, done.skipped) == (2, 1)
    home = views_only(tmp_path / "home")
    with pytest.raises(StopError):
        import_column(home, tmp_path / "out", progress=stop)
    done = import_column(home, tmp_path / "out")
    assert (done.written, done.skipped) == (2, 1)
    assert column_tree(tmp_path / "home", filled) == column_tree(tmp_path / "store", filled)


def test_a_store_without_the_view_set_takes_it_from_the_images(filled: Column, tmp_path: Path):
    export_column(filled, tmp_path / "light")
    empty = Store.create(tmp_path / "home")
    with pytest.raises(MissingColumnError, match=r"no view set 'train'.*--with-images"):
        import_column(empty, tmp_path / "light")
    assert empty.column_names("train") == ()
    export_column(filled, tmp_path / "out", images=True)
    import_column(empty, tmp_path / "out")
    assert store_samples.tree(tmp_path / "home") == store_samples.tree(tmp_path / "store")


def test_a_store_with_fewer_rows_takes_no_column_without_images(filled: Column, tmp_path: Path):
    export_column(filled, tmp_path / "light")
    home = views_only(tmp_path / "home")
    home.view_set("train").discard(2)
    with pytest.raises(MissingRowsError, match=r"views/train: 1 parts .* rows 16 to 19"):
        import_column(home, tmp_path / "light")
    assert home.column_names("train") == ()
    export_column(filled, tmp_path / "out", images=True)
    import_column(Store.open(tmp_path / "home"), tmp_path / "out")
    assert verify(Store.open(tmp_path / "home")) == []


def test_other_rows_images_or_numbers_are_refused(filled: Column, tmp_path: Path):
    export_column(filled, tmp_path / "out", images=True)
    home = Store.create(tmp_path / "seed")
    home.create_view_set(store_samples.view_spec(seed=12))
    with pytest.raises(FormatError, match="differs from that of the export in seed"):
        import_column(home, tmp_path / "out")

    other = Store.create(tmp_path / "images")
    views = other.create_view_set(store_samples.view_spec())
    for part in views.missing_parts():
        rows = [store_samples.view_row(views.spec, row) for row in views.spec.part_rows(part)]
        changed = [
            type(row)(row=row.row, key=row.key, view=row.view, files=row.files and {"png": b"x"}, error=row.error)
            for row in rows
        ]
        views.write_part(part, changed)
    with pytest.raises(FormatError, match="view set train, rows 0 to 7: other keys or images"):
        import_column(other, tmp_path / "out")
    assert other.column_names("train") == ()

    numbers = views_only(tmp_path / "numbers")
    column = numbers.create_column(filled.spec)
    levels = store_samples.encoded(filled.spec, range(8))
    levels[0]["values"][2] = 1
    column.write_part(0, levels, keys=filled.view_set.keys(0))
    with pytest.raises(FormatError, match=r"part-00000\.json: the column there holds other numbers in rows 0 to 7"):
        import_column(numbers, tmp_path / "out")


def test_damaged_sources_are_refused(filled: Column, tmp_path: Path):
    export_column(filled, tmp_path / "out", images=True)
    path = tmp_path / "out" / filled.folder / "shards" / "part-00001.tar"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    home = views_only(tmp_path / "home")
    with pytest.raises(CorruptShardError, match=r"part-00001\.tar: rows 8 to 15"):
        import_column(home, tmp_path / "out")
    assert home.column("train", filled.name).committed_parts() == (0,)
    index = tmp_path / "store" / "views" / "train" / "index" / "part-00000.parquet"
    index.write_bytes(index.read_bytes()[::-1])
    with pytest.raises(CorruptShardError, match="index/part-00000"):
        export_column(filled, tmp_path / "again")


def test_folders_that_hold_something_else_are_refused(filled: Column, tmp_path: Path):
    with pytest.raises(FormatError, match="found a store; choose another"):
        export_column(filled, tmp_path / "store")
    export_column(filled, tmp_path / "out")
    with pytest.raises(FormatError, match=r"found the export of train/dino-.* \(webdataset, without images\)"):
        export_column(filled, tmp_path / "out", images=True)
    with pytest.raises(FormatError, match=r"found no export\.json; sak store export makes one"):
        import_column(Store.create(tmp_path / "home"), tmp_path / "store")
    with pytest.raises(FormatError, match="expected a backend"):
        export_column(filled, tmp_path / "new", backend="hdf5")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"view_set": "train", "column": "x", "backend": "zarr", "images": 1},
        {"view_set": "train", "column": ["x"], "backend": "zarr", "images": True},
        {"view_set": "../..", "column": "x", "backend": "zarr", "images": True},
        {"view_set": "train", "column": "../../x", "backend": "zarr", "images": True},
    ],
)
def test_hostile_export_records_are_refused(filled: Column, tmp_path: Path, body: dict[str, object]):
    export_column(filled, tmp_path / "out")
    (tmp_path / "out" / "export.json").write_bytes(render_document("export", body))
    with pytest.raises(StoreError):
        import_column(views_only(tmp_path / "home"), tmp_path / "out")
