from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import fault_sweep
import pytest

from store import disk
from store.errors import StoreError
from store.local_root import LocalRoot


def test_a_shared_lock_keeps_out_only_who_wants_it_alone(tmp_path: Path) -> None:
    root, alone = LocalRoot(tmp_path), threading.Event()

    def take() -> None:
        with root.lock("a"):
            alone.set()

    with root.lock("a", shared=True), root.lock("a", shared=True):
        assert root.is_locked("a") is True
        taker = threading.Thread(target=take, daemon=True)
        taker.start()
        while not fault_sweep.is_waiting(os.getpid()):
            assert not alone.is_set()
    assert alone.wait(60)
    taker.join()
    assert root.is_locked("a") is False


def test_one_at_a_time_holds_the_lock_of_a_name_and_nothing_is_left(tmp_path: Path) -> None:
    root = LocalRoot(tmp_path)
    (tmp_path / "locks" / "x").mkdir(parents=True)  # a dead holder's
    inside: list[int] = []
    most: list[int] = []

    def hold(number: int) -> None:
        for _ in range(40):
            with root.lock_name("locks/x"):
                inside.append(number)
                os.sched_yield()
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=hold, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 320
    assert os.listdir(tmp_path / "locks") == []


def test_names_do_not_wait_for_each_other(tmp_path: Path) -> None:
    root = LocalRoot(tmp_path)
    with root.lock_name("locks/x"), root.lock_name("locks/y"):
        assert root.is_locked("locks/x") is root.is_locked("locks/y") is True
    assert root.is_locked("locks/x") is False


def test_where_there_are_no_locks_nobody_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(disk, "flock", refuse)
    root = LocalRoot(tmp_path)
    with root.lock_name("locks/x"), root.lock_name("locks/x"), root.lock("a"), root.lock("a", shared=True):
        assert root.is_locked("a") is None
    assert os.listdir(tmp_path / "locks") == []


@pytest.mark.parametrize("step", ["flock", "fstat"])
def test_a_failing_disk_is_told_and_keeps_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    before = len(os.listdir("/proc/self/fd"))
    root = LocalRoot(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(disk, step, fail)
        with pytest.raises(StoreError, match=r"locks/x: cannot be written \(Input/output error\)"):
            root.lock_name("locks/x").__enter__()
    assert len(os.listdir("/proc/self/fd")) == before
    with root.lock_name("locks/x"):
        pass


def test_a_link_to_nowhere_is_no_name_to_hold(tmp_path: Path) -> None:
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks" / "x").symlink_to(tmp_path / "nothing")
    with pytest.raises(StoreError, match=r"cannot be written \(No such file or directory\)"):
        LocalRoot(tmp_path).lock_name("locks/x").__enter__()
