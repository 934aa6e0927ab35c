"""``sak extract`` with ``--workers`` and ``--scheduler``, as real processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.sak_process import PHOTOS, REPOSITORY, SakProcess, sak, until, write_recipe
from tests.tiny_recipe import stored_bytes

pytest.importorskip("distributed")

QUIET = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
SCENES = "data.distill.source={name: scenes, split: unlabeled, images: 24, size: 32}"
ONE_STAGE = [SCENES, "data.distill.rows_per_shard=1", "data.eval=null"]


@contextmanager
def dask_process(kind: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A scheduler or worker as users start them, without what would start it again."""
    command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", "--no-dashboard", *arguments]
    process = subprocess.Popen(command, env=QUIET, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def records(folder: Path) -> int:
    return len(list(folder.glob("store/*/*/**/commits/*.json")))


def test_a_mistake_found_by_a_worker_is_one_line(tmp_path: Path) -> None:
    write_recipe(tmp_path, PHOTOS)
    (tmp_path / "photos").mkdir()
    for name in ("a", "b", "c", "d"):
        (tmp_path / "photos" / f"{name}.jpg").write_bytes(b"\xff\xd8 torn")
    outcome = sak("extract", "tiny.yaml", "--workers", "1", "data.eval=null", cwd=tmp_path)
    assert outcome.code == 2, outcome.err
    (complaint,) = [line for line in outcome.err.splitlines() if not line.startswith("extract ")]
    assert complaint.startswith("sak: ")
    assert ".jpg" in complaint
    assert "on_error: skip" in complaint


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["extract.scheduler=tcp://h:1"], "extract.scheduler is a Dask cluster's; it needs extract.engine: dask"),
        (["--workers", "2", "--gpu-workers"], "extract.gpu_workers needs extract.scheduler"),
    ],
)
def test_options_that_do_not_fit_are_refused(arguments: list[str], said: str, tmp_path: Path) -> None:
    write_recipe(tmp_path)
    outcome = sak("extract", "tiny.yaml", *arguments, cwd=tmp_path)
    assert outcome.code == 2
    assert said in outcome.err


@pytest.mark.slow
def test_a_restarted_scheduler_costs_nothing_but_time(tmp_path: Path) -> None:
    """Scheduler and worker are killed while the command runs, others take their place, and the command goes on."""
    for name in ("process", "dask"):
        write_recipe(tmp_path / name, PHOTOS)
    assert sak("extract", "tiny.yaml", *ONE_STAGE, cwd=tmp_path / "process").code == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    address = f"tcp://127.0.0.1:{port}"
    folder, scheduler = tmp_path / "dask", ("scheduler", "--host", "127.0.0.1", "--port", port)
    worker = ("worker", address, "--nthreads", "1", "--no-nanny")
    with dask_process(*scheduler), dask_process(*worker):
        running = SakProcess("extract", "tiny.yaml", *ONE_STAGE, "--scheduler", address, cwd=folder)
        until(lambda: records(folder) >= 3, process=running)
        left = records(folder)
        assert running.running()
    assert left < 2 * 24
    with dask_process(*scheduler), dask_process(*worker):
        outcome = running.wait()
    assert outcome.code == 0, outcome.err
    assert stored_bytes(folder / "store") == stored_bytes(tmp_path / "process" / "store")


def test_ctrl_c_ends_workers_and_is_one_line(tmp_path: Path) -> None:
    write_recipe(tmp_path, PHOTOS)
    running = SakProcess("extract", "tiny.yaml", *ONE_STAGE, "--workers", "1", cwd=tmp_path)
    until(lambda: records(tmp_path) >= 2, process=running)
    running.send(signal.SIGINT)
    outcome = running.wait()
    assert outcome.code == 130, outcome.err
    (complaint,) = [line for line in outcome.err.splitlines() if not line.startswith("extract ")]
    assert complaint == "sak: interrupted; the same command goes on where it stopped"
    written = records(tmp_path)
    time.sleep(0.5)
    assert records(tmp_path) == written, "a worker goes on"
