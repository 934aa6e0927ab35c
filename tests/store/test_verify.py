from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
import store_samples

from store.column import Column
from store.commits import PartCommit
from store.document import render_document
from store.errors import StoreError
from store.fingerprint import digest_bytes
from store.store import Store
from store.verify import Finding, verify


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


def test_sampled_byte_flips_in_every_file_are_found_and_named(root: Path):
    check_flips(root, positions=2)


@pytest.mark.slow
def test_many_byte_flips_in_every_file_are_found_and_named(root: Path):
    check_flips(root, positions=50)


def check_flips(root: Path, *, positions: int) -> None:
    draws = random.Random(1)
    for path in all_files(root):
        data = path.read_bytes()
        chosen = [draws.randrange(len(data)) for _ in range(positions)]
        for position in chosen:
            flipped = bytearray(data)
            flipped[position] ^= 1 << draws.randrange(8)
            path.write_bytes(flipped)
            if path.name == "store.json":
                with pytest.raises(StoreError, match=r"store\.json"):
                    Store.open(root)
            else:
                found = {finding.path for finding in findings(root)}
                assert path.relative_to(root).as_posix() in found, (path, position)
        path.write_bytes(data)
    assert findings(root) == []


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
    commit = filled.commits.load(1)
    fields = {name: getattr(commit, name) for name in PartCommit.__dataclass_fields__}
    (root / filled.commits.path(1)).write_bytes(PartCommit(**{**fields, "keys_sha256": "0" * 64}).render())
    (finding,) = findings(root)
    assert (finding.rows, finding.path) == (range(8, 16), filled.commits.path(1))
    assert "its keys are not those of view set train" in finding.problem


def test_a_record_that_hides_a_level_is_found(root: Path, filled: Column):
    commit = filled.commits.load(1)
    fields = {name: getattr(commit, name) for name in PartCommit.__dataclass_fields__}
    objects = {path: item for path, item in commit.objects.items() if "level_1" not in path}
    (root / filled.commits.path(1)).write_bytes(PartCommit(**{**fields, "objects": objects}).render())
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
    fields = {name: getattr(commit, name) for name in PartCommit.__dataclass_fields__}
    (root / views.commits.path(0)).write_bytes(PartCommit(**{**fields, "objects": objects}).render())
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
