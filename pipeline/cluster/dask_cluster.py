"""The Dask cluster that an extraction runs on, own or existing, and a bounded stream of tasks through it.

No data travels through Dask: what tasks take and return is a few kilobytes, but for the sums of a codec's fit.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import time
import uuid
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from pipeline.cluster.attempt import Refused, Terms, attempt, software
from pipeline.errors import PipelineError
from pipeline.pool import interrupts_held
from pipeline.tracking import CONSOLE

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["DaskCluster", "Done", "Job"]

_CONNECT_SECONDS = 30.0
_PATIENCE_SECONDS = 300.0
_RETRIES = 2  # of tasks that failed with what another attempt may mend; a worker's death counts on its own, in Dask
_WINDOW, _PER_WORKER = 16, 4
_LOSSES = 5
_ASK_SECONDS = 1.0
_DISCONNECTED = (OSError, TimeoutError)  # what Dask's own connections raise


class Job(NamedTuple):
    """One task.

    Attributes:
        label: Names it in messages.
        call: A function that any worker can import.
        arguments: Plain and small.
        teacher: Whether it runs one.
        shared: A larger argument, the last, that many jobs have in common; sent to every worker once.
        home: Worker that had better do it.
    """

    label: str
    call: Callable[..., Any]
    arguments: Sequence[Any]
    teacher: bool
    shared: object = None
    home: str | None = None


class Done(NamedTuple):
    """A job, and what it returned."""

    job: Job
    result: Any


class DaskCluster:
    """A cluster that starts when it is first used; to be used in a ``with`` block.

    Args:
        workers: Processes to start on this machine, where there is no scheduler.
        scheduler: Address or scheduler file of a cluster that exists.
        gpu: Keep teachers to workers with the resource GPU; else only where some worker declares it.
        threads: Torch's in each worker; None shares this machine's out, and leaves another cluster's as they are.
    """

    def __init__(self, workers: int, /, *, scheduler: str | None, gpu: bool, threads: int | None) -> None:
        self._workers, self._scheduler, self._gpu, self._threads = workers, scheduler, gpu, threads
        self._stack = ExitStack()
        self._made: Client | None = None
        self._workers_known: Mapping[str, Mapping[str, Any]] = {}
        self._asked = -_ASK_SECONDS

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._stack.close()

    @property
    def name(self) -> str:
        """What messages call it."""
        return self._scheduler or f"{self._workers} Dask workers on this machine"

    @property
    def client(self) -> Client:
        """The connection, made now if need be.

        Raises:
            PipelineError: Dask is not installed, or no scheduler answers.
        """
        if self._made is None:
            if importlib.util.find_spec("distributed") is None:
                raise PipelineError("extract.engine: dask needs Dask; install it with: pip install 'sak-distill[dask]'")
            _silence()
            self._made = self._local() if self._scheduler is None else self._remote(self._scheduler)
            if _has_dashboard(self._made):
                CONSOLE.print(f"Dask dashboard: {self._made.dashboard_link}")
        return self._made

    def call(self, job: Job, /) -> Any:
        """Do one job; returns its result.

        Raises:
            PipelineError, SakError, StoreError: As ``stream``.
        """
        (done,) = self.stream([[job]])
        return done.result

    def homes(self) -> list[str]:
        """Addresses of the workers that teachers run on, to share lasting work out among."""
        workers = self._known()
        return sorted(name for name, about in workers.items() if not self._gpu or _has_gpu(about))

    def stream(self, chains: Iterable[Sequence[Job]], /) -> Iterator[Done]:
        """Do chains of jobs, each job of a chain after the one before it, and give each job's result as it is done.

        Only a few chains for each worker are in flight, however many there are.

        Raises:
            PipelineError: A job met a user's mistake, workers died of one, or the scheduler went away.
            SakError: As a job.
            StoreError: As a job, three times over.
        """
        from distributed import as_completed

        flight, left = _Flight(self), iter(chains)
        finished = as_completed([], loop=self.client.loop)
        try:
            while True:
                try:
                    while len(flight) < self._window() and (chain := next(left, None)) is not None:
                        finished.update(flight.send(chain))
                    if not len(flight):
                        return
                    done = flight.landed(next(finished))
                except _Lost:
                    finished = as_completed(self._again(flight), loop=self.client.loop)
                else:
                    yield done
        finally:
            flight.cancel()

    def _again(self, flight: _Flight) -> list[Future[Any]]:
        """Submit what is in flight once more, as soon as there is a scheduler with a worker."""
        while True:
            self._await_scheduler()
            with suppress(_Lost):  # and lost again; the flight counts how often
                return flight.again()

    def submit(self, job: Job, /, *arguments: object, key: str) -> Future[Any]:
        """Hand one task to the scheduler: the job's arguments come after these."""
        threads = self._threads
        if threads is None and self._scheduler is None:
            threads = max(1, len(os.sched_getaffinity(0)) // self._workers)
        with _reached():
            return self.client.submit(
                attempt,
                Terms(threads, software()),
                job.call,
                *arguments,
                key=key,
                pure=False,
                retries=_RETRIES,
                resources={"GPU": 1} if job.teacher and self._gpu else None,
                workers=None if job.home is None else [job.home],
                allow_other_workers=job.home is not None,
            )

    def _local(self) -> Client:
        from distributed import Client, LocalCluster

        dashboard = "localhost:8787" if importlib.util.find_spec("bokeh") else None
        # Ctrl-C is for this process to answer; workers inherit that it is held back.
        with warnings.catch_warnings(), interrupts_held():
            warnings.filterwarnings("ignore", message="Port .* is already in use")
            cluster = LocalCluster(
                n_workers=self._workers,
                threads_per_worker=1,
                processes=True,
                memory_limit=0,  # or Dask would pause a worker for ever whose teacher takes most of its share
                dashboard_address=dashboard,
                silence_logs=logging.CRITICAL,
            )
        self._stack.callback(cluster.close)
        return self._stack.enter_context(Client(cluster, set_as_default=False))

    def _remote(self, scheduler: str) -> Client:
        try:
            client = self._connect(scheduler)
        except (*_DISCONNECTED, ValueError) as error:
            raise PipelineError(
                f"extract.scheduler: no Dask scheduler answers at {scheduler} ({error}); start one with dask scheduler,"
                " or leave it out and give --workers"
            ) from error
        if not client.nthreads():
            CONSOLE.print(f"waiting for a worker of {scheduler}")
            client.wait_for_workers(1)
        return client

    def _connect(self, scheduler: str) -> Client:
        from distributed import Client

        where = {"scheduler_file": scheduler} if scheduler.endswith(".json") else {"address": scheduler}
        return self._stack.enter_context(Client(timeout=_CONNECT_SECONDS, set_as_default=False, **where))

    def _window(self) -> int:
        """How many chains may be in flight."""
        threads: int = sum(about["nthreads"] for about in self._known().values())
        return max(_WINDOW, _PER_WORKER * threads)

    def _known(self) -> Mapping[str, Mapping[str, Any]]:
        """The workers there are, by address, as of a moment ago."""
        now = time.monotonic()
        if now >= self._asked + _ASK_SECONDS and self.client.status == "running":
            with _reached():
                self._workers_known = self.client.scheduler_info(n_workers=-1)["workers"]
            self._gpu = self._gpu or any(map(_has_gpu, self._workers_known.values()))
            self._asked = now
        return self._workers_known

    def _await_scheduler(self) -> None:
        """After the connection was lost: wait for a scheduler at the same address, and connect again."""
        scheduler, stop = self._scheduler, time.monotonic() + _PATIENCE_SECONDS
        if self.client.status != "running":
            CONSOLE.print(f"{self.name}: lost the scheduler; waiting up to {_PATIENCE_SECONDS:.0f} s for its return")
        while self.client.status != "running" and time.monotonic() < stop:
            time.sleep(0.1)
            if scheduler is not None and self.client.status == "closed":  # it has given up
                with suppress(*_DISCONNECTED):
                    self._made = self._connect(scheduler)
        if self.client.status != "running":
            raise PipelineError(
                f"the Dask scheduler of {self.name} went away; start it again and run the same command: finished shards"
                " are kept"
            )
        with suppress(*_DISCONNECTED):
            if not self.client.nthreads():
                self.client.wait_for_workers(1, timeout=max(1.0, stop - time.monotonic()))


class _Lost(Exception):
    """Futures, or the connection to the scheduler, are gone."""


@contextmanager
def _reached() -> Iterator[None]:
    """Tell the loss of a connection from all that a task may raise."""
    from distributed.client import ClosedClientError, FutureCancelledError, FuturesCancelledError

    try:
        yield
    except (*_DISCONNECTED, ClosedClientError, FutureCancelledError, FuturesCancelledError) as error:
        raise _Lost from error


class _Flight:
    """Chains whose futures are with the scheduler."""

    def __init__(self, cluster: DaskCluster) -> None:
        self._cluster, self._token = cluster, uuid.uuid4().hex[:8]
        self._chains: list[deque[Job]] = []  # what is not done of each
        self._futures: dict[Future[Any], deque[Job]] = {}
        self._shared: tuple[object, Future[Any] | None] = (None, None)
        self._sent = self._losses = 0

    def __len__(self) -> int:
        return len(self._chains)

    def send(self, chain: Sequence[Job]) -> list[Future[Any]]:
        """Submit a chain."""
        # Listed before anything can go wrong, so that ``again`` submits it.
        self._chains.append(deque(chain))
        return self._submit(self._chains[-1])

    def landed(self, future: Future[Any]) -> Done:
        """The result of a future that is done; those of a chain come in order."""
        from distributed import KilledWorker

        chain = self._futures[future]
        job = chain[0]
        try:
            if future.status == "error":
                raise future.exception()
            with _reached():
                result = future.result()
        except KilledWorker as error:
            raise PipelineError(
                f"{job.label}: {error.allowed_failures + 1} Dask workers died while they made it, most often for want"
                " of memory; lower extract.batch, rows_per_shard or the number of workers of a machine, and rerun:"
                " finished shards are kept"
            ) from error
        except ModuleNotFoundError as error:
            raise PipelineError(
                f"{job.label}: a Dask worker of {self._cluster.name} lacks {error.name}; give workers and this machine"
                " equal software"
            ) from error
        if isinstance(result, Refused):
            raise result.error
        del self._futures[future]
        chain.popleft()
        if not chain:
            self._chains.remove(chain)
        return Done(job, result)

    def again(self) -> list[Future[Any]]:
        """Submit what is not done once more, after its futures were lost.

        Raises:
            PipelineError: That happens all the time.
        """
        self._losses += 1
        if self._losses > _LOSSES:
            raise PipelineError(
                f"{self._cluster.name}: the scheduler lost its tasks {self._losses} times; look at its log and that of"
                " its workers, and rerun: finished shards are kept"
            )
        self._futures, self._shared = {}, (None, None)
        return [future for chain in self._chains for future in self._submit(chain)]

    def cancel(self) -> None:
        """Take back what is not done: of no use where the stream ended early, and nothing where it did not."""
        if self._futures and self._cluster.client.status == "running":
            with suppress(*_DISCONNECTED):
                self._cluster.client.cancel(list(self._futures))

    def _submit(self, chain: deque[Job]) -> list[Future[Any]]:
        before: Future[Any] | None = None
        futures = []
        for job in chain:
            arguments = job.arguments if job.shared is None else (*job.arguments, self._spread(job.shared))
            key = f"{job.label.replace(' ', '-')}-{self._token}-{self._sent}"
            self._sent += 1
            before = self._cluster.submit(job, before, *arguments, key=key)
            self._futures[before] = chain
            futures.append(before)
        return futures

    def _spread(self, value: object) -> Future[Any]:
        held, future = self._shared
        if held is not value or future is None:
            with _reached():
                (future,) = self._cluster.client.scatter([value], broadcast=True, hash=False)
            self._shared = (value, future)
        return future


def _silence() -> None:
    """Keep Dask's own log off this process's output: what matters of it comes as an exception as well."""
    import distributed

    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] == distributed.__name__:
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _has_gpu(worker: Mapping[str, Any]) -> bool:
    return bool(worker["resources"].get("GPU"))


def _has_dashboard(client: Client) -> bool:
    return importlib.util.find_spec("bokeh") is not None and "dashboard" in client.scheduler_info()["services"]
