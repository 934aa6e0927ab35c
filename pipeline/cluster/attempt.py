"""What a Dask worker does for any task. Loads no torch: a worker that only decodes and draws does without.

A task is a function of plain data that leaves its result in the store and returns a few numbers. It may be attempted
again, twice at once, or on another machine: the store keeps the first of equal results.
"""

from __future__ import annotations

import importlib.metadata
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import PipelineError
from sak.errors import SakError

__all__ = ["Outcome", "Refused", "Terms", "anywhere", "attempt", "software"]

_PACKAGES = ("sak-distill", "torch", "timm", "numpy", "pillow")


class Terms(NamedTuple):
    """What every task of a run is done under: torch's threads (None: as the worker has it), versions of packages."""

    threads: int | None
    software: Mapping[str, str]


class Refused(NamedTuple):
    """The result of a task that met a user's mistake, which no second attempt would mend."""

    error: PipelineError | SakError


class Outcome(NamedTuple):
    """What a task returned, or ``Refused``; the address of the worker that did it, and the seconds it took."""

    value: object
    worker: str
    seconds: float


def attempt(terms: Terms, call: Callable[..., Any], before: Outcome | None, /, *arguments: object) -> Outcome:
    """Do one task in a worker.

    Args:
        before: Result of the task that this one needs done first.

    Raises:
        StoreError: The store could not be read or written, which another attempt may mend.
    """
    if before is not None and isinstance(before.value, Refused):
        return before
    from distributed import get_worker  # which is here where there is a worker

    start, value = time.monotonic(), None
    try:
        _check_software(terms.software)
        _set_threads(terms.threads)
        value = call(*arguments)
    except (PipelineError, SakError) as error:
        value = Refused(error)
    return Outcome(value, get_worker().address, time.monotonic() - start)


@cache
def software() -> Mapping[str, str]:
    """Versions of what decides the bytes of a shard; builds of one version for other accelerators count as equal."""
    return {name: _version(name) for name in _PACKAGES}


def anywhere(path: str, /) -> str:
    """A path or URL as workers in other folders can open it."""
    return path if "://" in path else os.path.abspath(Path(path).expanduser())


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        return "of no known version"


def _check_software(expected: Mapping[str, str]) -> None:
    found = software()
    other = [f"{name} {found[name]}, not {version}" for name, version in expected.items() if found[name] != version]
    if other:
        where = f"Dask worker on {socket.gethostname()}"
        raise PipelineError(f"{where} has {', '.join(other)}; give workers and this machine equal software")


def _set_threads(threads: int | None) -> None:
    torch = sys.modules.get("torch")  # which is loaded with the function of any task that uses it
    # At every task, because torch holds the number for each thread of a process that calls it.
    if torch is not None and threads is not None and torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
