from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import tiny_store

from store.store import Store
from store.verify import verify

HERE = Path(__file__).parent


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(HERE / script), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_readers_see_whole_committed_rows_while_views_and_columns_are_added(tmp_path: Path):
    tiny_store.fill(tmp_path, images=5)
    # 5 images in 4 views, in 2 columns
    readers = [start("concurrent_reader.py", str(tmp_path), "40") for _ in range(2)]
    for reader in readers:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
    writer = start("concurrent_writer.py", str(tmp_path))
    assert (writer.communicate()[1], writer.returncode) == ("", 0)
    seen: set[int] = set()
    for reader in readers:
        out, err = reader.communicate()
        assert (err, reader.returncode) == ("", 0)
        seen |= {int(word) for word in out.split()}
    assert min(seen) == 5
    assert max(seen) == 40
    assert verify(Store.open(tmp_path)) == []


def test_what_is_being_written_is_not_called_damaged(tmp_path: Path):
    """Appended views, new descriptions and parts in the making, seen by a verification at any moment."""
    tiny_store.fill(tmp_path)
    verifier = start("concurrent_verifier.py", str(tmp_path), "32")
    assert verifier.stdout is not None
    assert verifier.stdout.readline() == "ready\n"
    writer = start("concurrent_writer.py", str(tmp_path))
    assert (writer.communicate()[1], writer.returncode) == ("", 0)
    out, err = verifier.communicate()
    assert (err, verifier.returncode) == ("", 0)
    assert int(out.split()[0]) > 3
    assert verify(Store.open(tmp_path)) == []
