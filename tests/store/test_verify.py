from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_store

from store import verify as verify_module
from store.audit import Audit
from store.column import Column
from store.commits import PartCommit
from store.document import render_document
from store.errors import StoreError
from store.fingerprint import digest_bytes
from store.store import Store
from store.uses import Use, make_use, save_use
from store.verify import Finding, locate_part, verify
from store.viewset import ViewSet


def findings(root: Path, severity: str = "error") -> list[Finding]:
    return [finding for finding in verify(Store.open(root)) if finding.severity == severity]


@pytest.fixture
def root(filled: Column, tmp_path: Path) -> Path:
    return tmp_path / "store"


def all_files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def test_a_sound_store_has_no_findings(root: Path):
    steps: list[tuple[int, int]] = []
    assert verify(Store.open(root), progress=lambda done, total: steps.append((done, total))) == []
    assert steps[-1] == (len(all_files(root)), len(all_files(root)))


BACKENDS = ("zarr", "webdataset")


def flip(path: Path, position: int) -> None:
    with open(path, "r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        # Another bit for each position, and its own inverse.
        file.write(bytes([byte ^ 1 << position % 8]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sound_shard_of_other_numbers_is_found(tmp_path: Path, backend: str):
    """File and record agree, the rows decode, and still they are not what was encoded."""
    store = tiny_store.fill(tmp_path / "one", backend=backend)
    other = tiny_store.write_column(tiny_store.fill(tmp_path / "two"), "b", backend=backend)
    column = store.columns("t")[0]
    commit, wrong = column.commits.load(1), other.commits.load(1)
    for path in column.part_files(1):
        (tmp_path / "one" / column.folder / path).write_bytes((tmp_path / "two" / other.folder / path).read_bytes())
    rewrite(tmp_path / "one", column, commit, objects=wrong.objects)
    (found,) = findings(tmp_path / "one")
    assert (found.path, found.rows) == (column.commits.path(1), range(2, 4))
    assert "the numbers of level_0" in found.problem


def rewrite(root: Path, owner: Column | ViewSet, commit: PartCommit, **changes: object) -> None:
    """A record that is sound in itself, and says something else."""
    (root / owner.commits.path(commit.part)).write_bytes(replace(commit, **changes).render())


def test_part_of_a_store_is_verified_without_the_rest(root: Path, filled: Column):
    shard = f"{filled.folder}/level_0/c/1/0/0/0"
    damaged = [shard, f"{filled.folder}/level_1/c/0/0/0", "views/train/images/part-00002.tar", "notes.txt"]
    for path in (damaged[0], damaged[2]):
        (root / path).write_bytes(b"?")
    (root / "notes.txt").write_text("?")
    store = Store.open(root)

    def found(*paths: str) -> set[str]:
        return {item.path for item in verify(store, paths=paths) if item.severity == "error"}

    assert found(shard) == {shard}
    assert found(filled.folder) == {shard}
    assert found("views/train") == {damaged[2]}
    assert found("views/train/view_set.json", "store.json", filled.commits.path(0)) == set()
    assert found("notes.txt") == {"notes.txt"}
    assert found("views/train", filled.folder) == {shard, damaged[2]}


def test_a_damaged_use_is_found(root: Path, filled: Column):
    use = make_use(Store.open(root), experiment="distill-1", folder="/out", items=[filled])
    save_use(Store.open(root), use)
    assert verify(Store.open(root)) == []
    (root / "uses" / "other.json").write_bytes(use.render())
    flip(root / use.path, 30)
    assert [item.path for item in findings(root)] == [use.path, "uses/other.json"]


def test_rows_are_named(root: Path, filled: Column):
    path = root / filled.folder / "level_1" / "c" / "2" / "0" / "0" / "0"
    path.unlink()
    assert findings(root) == [
        Finding(path=path.relative_to(root).as_posix(), rows=range(16, 20), problem="missing", severity="error")
    ]


def test_a_column_of_other_rows_is_found(root: Path, filled: Column, tmp_path: Path):
    """The record is sound in itself, and names other keys than the view set has."""
    rewrite(root, filled, filled.commits.load(1), keys_sha256="0" * 64)
    (finding,) = findings(root)
    assert (finding.rows, finding.path) == (range(8, 16), filled.commits.path(1))
    assert "its keys are not those of view set train" in finding.problem


def test_a_record_that_hides_a_level_is_found(root: Path, filled: Column):
    commit = filled.commits.load(1)
    rewrite(
        root, filled, commit, objects={path: item for path, item in commit.objects.items() if "level_1" not in path}
    )
    assert filled.commits.path(1) in {finding.path for finding in findings(root)}


def test_a_tar_that_disagrees_with_its_index_is_found(root: Path, filled: Column):
    """Both files have the digests that the record says; only their content disagrees."""
    views = filled.view_set
    commit = views.commits.load(0)
    tar = views.tar_path(0)
    data = tar.read_bytes().replace(b"000000000.png", b"000000099.png", 1)
    tar.write_bytes(data)
    objects = dict(commit.objects)
    objects["images/part-00000.tar"] = type(commit.objects["images/part-00000.tar"])(
        sha256=digest_bytes(data), size=len(data)
    )
    rewrite(root, views, commit, objects=objects)
    assert "views/train/images/part-00000.tar" in {finding.path for finding in findings(root)}


def test_strangers_are_found(root: Path, filled: Column, tmp_path: Path):
    (root / "notes.txt").write_text("hello")
    (root / filled.folder / "level_0" / "c" / "1" / "0" / "0" / "1").write_bytes(b"x")
    (tmp_path / "outside").mkdir()
    (root / "columns" / "train" / "stolen-0123").symlink_to(tmp_path / "outside")
    assert [finding.path.rsplit("/", 1)[-1] for finding in findings(root)] == ["1", "stolen-0123", "notes.txt"]


def test_rows_that_are_still_to_be_written_are_information(tmp_path: Path):
    store = tiny_store.fill(tmp_path, images=6)
    column = store.columns("t")[0]
    drop(tmp_path, column, 1)
    drop(tmp_path, column, 2)
    (found,) = verify(store)
    assert (found.severity, found.path) == ("info", f"{column.folder}/column.json")
    assert found.problem == (
        "2 of 3 parts are still to be written, the first one rows 2 to 3; the same sak extract writes them"
    )
    assert verify(store, paths=[column.commits.path(0)]) == []


def drop(root: Path, owner: Column | ViewSet, part: int) -> None:
    """A part that never was: no record, no files."""
    for path in all_files(root):
        if locate_part(path.relative_to(root).as_posix()) == (owner.folder, part):
            path.unlink()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_record_that_was_deleted_is_an_error(tmp_path: Path, backend: str):
    store = tiny_store.fill(tmp_path, backend=backend, images=6)
    views, column = store.view_set("t"), store.columns("t")[0]
    files = len(column.part_files(1)) + 1  # and the cost
    column.discard(1)
    (found,) = findings(tmp_path)
    assert (found.path, found.rows, found.unrecorded) == (column.commits.path(1), range(2, 4), True)
    first = f"{column.folder}/costs/part-00001.json"
    assert found.problem == (
        f"missing, though there still is {first} and {files - 1} more files of the part: left by a writer that died, "
        "or the record was deleted; the same sak extract makes the part again"
    )
    for path in (column.commits.path(1), f"{column.folder}/{column.part_files(1)[0]}"):
        (found,) = verify(store, paths=[path])
        assert (found.path, found.rows, found.unrecorded) == (column.commits.path(1), range(2, 4), True)
    assert verify(store, paths=[column.commits.path(0)]) == []
    tiny_store.fill(tmp_path, backend=backend, images=6)
    views.discard(2)
    assert {item.path: item.rows for item in findings(tmp_path)} == {
        views.commits.path(2): range(4, 6),
        column.commits.path(2): range(4, 6),  # it was made from rows that are not there
    }
    tiny_store.fill(tmp_path, backend=backend, images=6)
    shutil.rmtree(tmp_path / column.folder / "commits")
    assert [item.path for item in findings(tmp_path)] == [column.commits.path(part) for part in range(3)]
    (tmp_path / column.folder / "column.json").unlink()
    assert [item.path for item in findings(tmp_path)] == [column.commits.path(part) for part in range(3)]
    tiny_store.fill(tmp_path, backend=backend, images=6)
    assert verify(store) == []


def test_a_description_without_parts_is_information(tmp_path: Path):
    """What a writer leaves that dies before the first record."""
    column = tiny_store.fill(tmp_path).columns("t")[0]
    for part in range(2):
        drop(tmp_path, column, part)
    (tmp_path / column.folder / "column.json").unlink()
    found = verify(Store.open(tmp_path))
    assert len(found) == 5
    assert {(item.severity, item.problem) for item in found} == {
        ("info", "belongs to something without a record yet; a rerun completes it")
    }


@pytest.mark.parametrize("holder", ["writer", "remover"])
def test_a_part_in_the_making_is_no_damage(holder: str, tmp_path: Path):
    """Its writer holds the part's lock from the first file to the record, who removes parts that of all."""
    store = tiny_store.fill(tmp_path)
    column = store.columns("t")[0]
    column.discard(1)
    with column.commits.writing(1) if holder == "writer" else store.root.lock(f"{column.folder}/commits"):
        assert {(item.path, item.severity, item.problem) for item in verify(store, paths=[column.folder])} >= {
            (column.commits.path(1), "info", "not there yet: a writer is at work, or was within the last hour")
        }
        assert findings(tmp_path) == []
    assert len(findings(tmp_path)) == 1


def test_what_a_dead_writer_left_is_found_beside_one_at_work(tmp_path: Path):
    store = tiny_store.fill(tmp_path)
    column = store.columns("t")[0]
    column.discard(1)
    with column.commits.writing(0):
        assert [item.path for item in findings(tmp_path)] == [column.commits.path(1)]


@pytest.mark.parametrize(("locks", "age", "severity"), [(None, 0, "info"), (None, 3700, "error"), (False, 0, "error")])
def test_without_locks_the_age_of_a_part_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: bool | None, age: int, severity: str
):
    store = tiny_store.fill(tmp_path)
    column = store.columns("t")[0]
    column.discard(1)
    monkeypatch.setattr("store.local_root.LocalRoot.is_locked", lambda *_, **__: locks)
    for path in all_files(tmp_path):
        os.utime(path, (time.time() - age,) * 2)
    assert severity in {item.severity for item in verify(store) if item.path == column.commits.path(1)}


def test_a_part_that_is_committed_meanwhile_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Between the listing of all files and the look at its own."""
    store = tiny_store.fill(tmp_path)
    column = store.columns("t")[0]
    column.discard(1)
    wait = verify_module._check_uses

    def finish(audit: Audit) -> None:
        tiny_store.write_column(store)
        wait(audit)

    monkeypatch.setattr(verify_module, "_check_uses", finish)
    found = [item for item in verify(store) if item.path == column.commits.path(1)]
    assert [(item.severity, item.problem) for item in found] == [
        ("info", "written while this ran; verify again to have it checked")
    ]
    assert findings(tmp_path) == []


def test_a_store_that_grows_meanwhile_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A column is measured by its view set, which was opened before views were appended to both."""
    store = tiny_store.fill(tmp_path)
    known, grown = verify_module._known_view_set, []

    def grow(audit: Audit, name: str, views: dict[str, ViewSet]) -> ViewSet | None:
        found = known(audit, name, views)
        if not grown:
            grown.append(store.extend_view_set("t", views=2))
            tiny_store.write_view_parts(grown[0])
            tiny_store.write_column(store)
        return found

    monkeypatch.setattr(verify_module, "_known_view_set", grow)
    assert verify(store, paths=["columns/t"]) == []
    assert len(grown) == 1
    grown.clear()
    monkeypatch.setattr(verify_module, "_TRIES", 1)
    shutil.rmtree(tmp_path)
    tiny_store.fill(tmp_path)
    assert [item.severity for item in verify(store, paths=["columns/t"])] == ["error"], "once is too little"


def test_files_of_a_part_beyond_the_last_belong_to_nothing(tmp_path: Path):
    store = tiny_store.fill(tmp_path)
    column = store.columns("t")[0]
    strays = [column.commits.path(2), f"{column.folder}/level_0/c/2/0/0/0", "views/t/images/part-00002.tar"]
    for path in strays:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"?")
    assert [(item.path, item.stray) for item in findings(tmp_path)] == [(path, True) for path in strays]


def used(root: Path) -> tuple[Store, Column, Use]:
    store = tiny_store.fill(root, images=3)
    column = store.columns("t")[0]
    use = make_use(store, experiment="distill-1", folder="/out", items=[column.view_set, column])
    save_use(store, use)
    return store, column, use


def test_a_part_that_an_experiment_reads_and_that_is_gone_is_an_error(tmp_path: Path):
    store, column, use = used(tmp_path)
    drop(tmp_path, column, 1)
    expected = (column.commits.path(1), range(2, 3), True)
    for paths in (None, [use.path], [column.commits.path(1)], [column.folder]):
        (found,) = [item for item in verify(store, paths=paths) if item.severity == "error"]
        assert (found.path, found.rows, found.unrecorded) == expected
        assert found.problem == (
            f"missing, and experiment distill-1 (in /out on {use.host}) reads it; run the same sak extract, and if "
            "that does not give the same bytes, restore it from a copy"
        )
    assert verify(store, paths=[column.commits.path(0)]) == []
    tiny_store.write_column(store)
    assert verify(store) == []
    shutil.rmtree(tmp_path / "columns")
    (found,) = verify(store)
    assert (found.path, found.severity) == (f"{column.folder}/column.json", "error")
    assert "experiment distill-1 (in /out" in found.problem
    assert "reads 2 parts of it" in found.problem


def test_a_part_made_again_with_other_bytes_is_an_error_for_those_who_read_it(tmp_path: Path):
    store, column, use = used(tmp_path)
    levels = [{name: values[::-1] for name, values in level.items()} for level in column.read_part(0)]
    column.discard(0)
    column.write_part(0, levels, keys=column.view_set.keys(0))
    for paths in (None, [use.path], [column.commits.path(0)]):
        (found,) = verify(store, paths=paths)
        assert (found.path, found.rows, found.severity) == (use.path, range(2), "error")
        assert found.problem == (
            f"experiment distill-1 (in /out on {use.host}) reads another {column.commits.path(0)} than there is: the "
            "part was made again with other bytes; restore it from a copy, or delete that folder to train anew"
        )


def test_a_newer_format_is_refused_in_one_line(root: Path, filled: Column):
    path = root / filled.folder / "column.json"
    content = json.loads(path.read_bytes())
    content["format_version"] = 2
    path.write_text(json.dumps(content))
    (finding,) = [item for item in findings(root) if item.path.endswith("column.json")]
    assert "format version 2 is newer than 1, which this sak reads; upgrade sak" in finding.problem
    (root / "store.json").write_bytes(render_document("other", {}))
    with pytest.raises(StoreError, match="expected a store document, got kind 'other'"):
        Store.open(root)
