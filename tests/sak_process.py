"""Runs ``sak`` as real processes, with signals and exit codes, that start in a blink.

A fork server imports torch, timm and the stages once and computes nothing, so that each command costs a fork and not
four seconds of imports. Tests that are about the start itself use ``sys.executable -m cli``.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path
from typing import NamedTuple

import pytest

__all__ = [
    "PHOTOS",
    "RECIPE",
    "REPOSITORY",
    "Outcome",
    "SakProcess",
    "finished_run",
    "ranks",
    "sak",
    "stage_folders",
    "until",
    "write_recipe",
]

REPOSITORY = Path(__file__).resolve().parents[1]
_STAGES = ("run", "report", "inspect", "data", "boundary")
_PRELOADED = ["cli", "pipeline.distributed", *(f"pipeline.stages.{name}" for name in _STAGES)]
# Of the server alone. A test never talks to timm's hub, whatever the machine.
_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TORCH_CPP_LOG_LEVEL": "ERROR", "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
_PATIENCE = 120.0

RECIPE = """\
name: tiny
out: out
store: store
threads: 1
data:
  distill:
    source: {name: scenes, split: unlabeled, images: 16, size: 32}
    view: {kind: random_resized_crop, size: 32, area: [0.5, 1.0]}
    rows_per_shard: 4
  finetune:
    source: {name: scenes, split: train, images: 8, size: 32}
    view: {kind: random_resized_crop, size: 32, area: [0.5, 1.0], ignore_empty_parts: false}
    rows_per_shard: 4
  eval:
    source: {name: scenes, split: val, images: 4, size: 32}
    view: {kind: full, size: 32, ignore_empty_parts: false}
    rows_per_shard: 4
teachers:
  first:
    timm: vit_tiny_patch16_224
    random: 1
    levels: [0, 1, 2, 3]
    overrides: &tiny {patch_size: 8, embed_dim: 24, depth: 4, num_heads: 2}
  second: {timm: vit_tiny_patch16_224, random: 2, levels: [0, 1, 2, 3], overrides: *tiny}
extract: {workers: 1, batch: 8}
student: {stem: vit_tiny_patch16_224, overrides: *tiny}
distill: {steps: 30, batch: 4}
finetune: {steps: 20, batch: 4, lr: 1.0e-3}
eval: {batch: 4, gallery: 2}
track: {log_every: 1, tensorboard: false}
runs:
  both: {description: both teachers}
  labels: {description: labels alone, set: {distill: null, finetune.alpha: 0.0}}
  split: {description: one network a task, split_tasks: true, set: {finetune.tasks: [depth, edge], finetune.steps: 2}}
baselines: [labels]
"""

# Unlabelled files in a folder, and stage 1 alone.
PHOTOS = """\
out: out
store: store
threads: 1
data:
  distill:
    source: {name: imagefolder, root: photos, split: all}
    view: {kind: center, size: 32}
    rows_per_shard: 4
  eval:
    source: {name: scenes, split: val, images: 4, size: 32}
    view: {kind: full, size: 32}
    rows_per_shard: 4
teachers:
  first:
    timm: vit_tiny_patch16_224
    random: 1
    overrides: &tiny {patch_size: 8, embed_dim: 24, depth: 4, num_heads: 2}
extract: {workers: 1}
student: {stem: vit_tiny_patch16_224, overrides: *tiny}
distill: {steps: 2, batch: 4}
track: {tensorboard: false}
"""


class Outcome(NamedTuple):
    """How a command ended; ``code`` is minus the number of the signal that ended it."""

    code: int
    out: str
    err: str


class SakProcess:
    """One running ``sak`` command."""

    def __init__(self, *arguments: str, cwd: Path, variables: Mapping[str, str] | None = None) -> None:
        self._out, self._err = (cwd / f".{name}-{time.monotonic_ns()}" for name in ("out", "err"))
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        with _environment(_ENVIRONMENT):
            forkserver.ensure_running()
        self._process = context.Process(
            target=_command, args=(arguments, str(cwd), str(self._out), str(self._err), dict(variables or {}))
        )
        self._process.start()

    def send(self, number: signal.Signals) -> None:
        """Send a signal; SIGINT to its worker processes as well, as Ctrl-C in a terminal does."""
        assert self._process.pid is not None
        (os.killpg if number == signal.SIGINT else os.kill)(self._process.pid, number)

    def running(self) -> bool:
        """Whether the command has not ended."""
        return self._process.is_alive()

    def wait(self) -> Outcome:
        """Wait for the end."""
        self._process.join(_PATIENCE)
        if self.running():
            self._process.kill()
            self._process.join()
            raise AssertionError(f"still running after {_PATIENCE} s: {self._read(self._err)}")
        outcome = Outcome(int(self._process.exitcode or 0), self._read(self._out), self._read(self._err))
        self._process.close()
        self._out.unlink(missing_ok=True)
        self._err.unlink(missing_ok=True)
        return outcome

    def _read(self, path: Path) -> str:
        return path.read_text(encoding="utf-8") if path.exists() else ""


def sak(*arguments: str, cwd: Path) -> Outcome:
    """Run a command to its end."""
    return SakProcess(*arguments, cwd=cwd).wait()


def ranks(world: int, *arguments: str, cwd: Path) -> list[SakProcess]:
    """The processes of a command that torchrun would start, with the variables that it would set."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world)}
    who = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]
    return [SakProcess(*arguments, cwd=cwd, variables=meeting | rank) for rank in who]


def until(condition: Callable[[], bool], /, *, process: SakProcess) -> None:
    """Wait for something that a running command does; returns also when the command ends."""
    while process.running() and not condition():
        time.sleep(0.002)


def write_recipe(folder: Path, text: str = RECIPE, /) -> Path:
    """Put a recipe into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def stage_folders(folder: Path, stage: str, /) -> list[Path]:
    """Folders of a stage in the recipe's ``out``."""
    return sorted((folder / "out").glob(f"{stage}-*"))


_finished: dict[str, tuple[Path, Outcome]] = {}


def finished_run(factory: pytest.TempPathFactory, destination: Path | None = None, /) -> tuple[Path, Outcome]:
    """A folder in which the tiny recipe ran to its end, once in a session, in a process started as users start it.

    Args:
        destination: Copy it there, to change it; without one it is shared and must not be changed.
    """
    if "run" not in _finished:
        folder = factory.mktemp("finished")
        write_recipe(folder)
        done = subprocess.run(
            [sys.executable, "-m", "cli", "run", "tiny.yaml"],
            cwd=folder,
            env=os.environ | _ENVIRONMENT | {"PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            check=False,
        )
        _finished["run"] = folder, Outcome(done.returncode, done.stdout, done.stderr)
    folder, outcome = _finished["run"]
    assert outcome.code == 0, outcome.err
    if destination is None:
        return folder, outcome
    shutil.copytree(folder, destination, dirs_exist_ok=True)
    return destination, outcome


def _command(arguments: tuple[str, ...], cwd: str, out: str, err: str, variables: dict[str, str]) -> None:
    """In the child: become the command."""
    for path, descriptor in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), descriptor)
    os.chdir(cwd)
    os.setsid()
    os.environ.update(variables)
    # A test run started in the background has SIGINT ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["sak", *arguments]
    import cli

    cli.main()


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
