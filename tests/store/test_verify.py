from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import store_samples
import tiny_store

from store.column import Column
from store.commits import PartCommit
from store.document import render_document
from store.errors import StoreError
from store.fingerprint import digest_bytes
from store.store import Store
from store.uses import make_use, save_use
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
# Records vouch for other files, which nobody can judge while a record is damaged.
RECORDS = ("store.json", "view_set.json", "column.json")


def layers(root: Path) -> list[list[str]]:
    """All files, in groups none of which vouches for another of its group."""
    files = [path.relative_to(root).as_posix() for path in all_files(root)]
    records = [[file] for file in files if file.rsplit("/", 1)[-1] in RECORDS]
    commits = [file for file in files if "/commits/" in file]
    return [*records, commits, [file for file in files if "/commits/" not in file and [file] not in records]]


def check_named(root: Path, damaged: list[str]) -> None:
    """Every damaged file is named, with the rows of its part."""
    if damaged == ["store.json"]:
        with pytest.raises(StoreError, match=r"store\.json"):
            Store.open(root)
        return
    found = {
        item.path: item.rows
        for item in verify(Store.open(root, options=tiny_store.OPTIONS), paths=damaged)
        if item.severity == "error"
    }
    assert set(found) >= set(damaged)
    for path in damaged:
        part = locate_part(path)
        if part is not None and "/costs/" not in path:
            assert found[path].start == 2 * part.part, path


def flip(path: Path, position: int) -> None:
    with open(path, "r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        # Another bit for each position, and its own inverse.
        file.write(bytes([byte ^ 1 << position % 8]))


# A tar of two rows would take twice as long and show nothing new; all but the column is the same in both.
@pytest.mark.parametrize(("backend", "images", "below"), [("zarr", 2, ""), ("webdataset", 1, "columns/")])
def test_a_flip_of_every_single_byte_is_found_and_named(tmp_path: Path, backend: str, images: int, below: str):
    """Byte n of all files of a layer at once, since none of them can hide another's damage."""
    tiny_store.fill(tmp_path, backend=backend, images=images)
    flips = 0
    for files in layers(tmp_path):
        sizes = {file: (tmp_path / file).stat().st_size for file in files if file.startswith(below)}
        for position in range(max(sizes.values(), default=0)):
            damaged = [file for file, size in sizes.items() if position < size]
            for file in damaged:
                flip(tmp_path / file, position)
            check_named(tmp_path, damaged)
            for file in damaged:
                flip(tmp_path / file, position)
            flips += len(damaged)
    assert flips == sum(path.stat().st_size for path in all_files(tmp_path / below))
    assert findings(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_flip_of_every_single_byte_by_itself_is_found_by_a_whole_verification(tmp_path: Path, backend: str):
    tiny_store.fill(tmp_path, backend=backend)
    for path in all_files(tmp_path):
        for position in range(path.stat().st_size):
            flip(path, position)
            if path.name == "store.json":
                check_named(tmp_path, ["store.json"])
            else:
                assert path.relative_to(tmp_path).as_posix() in {found.path for found in findings(tmp_path)}
            flip(path, position)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_truncation_is_found_and_named(tmp_path: Path, backend: str):
    """To every length for small files, to lengths beside every 512th byte for others."""
    tiny_store.fill(tmp_path, backend=backend, images=2)
    for file in [file for files in layers(tmp_path) for file in files]:
        data = (tmp_path / file).read_bytes()
        lengths = range(len(data)) if len(data) < 200 else sorted({0, 1, *range(511, len(data), 512), len(data) - 1})
        for length in lengths:
            (tmp_path / file).write_bytes(data[:length])
            check_named(tmp_path, [file])
        (tmp_path / file).write_bytes(data)
    assert findings(tmp_path) == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_missing_swapped_and_duplicated_shards_are_found_with_their_rows(tmp_path: Path, backend: str):
    column = tiny_store.fill(tmp_path, backend=backend).columns("t")[0]
    shards = [f"{column.folder}/{column.part_files(part)[0]}" for part in (0, 1)]
    for one, other in (shards, [f"views/t/images/part-0000{part}.tar" for part in (0, 1)]):
        kept = [(tmp_path / path).read_bytes() for path in (one, other)]
        (tmp_path / one).unlink()
        assert [(item.path, item.rows) for item in findings(tmp_path)] == [(one, range(2))]
        for new, damaged in (([kept[1], kept[0]], [one, other]), ([kept[1], kept[1]], [one]), ([kept[0]] * 2, [other])):
            for path, data in zip((one, other), new, strict=True):
                (tmp_path / path).write_bytes(data)
            assert [(item.path, item.rows) for item in findings(tmp_path)] == [
                (path, range(2) if path == one else range(2, 4)) for path in damaged
            ]
        for path, data in zip((one, other), kept, strict=True):
            (tmp_path / path).write_bytes(data)
    assert findings(tmp_path) == []


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


@pytest.mark.parametrize("damage", ["truncated", "extended", "emptied"])
def test_files_of_another_length_are_found_and_named(root: Path, damage: str):
    for path in all_files(root):
        if path.name == "store.json":
            continue
        data = path.read_bytes()
        path.write_bytes({"truncated": data[:-1], "extended": data + b"\n", "emptied": b""}[damage])
        assert path.relative_to(root).as_posix() in {finding.path for finding in findings(root)}
        path.write_bytes(data)


def test_missing_files_are_found_and_named(root: Path):
    for path in all_files(root):
        relative = path.relative_to(root).as_posix()
        if path.name == "store.json" or "costs" in path.parts:
            continue
        data = path.read_bytes()
        path.unlink()
        found = verify(Store.open(root))
        if "commits" in path.parts:
            # The part does not exist any more; what is left of it is reported.
            assert any(relative.rsplit("/", 2)[0] in item.path for item in found)
        else:
            assert relative in {finding.path for finding in found if finding.severity == "error"}
        path.write_bytes(data)


def test_rows_are_named(root: Path, filled: Column):
    path = root / filled.folder / "level_1" / "c" / "2" / "0" / "0" / "0"
    path.unlink()
    assert findings(root) == [
        Finding(path=path.relative_to(root).as_posix(), rows=range(16, 20), problem="missing", severity="error")
    ]


def test_swapped_shards_and_records_are_found(root: Path, filled: Column):
    folder = root / filled.folder
    for pattern in ("level_0/c/{}/0/0/0", "commits/part-0000{}.json"):
        one, two = folder / pattern.format(0), folder / pattern.format(1)
        kept = one.read_bytes(), two.read_bytes()
        one.write_bytes(kept[1])
        two.write_bytes(kept[0])
        assert {rows.rows for rows in findings(root)} >= {range(8), range(8, 16)}
        one.write_bytes(kept[0])
        two.write_bytes(kept[1])


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


def test_unfinished_parts_are_information(root: Path, filled: Column):
    filled.discard(1)
    assert findings(root) == []
    found = findings(root, "info")
    assert len(found) == 5  # four arrays and the cost
    assert all("a rerun completes it" in finding.problem for finding in found)
    shutil.rmtree(root / filled.folder / "commits")
    (root / filled.folder / "column.json").unlink()
    assert findings(root) == []
    store_samples.fill(root)
    assert verify(Store.open(root)) == []


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
