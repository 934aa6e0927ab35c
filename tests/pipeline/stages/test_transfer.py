from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import cli
from pipeline.commands.store import store_app
from pipeline.stages.transfer import export_to, import_from
from store.errors import MissingColumnError
from store.store import Store
from store.verify import verify

sys.path.insert(0, str(Path(__file__).parents[2] / "store"))

import store_samples


def test_a_column_travels_by_command(tmp_path: Path) -> None:
    column = store_samples.fill(tmp_path / "store")
    name = f"train/{column.name}"
    runner = CliRunner()
    exported = runner.invoke(store_app, ["export", str(tmp_path / "store"), name, "--out", str(tmp_path / "out")])
    assert exported.exit_code == 0, exported.output
    assert f"exported {name} to {tmp_path / 'out'} (webdataset, without images): 3 shards" in exported.output
    shutil.rmtree(tmp_path / "store" / "columns")
    imported = runner.invoke(store_app, ["import", str(tmp_path / "store"), str(tmp_path / "out")])
    assert imported.exit_code == 0, imported.output
    assert f"imported {name} into {tmp_path / 'store'} (zarr): 3 shards" in imported.output
    assert verify(Store.open(tmp_path / "store")) == []
    again = import_from(str(tmp_path / "store"), str(tmp_path / "out"), backend="webdataset")
    assert "(zarr): 0 shards, 3 were there" in again


def test_a_column_is_named_with_its_view_set(tmp_path: Path) -> None:
    column = store_samples.fill(tmp_path / "store")
    with pytest.raises(MissingColumnError, match=f"expected VIEW_SET/COLUMN, got '{column.name}', found train/"):
        export_to(str(tmp_path / "store"), column.name, str(tmp_path / "out"), backend="zarr", images=False)
    assert not (tmp_path / "out").exists()


def test_refusals_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    store_samples.fill(tmp_path / "store")
    monkeypatch.setattr(sys, "argv", ["sak", "store", "import", str(tmp_path / "store"), str(tmp_path / "store")])
    with pytest.raises(SystemExit) as done:
        cli.main()
    assert done.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "found no export.json; sak store export makes one" in line
