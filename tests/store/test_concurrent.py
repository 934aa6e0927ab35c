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
