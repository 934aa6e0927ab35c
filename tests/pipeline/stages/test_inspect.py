from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from pipeline.stages.housekeeping import list_store
from pipeline.stages.inspect import discard_part, show, verify_store
from store.errors import StoreError
from store.store import Store
from tests.conftest import Finished


def test_ls_lists_every_view_set_and_column(finished: Finished) -> None:
    console = Console(width=400, file=io.StringIO(), record=True)
    console.print(list_store(finished.root / "store"))
    text = console.export_text()
    store = Store.open(finished.root / "store")
    assert len(store.view_sets()) == 3
    for view_set in store.view_sets():
        assert view_set.name in text
        assert f"{view_set.spec.rows}/{view_set.spec.rows}" in text
        for column in store.columns(view_set.name):
            assert f"{column.name} (fp32)" in text
    assert "%" in text


def test_info_is_yaml_of_a_view_set_or_column(finished: Finished) -> None:
    root = finished.root / "store"
    view_set = Store.open(root).view_sets()[0]
    found = yaml.safe_load(show(root, view_set.name))
    assert (found["rows"], found["committed_rows"]) == (view_set.spec.rows, view_set.spec.rows)
    column = Store.open(root).columns(view_set.name)[0]
    # A teacher's columns over several view sets have one name; all of them are shown.
    columns = list(yaml.safe_load_all(show(root, column.name)))
    assert {found["spec"]["view_set"] for found in columns} == {item.name for item in Store.open(root).view_sets()}
    for found in columns:
        assert found["spec"]["teacher"] == column.spec.teacher
        assert found["bytes"] > found["fp16_bytes"]
        assert set(found["fidelity"]) == {"level_0", "level_1", "level_2", "level_3", "mean"}
        for measured in found["fidelity"].values():
            assert measured["token_cosine"] == measured["image_cosine"] == 1
            assert measured["relative_error"] == measured["loss"] == 0
            assert 20 < measured["bits_per_value"] < 48
        speed = found["codec_million_values_per_second"]
        assert set(speed) == {"encode", "decode"}
        assert min(speed.values()) > 0
        bits = found["fidelity"]["mean"]["bits_per_value"]
        assert bits == pytest.approx(16 * found["bytes"] / found["fp16_bytes"], abs=1e-3)
    with pytest.raises(StoreError, match="nothing"):
        show(root, "nothing")


def test_verify_finds_nothing_in_a_whole_store(finished: Finished) -> None:
    verdict = verify_store(finished.root / "store")
    assert not verdict.failed
    assert verdict.lines == ()


def test_verify_names_a_flipped_byte(finished: Finished, tmp_path: Path) -> None:
    shutil.copytree(finished.root / "store", tmp_path / "store")
    view_set = Store.open(tmp_path / "store").view_sets()[0]
    tar = view_set.tar_path(0)
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(bytes(data))
    verdict = verify_store(tmp_path / "store")
    assert verdict.failed
    (line,) = [line for line in verdict.lines if line.startswith("error")]
    assert "images/part-00000.tar" in line
    assert "(rows 0-" in line


def test_no_store_is_said(tmp_path: Path) -> None:
    for look in (list_store, verify_store):
        with pytest.raises(StoreError, match="expected a store"):
            look(tmp_path)


def test_what_is_damaged_is_listed_as_that(finished: Finished, tmp_path: Path) -> None:
    root = tmp_path / "store"
    shutil.copytree(finished.root / "store", root)
    names = Store.open(root).view_set_names()
    columns = Store.open(root).column_names(names[1])
    (root / "views" / names[0] / "view_set.json").write_text("{", encoding="utf-8")
    (root / "columns" / names[1] / columns[0] / "column.json").write_text("{", encoding="utf-8")
    (root / "columns" / names[2] / columns[0] / "commits" / "part-00000.json").write_text("{", encoding="utf-8")
    console = Console(width=400, file=io.StringIO(), record=True)
    console.print(list_store(root))
    lines = console.export_text().splitlines()
    damaged = [line for line in lines if "damaged" in line]
    # The view set and its two columns, and one column of each of the others.
    assert [any(name in line for name in (names[0], *columns)) for line in damaged] == [True] * 5
    assert sum(names[0] in line for line in damaged) == 1
    assert any(names[1] in line and "damaged" not in line for line in lines)
    # Another view set, or the same column over it, can still be looked into.
    assert yaml.safe_load(show(root, names[1]))["spec"]["name"] == names[1]


def test_stray_files_are_to_be_deleted(finished: Finished, tmp_path: Path) -> None:
    root = tmp_path / "store"
    shutil.copytree(finished.root / "store", root)
    view_set = Store.open(root).view_set_names()[0]
    strays = ["notes.txt", f"views/{view_set}/images/part-00000.tar.bak"]
    for stray in strays:
        (root / stray).write_bytes(b"?")
    assert [line for line in verify_store(root).lines if line.startswith("remedy: ")] == [
        f"remedy: {stray}: delete it; no record needs it" for stray in strays
    ]


def test_a_deleted_record_is_an_error_that_says_who_reads_the_part(finished: Finished, tmp_path: Path) -> None:
    root = tmp_path / "store"
    shutil.copytree(finished.root / "store", root)
    store = Store.open(root)
    view_set = next(name for name in store.view_set_names() if "unlabeled" in name)
    column = store.columns(view_set)[0]
    column.discard(1)
    verdict = verify_store(root)
    assert verdict.failed
    errors = [line for line in verdict.lines if line.startswith("error: ")]
    rows = column.view_set.spec.part_rows(1)
    assert all(
        line.startswith(f"error: {column.commits.path(1)} (rows {rows.start}-{rows.stop - 1}): ") for line in errors
    )
    assert any("or the record was deleted" in line for line in errors)
    assert any("missing, and experiment distill-" in line for line in errors)
    assert [line for line in verdict.lines if line.startswith("remedy: ")] == [
        f"remedy: the same sak extract or sak run: it makes part 1 of {column.folder} again"
    ]


def test_a_part_that_cannot_be_discarded_is_said(finished: Finished) -> None:
    root = finished.root / "store"
    store = Store.open(root)
    view_set = store.view_set_names()[0]
    column = store.column_names(view_set)[0]
    with pytest.raises(StoreError, match="expected a committed part, got 99; the first of them: 0, 1"):
        discard_part(root, view_set, 99, dry_run=True)
    with pytest.raises(StoreError, match=rf"several view sets have column .* name one of {view_set}/{column}, "):
        discard_part(root, column, 0, dry_run=True)
    with pytest.raises(StoreError, match="nobody"):
        discard_part(root, "nobody", 0, dry_run=True)
    with pytest.raises(StoreError, match=r"has no column 'nobody'"):
        discard_part(root, f"{view_set}/nobody", 0, dry_run=True)
