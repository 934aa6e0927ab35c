"""Fails or kills a small piece of work at each of its disk operations in turn; run by test_faults.py.

``fault_sweep.py ROOT STRIDE SCENARIO...`` counts the operations of each scenario once. Then, for every STRIDE-th, it
fails that operation (EIO, ENOSPC) or kills the process right there, each in a forked process on a fresh
tree. After each: whoever reads, from before the fault or from after it, sees committed rows as they were made or an
error; verification blames nothing but parts that were left without a record; the same work again completes; and the
tree equals that of undisturbed work, byte for byte. It prints what went wrong, and last how many operations and cases
there were. As many processes work as there are processors; ROOT had better be in memory.
"""

from __future__ import annotations

import errno
import gc as gc_of_python
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

import numpy as np  # noqa: E402
import tiny_store  # noqa: E402

from store import disk, gc  # noqa: E402
from store.column import Column  # noqa: E402
from store.errors import CorruptShardError, MissingRowsError, StoreError  # noqa: E402
from store.store import Store  # noqa: E402
from store.uses import make_use, save_use  # noqa: E402
from store.verify import locate_part, verify  # noqa: E402

MODES = ("EIO", "ENOSPC", "kill")
# Reading changes nothing on the disk: to be killed there is to be killed at the next operation that does.
CHANGES = ("mkdir", "open_new", "write", "replace", "unlink", "rmdir", "flock")
# A full disk fails these; the others fail for other reasons.
ALLOCATES = ("mkdir", "open_new", "write", "fsync", "replace", "close")


class Scenario(NamedTuple):
    """Work, and the state that it begins in; both can be done again after being interrupted anywhere.

    ``damaged``: rows may be unreadable before the work is done.
    """

    prepare: Callable[[Path], object]
    work: Callable[[Path], object]
    damaged: bool = False


class Case(NamedTuple):
    """The number of an operation, from 1, and what happens there."""

    at: int
    mode: str


def opened(root: Path) -> Store:
    return Store.open(root, options=tiny_store.OPTIONS)


def append_views(root: Path) -> None:
    store = opened(root)
    tiny_store.write_view_parts(store.extend_view_set("t", views=2))
    tiny_store.write_column(store)


def damage(root: Path, *, backend: str) -> None:
    """A flipped byte in a shard of a column, and in another part's index of images."""
    column = tiny_store.fill(root, backend=backend).columns("t")[0]
    for path in (root / column.folder / column.part_files(0)[0], root / "views/t/index/part-00001.parquet"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


def repair(root: Path) -> None:
    """Discard what ``verify`` blames, then make it again."""
    store = opened(root)
    for found in verify(store):
        part = locate_part(found.path)
        if found.severity == "error" and part is not None:
            owner = store.view_set("t") if part.folder == "views/t" else store.columns("t")[0]
            owner.discard(part.part)
    tiny_store.fill(root, backend=store.columns("t")[0].backend.name)


def two_columns(root: Path) -> None:
    """Column ``a`` in use, ``b`` not, a discarded part of ``c``, and the use of an experiment that is gone."""
    store = tiny_store.fill(root)
    used, unused = store.columns("t")[0], tiny_store.write_column(store, "b")
    for experiment, column in (("kept", used), ("gone", unused)):
        save_use(
            store, make_use(store, experiment=experiment, folder=f"/{experiment}", items=[column.view_set, column])
        )
    # Its other part is in use.
    column = tiny_store.write_column(store, "c")
    column.discard(1)
    save_use(store, make_use(store, experiment="begun", folder="/begun", items=[column]))


def collect(root: Path) -> None:
    store = opened(root)
    gone = [name.removesuffix(".json") for name in store.root.names("uses") if name.startswith("gone")]
    gc.collect(store, grace=0, forget=gone)


SCENARIOS: Mapping[str, Scenario] = {
    "extract": Scenario(lambda root: None, tiny_store.fill),
    "extract-tar": Scenario(lambda root: None, partial(tiny_store.fill, backend="webdataset")),
    # What is appended comes after a short shard.
    "append-views": Scenario(partial(tiny_store.fill, images=3), append_views),
    "add-column": Scenario(tiny_store.fill, lambda root: tiny_store.write_column(opened(root), "b")),
    "repair": Scenario(partial(damage, backend="zarr"), repair, damaged=True),
    "repair-tar": Scenario(partial(damage, backend="webdataset"), repair, damaged=True),
    "gc": Scenario(two_columns, collect),
}


class Faults:
    """Counts every operation of ``store.disk`` and lets one of them go wrong.

    Args:
        at: Number of the operation, from 1; 0 for none.
        mode: One of ``MODES``, or ``stop``, which stops the process as a debugger would.
    """

    def __init__(self, at: int = 0, mode: str = "") -> None:
        self.names: list[str] = []
        self._at, self._mode = at, mode
        for name in disk.__all__:
            setattr(disk, name, self._wrap(name, getattr(disk, name)))

    def _wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*args: Any) -> Any:
            self.names.append(name)
            if len(self.names) == self._at:
                self._strike(name, function, args)
            return function(*args)

        return operation

    def _strike(self, name: str, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        if name == "write" and self._mode != "stop":  # half of it reaches the disk
            os.write(args[0], bytes(args[1])[: len(args[1]) // 2])
        if name == "close":  # the system closes it and still reports the error
            function(*args)
        if self._mode == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self._mode == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        else:
            number = getattr(errno, self._mode)
            raise OSError(number, os.strerror(number))


def fork(work: Callable[[], object]) -> int:
    """Do work in a child that ends with 0, or prints why not and ends with 1."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc(file=sys.stdout)
        finally:
            sys.stdout.flush()
            os._exit(code)
    return child


def wait(child: int) -> int:
    """Exit code, or minus the number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def do(work: Callable[[], object]) -> None:
    assert wait(fork(work)) == 0


def operations(scenario: Scenario, start: Path, root: Path) -> list[str]:
    """Names of a scenario's operations, in order; leaves its result behind, which is sound.

    So is whatever equals it, byte for byte.
    """
    shutil.copytree(start, root)
    reading, writing = os.pipe()

    def count() -> None:
        faults = Faults()
        scenario.work(root)
        with os.fdopen(writing, "w") as file:
            file.write(" ".join(faults.names))

    child = fork(count)
    os.close(writing)
    with os.fdopen(reading) as file:
        names = file.read().split()
    assert wait(child) == 0
    assert not [found for found in verify(opened(root)) if found.severity == "error"]
    return names


def faulty(scenario: Scenario, root: Path, at: int, mode: str) -> None:
    """Work that meets a fault: it either copes or says so in one line."""
    Faults(at, mode)
    said = ""
    try:
        scenario.work(root)
    except StoreError as error:
        said = str(error)
    assert "\n" not in said
    assert not said or str(root) in said, f"does not say where: {said}"


def check_rows(column: Column, *, allowed: tuple[type[Exception], ...]) -> None:
    """Every row is as it was made, or refused; what is committed is never refused."""
    for part in range(column.view_set.spec.parts):
        rows = column.view_set.spec.part_rows(part)
        try:
            levels = column.read(rows)
        except MissingRowsError:
            assert MissingRowsError in allowed or part not in column.committed_parts()
            continue
        except allowed:
            continue
        for level, arrays in enumerate(levels):
            for index, row in enumerate(rows):
                for name, value in tiny_store.expected(column.spec, row, level).items():
                    np.testing.assert_array_equal(arrays[name][index], value)


def check_store(root: Path, *, damaged: bool) -> None:
    if not (root / "store.json").exists():
        return
    store = opened(root)
    allowed: tuple[type[Exception], ...] = (CorruptShardError,) if damaged else ()
    for views in store.view_sets():
        for column in store.columns(views.name):
            check_rows(column, allowed=allowed)
    wrong = [found for found in verify(store) if found.severity == "error" and not found.unrecorded]
    assert damaged or not wrong, wrong


def opened_columns(root: Path, scenario: Scenario) -> list[Column]:
    """Columns that have been read, with all that they remember."""
    columns = list(opened(root).columns("t")) if (root / "store.json").exists() else []
    for column in columns:
        check_rows(column, allowed=(CorruptShardError,) if scenario.damaged else ())
    return columns


def one_case(scenario: Scenario, start: Path, root: Path, case: Case) -> dict[str, str]:
    """One fault and its recovery; the tree in the end."""
    shutil.copytree(start, root)
    columns = opened_columns(root, scenario)
    code = wait(fork(lambda: faulty(scenario, root, case.at, case.mode)))
    assert code == (-signal.SIGKILL if case.mode == "kill" else 0), f"ended with {code}"
    # What a reader from before reads may have been removed or made again under it: then it gets an error, and never
    # other values.
    for column in columns:
        check_rows(column, allowed=(StoreError, MissingRowsError))
    return recovered(scenario, root, damaged=scenario.damaged)


def recovered(scenario: Scenario, root: Path, *, damaged: bool) -> dict[str, str]:
    """The tree after the same work again, by a process that knows nothing of the first."""
    check_store(root, damaged=damaged)
    scenario.work(root)
    return tiny_store.tree(root)


def races(folder: Path, *, stride: int) -> bool:
    """Two writers of one column: one stops at each operation in turn while the other works, then dies or goes on."""
    start, whole = folder / "start", folder / "whole"
    start.mkdir(parents=True)
    tiny_store.expected(tiny_store.column_spec(), 0, 0)
    do(lambda: tiny_store.write_views(Store.create(start, options=tiny_store.OPTIONS), tiny_store.view_spec()))
    work = Scenario(lambda root: None, lambda root: tiny_store.write_column(opened(root)))
    names = operations(work, start, whole)
    wanted = tiny_store.tree(whole)
    places = range(1 + len(names) % stride, len(names) + 1, stride)
    cases = [Case(at, mode) for at in places for mode in ("kill", "go on")]

    def check(case: Case, root: Path) -> str:
        return "" if race(work, start, root, case) == wanted else "another tree in the end"

    return run_all("race", names, cases, check=check, folder=folder)


def race(scenario: Scenario, start: Path, root: Path, case: Case) -> dict[str, str]:
    shutil.copytree(start, root)
    slow = fork(lambda: faulty(scenario, root, case.at, "stop"))
    _, status = os.waitpid(slow, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    fast = fork(lambda: faulty(scenario, root, 0, ""))
    code = done_or_blocked(fast)
    os.kill(slow, signal.SIGKILL if case.mode == "kill" else signal.SIGCONT)
    codes = [wait(fast) if code is None else code, wait(slow)]
    assert codes == [0, -signal.SIGKILL if case.mode == "kill" else 0], f"ended with {codes}"

    return recovered(scenario, root, damaged=False)


def done_or_blocked(child: int) -> int | None:
    """Wait until a child has ended, or waits for the lock that a stopped one holds; its exit code, or None."""
    end = time.monotonic() + 5  # where the system does not tell who waits
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if is_waiting(child):
            return None
        time.sleep(0.001)
    return None


def is_waiting(child: int) -> bool:
    """Whether a process is one of those that ``/proc/locks`` marks as blocked."""
    return any("->" in line and f" {child} " in line for line in Path("/proc/locks").read_text().splitlines())


def sweep(name: str, folder: Path, *, stride: int) -> bool:
    scenario = SCENARIOS[name]
    tiny_store.expected(tiny_store.column_spec(), 0, 0)  # imports what every child would otherwise import anew
    start = folder / "start"
    start.mkdir(parents=True)
    do(lambda: scenario.prepare(start))
    names = operations(scenario, start, folder / "whole")
    whole = tiny_store.tree(folder / "whole")

    def check(case: Case, root: Path) -> str:
        return "" if one_case(scenario, start, root, case) == whole else "another tree in the end"

    return run_all(name, names, list(cases_of(names, stride=stride)), check=check, folder=folder)


def cases_of(names: list[str], *, stride: int) -> Iterator[Case]:
    for at in range(1 + len(names) % stride, len(names) + 1, stride):
        kind = names[at - 1]
        yield Case(at, "EIO")
        if kind in ALLOCATES:
            yield Case(at, "ENOSPC")
        if kind in CHANGES:
            yield Case(at, "kill")


def run_all(
    name: str, names: list[str], cases: list[Case], *, check: Callable[[Case, Path], str], folder: Path
) -> bool:
    """Check all cases in as many processes as there are processors, and print what came of it."""
    reading, writing = os.pipe()

    def some(first: int, step: int) -> None:
        root = folder / f"store-{first}"
        for case in cases[first::step]:
            try:
                problem = check(case, root)
            except Exception as error:
                traceback.print_exc(file=sys.stdout)
                problem = str(error) or "failed"
            if problem:
                os.write(writing, b"x")
                place = f"{case.mode} at operation {case.at} ({names[case.at - 1]})"
                print(f"FAILED {name}: {place}: {problem}", flush=True)
            shutil.rmtree(root, ignore_errors=True)

    gc_of_python.freeze()  # or every child would copy all pages that it counts references in
    processes = len(os.sched_getaffinity(0))
    children = [fork(partial(some, first, processes)) for first in range(processes)]
    ended = [wait(child) for child in children]
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        failures = len(file.read())
    print(f"{name}: {len(names)} operations, {len(cases)} cases, {failures} failures", flush=True)
    return failures == 0 and not any(ended)


if __name__ == "__main__":
    # A killed process loses nothing that it wrote, synced or not, so the sweep need not wait for the disk.
    disk.fsync = lambda _: None
    # One file for each level and part, where others have several, shows as much in fewer operations.
    tiny_store.CODEC = "fp16"
    sound = [
        races(Path(sys.argv[1], name), stride=int(sys.argv[2]))
        if name == "race"
        else sweep(name, Path(sys.argv[1], name), stride=int(sys.argv[2]))
        for name in sys.argv[3:]
    ]
    sys.exit(0 if all(sound) else 1)
