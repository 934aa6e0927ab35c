from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import store_samples

from store.errors import MissingRowsError
from store.store import Store
from store.verify import Finding, verify

WRITER = Path(__file__).parent / "crash_writer.py"


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, str]:
    store_samples.fill(tmp_path / "whole")
    return store_samples.tree(tmp_path / "whole")


def check_sweep(tmp_path: Path, whole: dict[str, str], *, stride: int) -> None:
    command = [sys.executable, str(WRITER), str(tmp_path / "sweep"), "--sweep", str(stride)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert len(lines) > 150 / stride
    expected = str(sorted(whole.items()))
    assert [line.split(" ", 1)[0] for line in lines if line.split(" ", 1)[1] != expected] == []


def test_killed_at_any_step_and_resumed_equals_uninterrupted(tmp_path: Path, whole: dict[str, str]):
    check_sweep(tmp_path, whole, stride=31)


@pytest.mark.slow
def test_killed_at_every_step_and_resumed_equals_uninterrupted(tmp_path: Path, whole: dict[str, str]):
    check_sweep(tmp_path, whole, stride=1)


def test_killed_at_random_moments_and_resumed_equals_uninterrupted(tmp_path: Path, whole: dict[str, str]):
    root = tmp_path / "store"
    delays = random.Random(0)
    for _ in range(3):
        with subprocess.Popen([sys.executable, str(WRITER), str(root)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(delays.uniform(0, 0.08))
            writer.kill()
        check_only_committed_rows_are_readable(root)
    store_samples.fill(root)
    assert store_samples.tree(root) == whole
    assert damage(root) == []


def check_only_committed_rows_are_readable(root: Path) -> None:
    if not (root / "store.json").exists() or not Store.open(root).view_sets():
        return
    assert damage(root) == []
    for column in Store.open(root).columns("train"):
        done = column.committed_parts()
        for part in range(3):
            rows = column.view_set.spec.part_rows(part)
            if part in done:
                column.read(rows)
            else:
                with pytest.raises(MissingRowsError):
                    column.read([rows[0]])


def damage(root: Path) -> list[Finding]:
    """What a dead writer does not explain: it leaves at most files of a part whose record it did not come to."""
    return [found for found in verify(Store.open(root)) if found.severity == "error" and not found.unrecorded]


def test_two_processes_writing_one_store_end_with_the_same_store(tmp_path: Path, whole: dict[str, str]):
    root = tmp_path / "store"
    command = [sys.executable, str(WRITER), str(root)]
    writers = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(2)]
    assert [(writer.communicate()[1], writer.returncode) for writer in writers] == [(b"", 0)] * 2
    assert store_samples.tree(root) == whole


def test_temporary_files_of_living_writers_are_left_alone(tmp_path: Path):
    column = store_samples.fill(tmp_path / "store")
    folder = tmp_path / "store" / column.folder / "commits"
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    host = store_samples.host()
    mine, dead = folder / f".tmp-{host}-{sleeper.pid}-0", folder / f".tmp-{host}-4194305-0"
    at_root = tmp_path / "store" / dead.name
    for path in (mine, dead, at_root):
        path.write_bytes(b"half")
    found = verify(Store.open(tmp_path / "store"))
    assert {(finding.severity, finding.problem) for finding in found} == {
        ("info", "temporary file of a writer that runs or died")
    }
    store_samples.fill(tmp_path / "store")
    assert (mine.exists(), dead.exists(), at_root.exists()) == (True, False, False)
    sleeper.kill()
    sleeper.wait()
    store_samples.fill(tmp_path / "store")
    assert not mine.exists()


def test_making_a_large_column_looks_for_leftovers_in_no_part_that_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("store.store._MANY_PARTS", 0)
    column = store_samples.fill(tmp_path / "store")
    column.discard(1)
    folder = tmp_path / "store" / column.folder
    name = f".tmp-{store_samples.host()}-4194305-0"
    left = [folder / "level_0" / "c" / part / "0" / "0" / name for part in ("0", "1")]
    for path in left:
        path.write_bytes(b"half")
    seen: list[str] = []
    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: seen.append(str(path)) or real(path))
    Store.open(tmp_path / "store").create_column(column.spec)
    assert [path.exists() for path in left] == [True, False]
    assert not [path for path in seen if path.startswith(str(folder / "level_0" / "c" / "0"))]
    store = Store.open(tmp_path / "store")
    assert f"{column.folder}/level_0/c/0/0/0/{name}" in store.root.abandoned()
