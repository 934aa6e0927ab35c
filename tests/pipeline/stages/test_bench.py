from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.bench.contender import BenchError, Contender
from pipeline.bench.peers.base import Job, Peer
from pipeline.bench.peers.memmap import Memmap
from pipeline.bench.peers.registry import PEERS
from pipeline.bench.plan import BenchPlan
from pipeline.bench.tables import bench_json
from pipeline.stages import bench as stage
from pipeline.stages.bench import bench_store
from store.codecs.base import LevelSpec
from tests.sak_process import sak

PLAN = BenchPlan(
    rows=16, batch=8, rounds=2, levels=(LevelSpec(components=6, height=4, width=3),) * 2, peers=("memmap",)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Liar:
    """A peer that holds one wrong number."""

    name: str = "liar"
    fidelity: str = "stored"
    package: str = "numpy"
    family: str = "plain"
    extra: str = "bench"

    def write(self, job: Job, /) -> None:
        Memmap(name="liar", fidelity="stored").write(job)
        path = job.folder / "level_1.dat"
        data = bytearray(path.read_bytes())
        data[100] ^= 4
        path.write_bytes(bytes(data))

    def open(self, job: Job, /) -> Contender:
        return Memmap(name="liar", fidelity="stored").open(job)


@dataclass(frozen=True, slots=True, kw_only=True)
class Full:
    """A peer whose disk is full."""

    name: str = "full"
    fidelity: str = "stored"
    package: str = "numpy"
    family: str = "plain"
    extra: str = "bench"

    def write(self, job: Job, /) -> None:
        raise OSError("no space")

    def open(self, job: Job, /) -> Contender:
        raise AssertionError


def known(monkeypatch: pytest.MonkeyPatch, *more: Any) -> None:
    peers: Mapping[str, Peer] = {**PEERS, **{peer.name: peer for peer in more}}
    monkeypatch.setattr(stage, "PEERS", peers)


def test_everything_is_measured_and_nothing_is_left(tmp_path: Path) -> None:
    found = bench_json(bench_store(replace(PLAN, folder=tmp_path, device="cpu", threads=2)))
    names = [line["name"] for line in found["lines"]]
    assert names[:4] == ["sak", "sak, first read", "sak, first read, no digests", "sak, decoded on cpu"]
    assert names[4:] == ["limit: raw read", "limit: memcpy", "limit: byte codec", "memmap"]
    assert all(len(line["shuffled"]["rounds"]) == 2 for line in found["lines"])
    assert found["conditions"]["cache"] == "warm"
    assert not list(tmp_path.iterdir())


def test_wrong_data_and_failures_get_no_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent: Any = replace(Memmap(name="absent", fidelity="stored"), package="no_such_module")
    known(monkeypatch, Liar(), Full(), absent)
    plan = replace(PLAN, folder=tmp_path, peers=("liar", "full", "absent", "memmap"), cold=True)
    found = {line["name"]: line for line in bench_json(bench_store(plan))["lines"]}
    assert "liar, shuffled, level_1: row 1 differs" in found["liar"]["problem"]
    assert found["full"]["problem"] == "failed: OSError: no space"
    assert found["absent"]["problem"] == "not installed: pip install 'sak-distill[bench]'"
    assert not any("shuffled" in found[name] for name in ("liar", "full", "absent"))
    assert found["memmap"]["shuffled"]["rows_per_second"] > 0


def test_a_full_disk_is_said_before_peers_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch, Full())
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(BenchError, match=f"{tmp_path}: expected .* GB free for 16 rows"):
        bench_store(replace(PLAN, folder=tmp_path, peers=("full",)))
    assert not list(tmp_path.iterdir())
    with pytest.raises(BenchError, match="expected a folder to write to, found none"):
        bench_store(replace(PLAN, folder=tmp_path / "absent"))


def test_the_command_prints_a_table(tmp_path: Path) -> None:
    options = ["--rows", "8", "--batch", "4", "--rounds", "1", "--peers", "memmap", "--dir", "."]
    done = sak("bench", "store", *options, cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    for text in ("rows/s shuffled", "limit: byte codec", "memmap", "page cache warm", "bits a value"):
        assert text in done.out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--rows", "10"], "rows: expected at least two batches of 32, got 10"),
        (["--peers", "parquet"], "peers: expected none or some of theia"),
        (["--codec", "jpeg"], "codec: expected one of"),
        (["--from", "column"], "from: expected STORE/VIEW_SET/COLUMN, got 'column'"),
        (["--from", "nowhere/views/column"], "nowhere: expected a store"),
        (["--dir", "nowhere"], "nowhere: expected a folder to write to"),
    ],
)
def test_mistakes_are_one_line(options: list[str], problem: str, tmp_path: Path) -> None:
    done = sak("bench", "store", *options, cwd=tmp_path)
    assert done.code == 2
    assert problem in done.err
    assert done.err.count("\n") == 1
