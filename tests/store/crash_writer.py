"""Writes the sample store in a process that may be killed; run by test_crash.py.

``crash_writer.py ROOT`` writes it whole. ``crash_writer.py ROOT --sweep`` kills a forked writer right before and right
after each durable step in turn, lets another finish, and prints each finished store's digest.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

import store_samples  # noqa: E402

STEPS = ("mkdir", "open", "fsync", "replace")


def arm(kill_at: int) -> list[int]:
    """Count the process's durable steps; die at the given one."""
    count = [0]

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **options: Any) -> Any:
            count[0] += 1
            if count[0] == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)

        return step

    # A killed process loses nothing that it wrote, synced or not, so the sweep need not wait for the disk.
    os.fsync = lambda _: None
    for name in STEPS:
        setattr(os, name, wrap(getattr(os, name)))
    return count


def write_and_die(root: Path, kill_at: int) -> bool:
    """Whether the forked writer was killed before it had finished."""
    child = os.fork()
    if child == 0:
        arm(kill_at)
        store_samples.fill(root)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def sweep(root: Path, stride: int) -> None:
    kill_at = 1
    while write_and_die(root, kill_at):
        child = os.fork()
        if child == 0:
            arm(0)
            store_samples.fill(root)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        print(kill_at, sorted(store_samples.tree(root).items()), flush=True)
        shutil.rmtree(root)
        kill_at += stride


if __name__ == "__main__":
    if len(sys.argv) == 4:
        sweep(Path(sys.argv[1]), int(sys.argv[3]))
    else:
        print("ready", flush=True)
        store_samples.fill(Path(sys.argv[1]))
