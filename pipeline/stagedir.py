"""Folders of finished work, named by what the work depends on.

A stage's folder is ``<out>/<stage>-<fingerprint>``: two runs that need the same work share it, a changed recipe gets
another one, and ``stage.json``, written last, says that it is complete.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.distributed import ALONE, Ranks
from pipeline.errors import PipelineError
from pipeline.runtime import device_name, versions
from pipeline.whole_file import write_whole
from store.fingerprint import fingerprint

__all__ = ["StageDir", "read_json", "write_json"]


_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


@dataclass(frozen=True, slots=True)
class StageDir:
    """One stage of one run, addressed by the fingerprint of its inputs.

    Attributes:
        inputs: JSON-ready data that determines the result.
    """

    stage: str
    path: Path
    inputs: Mapping[str, object]

    @classmethod
    def of(cls, out: Path, stage: str, /, *, inputs: Mapping[str, object]) -> StageDir:
        """The folder for these inputs."""
        return cls(stage, out / f"{stage}-{fingerprint(inputs)}", inputs)

    @property
    def fingerprint(self) -> str:
        """What the folder's name ends in."""
        return self.path.name.rpartition("-")[2]

    def done(self) -> bool:
        """Whether the stage is complete."""
        return (self.path / "stage.json").exists()

    def record(self) -> dict[str, object]:
        """What a finished stage recorded: inputs, seconds, device, versions.

        Raises:
            PipelineError: The stage is not finished, or its record is damaged.
        """
        return read_json(self.path / "stage.json")

    @contextmanager
    def work(self, *, device: torch.device, ranks: Ranks = ALONE) -> Iterator[dict[str, object]]:
        """Do the stage: what is put in the yielded mapping is recorded with it; time adds up over resumes.

        Of several ranks the first alone holds the folder; what the others put in the mapping goes nowhere.

        Raises:
            PipelineError: Another process is at it, or has finished it since this one looked.
        """
        if not ranks.first:
            yield {}
            return
        self.path.mkdir(parents=True, exist_ok=True)
        with _alone(self.path):
            if self.done():
                raise PipelineError(f"{self.path}: another process has just finished it; run the same command again")
            yield from self._work(device)
        self.tidy()

    def tidy(self, ranks: Ranks = ALONE) -> None:
        """Delete the checkpoints of a finished stage: nothing resumes from them, and they outweigh all else."""
        if ranks.first and self.done():
            shutil.rmtree(self.path / "checkpoints", ignore_errors=True)

    def _work(self, device: torch.device) -> Iterator[dict[str, object]]:
        clock = self.path / "seconds.json"
        before = float(str(read_json(clock)["seconds"])) if clock.exists() else 0.0
        start = time.perf_counter()
        extra: dict[str, object] = {}
        try:
            yield extra
        finally:
            seconds = before + time.perf_counter() - start
            write_json(clock, {"seconds": seconds})
        made = {"device": device_name(device), "versions": versions()}
        record = {"stage": self.stage, "inputs": self.inputs, "seconds": seconds, **made, **extra}
        write_json(self.path / "stage.json", record)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, which goes with the process however that ends."""
    path = folder / ".lock"
    descriptor = _locked(path)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        # While it is still held: once it is free, the file may be another's.
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 32, 0).decode() or "unknown"
            if error.errno in _NO_LOCKS:  # some network file systems; two runs at once are then the user's to avoid
                return descriptor
            os.close(descriptor)
            if not isinstance(error, BlockingIOError):
                raise
            raise PipelineError(
                f"{path.parent}: process {holder} is working in it; wait for that to end, then run this again"
            ) from error
        # Its holder may have removed the file between the two calls: then this lock guards nothing.
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
        os.close(descriptor)


def write_json(path: Path, data: Mapping[str, object], /) -> None:
    """Write JSON under a temporary name, flush, rename; NaN and infinity, which JSON lacks, become null."""
    write_whole(path, json.dumps(_finite(data), indent=1, allow_nan=False).encode("utf-8"))


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path, /) -> dict[str, object]:
    """Read a JSON mapping.

    Raises:
        PipelineError: It is absent or not JSON; the message names the file.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PipelineError(f"{path}: cannot be read ({error}); delete its folder and rerun") from error
    if not isinstance(data, dict):
        raise PipelineError(f"{path}: expected a JSON mapping, got {type(data).__name__}; delete its folder and rerun")
    return data
