"""What the machine has, where that can be told."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import resources as module
from pipeline.resources import available_memory, free_space, own_memory, read_rate
from store.roots import open_root
from tests.conftest import Finished


def test_this_machine_has_something() -> None:
    assert own_memory() > 1 << 20
    memory = available_memory()
    assert memory is not None
    assert memory > 1 << 20


def test_a_containers_limit_counts_pages_it_can_drop_as_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CGROUP", tmp_path)
    monkeypatch.setattr(module, "_PROC", tmp_path)
    assert available_memory() is None
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 300\ninactive_file 400\n")
    assert available_memory() is None
    (tmp_path / "memory.max").write_text("1000\n")
    assert available_memory() == 1000 - 700 + 400
    (tmp_path / "meminfo").write_text("MemTotal: 8 kB\nMemAvailable:    0 kB\n")
    assert available_memory() == 0


def test_room_is_told_before_the_store_is_there(tmp_path: Path) -> None:
    free = free_space(open_root(tmp_path / "not" / "yet"))
    assert free is not None
    assert free.bytes > 0
    assert list(tmp_path.iterdir()) == []
    assert free_space(open_root("s3://bucket/store")) is None


def test_a_store_is_read_for_its_rate_and_none_has_none(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_rate(str(tmp_path / "absent")) is None
    assert read_rate(str(finished.root / "store")) is None, "too little to tell"
    monkeypatch.setattr(module, "_LEAST_BYTES", 1000)
    rate = read_rate(str(finished.root / "store"))
    assert rate is not None
    assert rate > 0
