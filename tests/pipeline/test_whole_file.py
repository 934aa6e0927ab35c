from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.whole_file import write_whole


def test_several_may_write_the_same_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "below" / "record.json"
    with ThreadPoolExecutor(4) as threads:
        written = [threads.submit(write_whole, path, b"x" * 100) for _ in range(40)]
    assert [future.result() for future in written] == [None] * 40
    assert [found.name for found in path.parent.iterdir()] == ["record.json"]
    assert path.read_bytes() == b"x" * 100
