from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.bench.check import check_contender
from pipeline.bench.contender import WrongDataError
from pipeline.bench.held import Held
from pipeline.bench.peers.base import Job, missing
from pipeline.bench.peers.memmap import Memmap
from pipeline.bench.peers.registry import PEERS
from tests.pipeline.bench.conftest import tiny_held, tiny_plan

# Some of their libraries leave files open.
pytestmark = pytest.mark.filterwarnings("ignore")


def written(name: str, held: Held, folder: Path) -> Job:
    if missing(PEERS[name]):
        pytest.skip(missing(PEERS[name]))
    job = Job(folder / name, held, 8)
    PEERS[name].write(job)
    return job


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_gives_back_what_it_was_given(name: str, held: Held, tmp_path: Path) -> None:
    job = written(name, held, tmp_path)
    contender = PEERS[name].open(job)
    check_contender(contender, held)
    assert contender.facts.name == name
    assert contender.facts.bytes_per_row > 0
    rows = [row for batch in contender.shuffled(3) for row in batch.rows]
    assert sorted(rows) == list(range(20))
    assert rows != list(range(20))
    contender.drop_cache()
    contender.close()


@pytest.mark.parametrize("name", ["theia", "webdataset-zst", "memmap-fp16"])
def test_several_teachers_are_held_too(name: str, tmp_path: Path) -> None:
    held = tiny_held(tmp_path / "sak", tiny_plan(columns=2))
    check_contender(PEERS[name].open(written(name, held, tmp_path)), held)


def test_a_damaged_peer_is_found(held: Held, tmp_path: Path) -> None:
    job = written("memmap", held, tmp_path)
    path = job.folder / "level_0.dat"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(WrongDataError, match="memmap, shuffled, level_0: row 19 differs"):
        check_contender(PEERS["memmap"].open(job), held)


def test_what_is_not_installed_says_how_to_install_it() -> None:
    absent: Any = replace(Memmap(name="other", fidelity="stored"), package="no_such_module")
    assert missing(absent) == "not installed: pip install 'sak-distill[bench]'"
    assert missing(PEERS["memmap"]) == ""


def test_every_extra_exists() -> None:
    project = tomllib.loads((Path(__file__).resolve().parents[3] / "pyproject.toml").read_text(encoding="utf-8"))
    assert {peer.extra for peer in PEERS.values()} <= set(project["project"]["optional-dependencies"])
