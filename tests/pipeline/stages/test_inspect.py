from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from pipeline.stages.inspect import list_store, list_teachers, show, verify_store
from sak.teachers.registry import TEACHERS
from store.errors import StoreError
from store.store import Store
from tests.conftest import Finished


def test_ls_lists_every_view_set_and_column(finished: Finished) -> None:
    console = Console(width=160, file=io.StringIO(), record=True)
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
        assert found["fidelity"]["level_0"]["cosine"] == pytest.approx(1)
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


def test_every_builtin_teacher_is_listed() -> None:
    lines = list_teachers()
    assert [line.split(":")[0] for line in lines] == list(TEACHERS)
