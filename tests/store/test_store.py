from __future__ import annotations

import ast
import dataclasses
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import store_samples

import store
from store.column import Column
from store.errors import FormatError, MissingColumnError, MissingRowsError
from store.roots import open_root
from store.store import Store
from store.viewset import ReadOptions

PACKAGE = Path(store.__file__).parent


def test_create_is_idempotent_and_open_finds_it(tmp_path: Path):
    Store.create(tmp_path / "a" / "store")
    before = store_samples.tree(tmp_path)
    Store.create(tmp_path / "a" / "store")
    assert store_samples.tree(tmp_path) == before
    assert store.open(tmp_path / "a" / "store").view_sets() == ()


def test_open_refuses_what_is_no_store(tmp_path: Path):
    with pytest.raises(FormatError, match=r"expected a store, found no store.json"):
        Store.open(tmp_path)
    with pytest.raises(FormatError, match="expected a local folder or s3://bucket/prefix"):
        Store.open("gs://bucket/store")
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(FormatError, match="choose another"):
        Store.create(tmp_path)
    with pytest.raises(FormatError, match="got a file"):
        Store.create(tmp_path / "thesis.tex")


def test_listing_and_finding(filled: Column, tmp_path: Path):
    opened = Store.open(tmp_path / "store")
    assert [views.name for views in opened.view_sets()] == ["train"]
    assert [column.name for column in opened.columns("train")] == [filled.name]
    assert opened.view_set_names() == ("train",)
    assert opened.column_names("train") == (filled.name,)
    assert opened.column_names("val") == ()
    assert opened.column("train", filled.name).spec == store_samples.column_spec()


def test_what_is_missing_is_named_with_what_there_is(filled: Column, tmp_path: Path):
    opened = Store.open(tmp_path / "store")
    with pytest.raises(MissingColumnError, match="no view set 'val', found train"):
        opened.columns("val")
    with pytest.raises(MissingColumnError, match=rf"no column 'clip-0', found {filled.name}$"):
        opened.column("train", "clip-0")


def test_reading_of_several_columns_at_once(filled: Column, tmp_path: Path):
    other = Store.open(tmp_path / "store").create_column(store_samples.column_spec("fp32", teacher="clip"))
    for part in (0, 2):
        store_samples.write_column_part(other, part)
    opened = pickle.loads(pickle.dumps(store.open(tmp_path / "store")))
    names, rows = opened.column_names("train"), [17, 3, 3]
    for levels in (None, [1], [1, 0]):
        read = opened.read("train", columns=names, rows=rows, levels=levels)
        assert list(read) == list(names)
        for name, feats in read.items():
            shapes = [(3, *store_samples.LEVELS[level].shape) for level in levels or (0, 1)]
            assert [(feat.shape, feat.dtype.name) for feat in feats] == [(shape, "float32") for shape in shapes], name
        for level, feat in zip(levels or (0, 1), read[other.name], strict=True):
            np.testing.assert_array_equal(feat, [store_samples.features(row, level) for row in rows])
    with pytest.raises(MissingRowsError, match="rows 8 to 15 are not committed"):
        opened.read("train", columns=[other.name], rows=[0, 9])
    with pytest.raises(FormatError, match="levels from 0 to 1"):
        opened.read("train", columns=names, rows=[0], levels=[2])
    assert [feat.shape[0] for feat in opened.read("train", columns=[other.name], rows=[])[other.name]] == [0, 0]


def test_reading_proves_that_a_column_belongs_to_its_images(filled: Column, tmp_path: Path):
    views = filled.view_set
    rows = views.read_part(1)
    views.discard(1)
    changed = [dataclasses.replace(row, files=dict.fromkeys(row.files, b"other")) for row in rows]
    views.write_part(1, changed)
    opened = store.open(tmp_path / "store")
    assert opened.read("train", columns=[filled.name], rows=[0, 17])
    with pytest.raises(FormatError, match="part 1: made from other images"):
        opened.read("train", columns=[filled.name], rows=[9])


@pytest.mark.parametrize("name", ["../train", "/etc", "a/b", "", ".hidden", "x" * 101, "caf\u00e9"])
def test_unsafe_names_are_refused(filled: Column, tmp_path: Path, name: str):
    opened = Store.open(tmp_path / "store")
    with pytest.raises(FormatError, match="expected 1 to 100"):
        opened.view_set(name)
    with pytest.raises(FormatError, match="expected 1 to 100"):
        opened.column("train", name)
    with pytest.raises(FormatError, match="expected 1 to 100"):
        dataclasses.replace(store_samples.column_spec(), teacher=name)


def test_creating_the_same_again_returns_it(filled: Column, tmp_path: Path):
    opened = Store.open(tmp_path / "store")
    before = store_samples.tree(tmp_path)
    assert opened.create_view_set(store_samples.view_spec()).committed_parts() == (0, 1, 2)
    assert opened.create_column(store_samples.column_spec()).committed_parts() == (0, 1, 2)
    assert store_samples.tree(tmp_path) == before


def test_another_view_set_of_the_same_name_is_refused(filled: Column, tmp_path: Path):
    with pytest.raises(FormatError, match=r"with another seed \(11 there, 12 asked\); choose another name"):
        Store.open(tmp_path / "store").create_view_set(store_samples.view_spec(seed=12))


def test_another_need_gets_another_column(filled: Column, tmp_path: Path):
    spec = store_samples.column_spec()
    others = [
        store_samples.column_spec("fp16"),
        dataclasses.replace(spec, identity={**spec.identity, "size": [64, 64]}),
        dataclasses.replace(spec, levels=spec.levels[:1]),
    ]
    assert len({spec.fingerprint, *(other.fingerprint for other in others)}) == 4
    opened = Store.open(tmp_path / "store")
    for other in others:
        opened.create_column(other)
    assert len(opened.columns("train")) == 4


def test_a_column_needs_its_view_set(tmp_path: Path):
    with pytest.raises(MissingColumnError, match="no view set 'train', found none"):
        Store.create(tmp_path / "store").create_column(store_samples.column_spec())


def test_a_moved_column_is_refused(filled: Column, tmp_path: Path):
    folder = tmp_path / "store" / filled.folder
    folder.rename(folder.with_name("dino-0000000000000000"))
    with pytest.raises(FormatError, match="a folder was moved"):
        Store.open(tmp_path / "store").columns("train")


def test_a_column_that_is_a_link_out_of_the_store_is_refused(filled: Column, tmp_path: Path):
    folder = tmp_path / "store" / filled.folder
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FormatError, match="a link leads outside the store"):
        Store.open(tmp_path / "store").columns("train")


def test_options_are_checked():
    with pytest.raises(FormatError, match="verify: expected one of shard, row, size, got 'none'"):
        ReadOptions(verify="none")


def test_importing_and_reading_loads_no_torch_and_no_zarr(filled: Column, tmp_path: Path):
    code = (
        "import sys, store; s = store.open(sys.argv[1]); s.columns('train')[0].read([3, 4]);"
        "print([name for name in ('torch', 'zarr') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "store")]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.stdout.strip() == "[]"


def test_no_module_imports_what_a_store_must_not():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"torch", "sak", "pipeline", "pickle"}, path


def test_stamps_of_a_folder_tell_one_version_of_a_file_from_the_next(place: str) -> None:
    root = open_root(place)
    assert root.stamps("a/b") == {}
    for path in ("a/b/one", "a/b/two", "a/b/deeper/three", "a/other"):
        root.write_atomic(path, path.encode())
    before = root.stamps("a/b")
    assert {name: stamp.size for name, stamp in before.items() if name != "deeper/three"} == {"one": 7, "two": 7}
    assert root.stamps("a/b") == before
    root.write_atomic("a/b/two", b"changed", replace=True)
    after = root.stamps("a/b")
    assert after["one"] == before["one"]
    assert after["two"] != before["two"]
