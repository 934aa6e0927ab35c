"""Folders of finished work, named by what the work depends on.

A stage's folder is ``<out>/<stage>-<fingerprint>``: two runs that need the same work share it, a changed recipe gets
another one, and ``stage.json``, written last, says that it is complete.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.runtime import versions
from store.fingerprint import fingerprint

__all__ = ["StageDir", "read_json", "write_json"]


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
        """What a finished stage recorded: inputs, seconds, versions.

        Raises:
            PipelineError: The stage is not finished, or its record is damaged.
        """
        return read_json(self.path / "stage.json")

    @contextmanager
    def work(self) -> Iterator[dict[str, object]]:
        """Do the stage: what is put in the yielded mapping is recorded with it; time adds up over resumes."""
        self.path.mkdir(parents=True, exist_ok=True)
        clock = self.path / "seconds.json"
        before = float(str(read_json(clock)["seconds"])) if clock.exists() else 0.0
        start = time.perf_counter()
        extra: dict[str, object] = {}
        try:
            yield extra
        finally:
            seconds = before + time.perf_counter() - start
            write_json(clock, {"seconds": seconds})
        record = {"stage": self.stage, "inputs": self.inputs, "seconds": seconds, "versions": versions(), **extra}
        write_json(self.path / "stage.json", record)


def write_json(path: Path, data: Mapping[str, object], /) -> None:
    """Write JSON under a temporary name, flush, rename; NaN and infinity, which JSON lacks, become null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(_finite(data), file, indent=1, sort_keys=True, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


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
