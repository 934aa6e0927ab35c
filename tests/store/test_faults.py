"""Every disk operation of writing, growing, mending and emptying a store may fail, or be the last of its process."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import fault_sweep
import pytest

NAMES = (*fault_sweep.SCENARIOS, "race")
# No common factor with the few operations that a file takes, so that every kind of them has its turn.
STRIDE = 53


def sweep(folder: Path, *names: str, stride: int) -> str:
    """In a process of its own, which has loaded no torch and started no thread; what it prints."""
    command = [sys.executable, str(fault_sweep.__file__), str(folder), str(stride), *names]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """In memory where there is such a place: thousands of stores are made in it."""
    memory = Path("/dev/shm")
    parent = memory if os.access(memory, os.W_OK) else tmp_path_factory.mktemp("sweep")
    with tempfile.TemporaryDirectory(prefix="sak-sweep-", dir=parent) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def printed(folder: Path) -> str:
    return sweep(folder / "some", *NAMES, stride=STRIDE)


@pytest.mark.parametrize("name", NAMES)
def test_a_fault_at_some_operations_leaves_nothing_wrong(name: str, printed: str):
    assert f"FAILED {name}:" not in printed, printed
    (line,) = [line for line in printed.splitlines() if line.startswith(f"{name}: ")]
    operations, cases, failures = (int(word) for word in line.split() if word.isdigit())
    assert operations > 200
    assert cases >= operations // STRIDE
    assert failures == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_fault_at_any_operation_leaves_nothing_wrong(name: str, folder: Path):
    printed = sweep(folder / "all", name, stride=1)
    print(printed)
    assert printed.splitlines()[-1].endswith(" 0 failures"), printed
