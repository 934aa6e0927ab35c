"""Several writers of one column: parts are written side by side, and of each part one writer is first."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import fault_sweep
import pytest
import tiny_store

from store import gc
from store.column import Column
from store.store import Store
from store.transfer import copy_view_part
from store.uses import make_use, save_use
from store.verify import verify

WRITER = Path(__file__).parent / "part_writer.py"
PATIENCE = 60  # seconds until a wait is taken for one without end

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Both parts of its column are still to be written."""
    store = Store.create(tmp_path / "store", options=tiny_store.OPTIONS)
    tiny_store.write_views(store, tiny_store.view_spec())
    store.create_column(tiny_store.column_spec())
    return store


@pytest.fixture
def column(store: Store) -> Column:
    return store.columns("t")[0]


@pytest.fixture
def start(store: Store) -> Iterator[Start]:
    """Start a writer of a part."""
    with contextlib.ExitStack() as stack:

        def begin(part: int, name: str, *options: str) -> subprocess.Popen[str]:
            command = [sys.executable, str(WRITER), store.root.url, str(part), name, *options]
            writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            stack.enter_context(writer)
            stack.callback(writer.kill)
            if options:
                assert writer.stdout is not None
                assert writer.stdout.readline() == "begun\n"
            return writer

        yield begin


def end(writer: subprocess.Popen[str]) -> list[str]:
    """Let a writer go on to its end; the name in the record that stands, and its digest."""
    out, _ = writer.communicate("go on\n", timeout=PATIENCE)
    assert writer.returncode == 0
    return out.split()


def wait_until(held: Callable[[], bool]) -> None:
    give_up = time.monotonic() + PATIENCE
    while not held():
        assert time.monotonic() < give_up
        time.sleep(0.005)


def test_parts_are_written_side_by_side(store: Store, column: Column, start: Start) -> None:
    slow = start(0, "slow", "--stop")
    quick, digest = end(start(1, "quick"))
    assert (quick, digest) == ("quick", column.commits.load(1).digest())
    assert column.committed_parts() == (1,)
    told = {(found.path, found.severity) for found in verify(store)}
    assert (column.commits.path(0), "info") in told
    assert "error" not in dict(told).values()
    assert end(slow)[0] == "slow"
    assert verify(store) == []
    assert store.root.names(f"{column.folder}/locks") == []


def test_of_one_part_the_first_commit_stands_and_others_return_it(store: Store, column: Column, start: Start) -> None:
    first = start(1, "first", "--stop")
    second = start(1, "second")
    wait_until(lambda: second.poll() is not None or fault_sweep.is_waiting(second.pid))
    assert second.poll() is None
    assert end(first) == end(second) == ["first", column.commits.load(1).digest()]
    assert store.root.names(f"{column.folder}/locks") == []


def test_a_stopped_writer_holds_up_its_part_alone_and_leaves_nothing_that_stops_the_next(
    store: Store, column: Column, start: Start
) -> None:
    stopped = start(0, "stopped", "--stop")
    stopped.send_signal(signal.SIGSTOP)
    next_one = start(0, "next")
    wait_until(lambda: next_one.poll() is not None or fault_sweep.is_waiting(next_one.pid))
    assert end(start(1, "other"))[0] == "other"
    assert next_one.poll() is None
    stopped.kill()
    assert end(next_one)[0] == "next"
    assert verify(store) == []
    assert store.root.names(f"{column.folder}/locks") == []


def test_a_killed_writer_alone_stops_nobody(store: Store, column: Column, start: Start) -> None:
    killed = start(0, "killed", "--stop")
    killed.kill()
    killed.wait()
    assert store.root.names(f"{column.folder}/locks") == ["part-00000"]
    assert store.root.is_locked(f"{column.folder}/commits") is False
    (left,) = [found for found in verify(store) if found.severity == "error"]
    assert (left.path, left.unrecorded) == (column.commits.path(0), True)
    tiny_store.complete(column)
    assert verify(store) == []
    assert store.root.names(f"{column.folder}/locks") == []


@pytest.mark.parametrize("used", [False, True], ids=["column", "part"])
def test_collection_leaves_alone_what_somebody_began_to_write_since_its_plan(
    store: Store, column: Column, start: Start, monkeypatch: pytest.MonkeyPatch, used: bool
) -> None:
    tiny_store.complete(column)
    column.discard(0)
    if used:
        save_use(store, make_use(store, experiment="e", folder="/e", items=[column]))
    planned = gc.plan(store, grace=0)
    assert planned.garbage[0].kind == ("part" if used else "column")
    writer = start(0, "late", "--stop")
    assert gc.plan(store, grace=0).garbage == ()
    monkeypatch.setattr(gc, "plan", lambda *_, **__: planned)
    pool = ThreadPoolExecutor(1)
    collected = pool.submit(gc.collect, store, grace=0).result(PATIENCE)  # it does not wait for the writer
    pool.shutdown()
    assert collected.garbage == ()
    assert (planned.garbage[0].path, "written to just now") in collected.kept
    assert end(writer)[0] == "late"
    assert verify(store) == []


def test_a_copied_part_of_a_view_set_waits_for_its_own_writer_alone(tmp_path: Path, store: Store) -> None:
    views = store.view_set("t")
    target = Store.create(tmp_path / "copy").create_view_set(views.spec)
    with target.commits.writing(0):
        copies = [in_thread(partial(copy_view_part, views, target, part, images=True)) for part in range(2)]
        wait_until(lambda: target.committed_parts() == (1,) and fault_sweep.is_waiting(os.getpid()))
    for copy in copies:
        copy.join(PATIENCE)
    assert target.committed_parts() == (0, 1)


def in_thread(work: Callable[[], object]) -> threading.Thread:
    """Work that would wait for ever where locks are wrong must not keep the tests from ending."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread
