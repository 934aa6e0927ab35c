"""The Dask cluster that an extraction runs on, own or existing, and a bounded stream of tasks through it.

No data travels through Dask: what tasks take and return is a few kilobytes, but for the sums of a codec's fit.
"""

from __future__ import annotations

import importlib.util
import logging
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pipeline.cluster.attempt import Terms, attempt, software
from pipeline.cluster.flight import DISCONNECTED, Done, Flight, Job, LostError, reached
from pipeline.errors import PipelineError
from pipeline.extraction_log import ExtractionLog
from pipeline.pool import interrupts_held
from pipeline.tracking import CONSOLE
from store.workers import processors

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["DaskCluster"]

_CONNECT_SECONDS = 30.0
_PATIENCE_SECONDS = 300.0
_WINDOW, _PER_WORKER = 16, 4
_ASK_SECONDS = 1.0
_SILENT_SECONDS = 30
# What Dask notes down to be debugged by, up to so many of each kind: the last messages of every connection, among them
# each task that was sent, and the calls that workers were seen in, a tree a second. It shows on no page but Profile.
_BRIEF = {
    "distributed.admin.low-level-log-length": 100,
    "distributed.admin.system-monitor.log-length": 600,
    "distributed.worker.profile.enabled": False,
}
# Of a GPU: a task keeps its share to its end, though its worker begins another before: one reads, one has its teachers
# run, two are written. No sum of such shares is rounded.
_BESIDE_SHARE = 0.25


class DaskCluster:
    """A cluster that starts when it is first used; to be used in a ``with`` block.

    Args:
        workers: Processes to start on this machine, where there is no scheduler.
        scheduler: Address or scheduler file of a cluster that exists.
        gpu: Keep teachers to workers with the resource GPU; else only where some worker declares it.
        gpus: Those to deal out to workers of this machine; none for whatever each sees.
        threads: Torch's in each worker; None shares this machine's out, and leaves another cluster's as they are.
        log: Told of workers that come and go, of the scheduler, and of tasks that fail.
    """

    def __init__(
        self,
        workers: int,
        /,
        *,
        scheduler: str | None,
        gpu: bool,
        gpus: Sequence[str] = (),
        threads: int | None,
        log: ExtractionLog,
    ) -> None:
        self._workers, self._scheduler, self._gpu, self._threads = workers, scheduler, gpu, threads
        self._gpus, self._log = tuple(gpus), log
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
            link = self._made.dashboard_link if _has_dashboard(self._made) else ""
            if link:
                CONSOLE.print(f"extract: Dask dashboard: {link}")
            self._log.cluster(self._made.scheduler.address, dashboard=link)
        return self._made

    def call(self, job: Job, /) -> Any:
        """Do one job; returns its result.

        Raises:
            PipelineError, SakError, StoreError: As ``stream``.
        """
        (done,) = self.stream([[job]])
        return done.result

    def homes(self, *, teacher: bool = True) -> list[str]:
        """Addresses of the workers that teachers, or else views, are made on."""
        workers = self._known()
        return sorted(name for name, about in workers.items() if not (teacher and self._gpu) or _has_gpu(about))

    def stream(
        self, chains: Iterable[Sequence[Job]], /, *, idle: Callable[[], object] = lambda: None
    ) -> Iterator[Done]:
        """Do chains of jobs, each job of a chain after the one before it, and give each job's result as it is done.

        Only a few chains for each worker are in flight, however many there are.

        Args:
            idle: Called about every second.

        Raises:
            PipelineError: A job met a user's mistake, workers died of one, or the scheduler went away.
            SakError: As a job.
            StoreError: As a job, three times over.
        """
        flight, left, more = Flight(self, self._log), iter(chains), True
        try:
            while more or len(flight):
                done = None
                try:
                    while more and len(flight) < self._window():
                        chain = next(left, None)
                        if chain is None:
                            more = False
                        else:
                            flight.send(chain)
                    if not more:
                        self._known()
                        flight.hurry()
                    done = flight.wait(_ASK_SECONDS) if len(flight) else None
                except LostError:
                    self._again(flight)
                idle()
                if done is not None:
                    yield done
        finally:
            flight.cancel()

    def _again(self, flight: Flight) -> None:
        """Submit what is in flight once more, as soon as there is a scheduler with a worker."""
        self._log.write("scheduler_lost", {"scheduler": self.name})
        while True:
            self._await_scheduler()
            with suppress(LostError):  # and lost again; the flight counts how often
                flight.again()
                self._log.write("scheduler_returned", {"scheduler": self.name})
                return

    def submit(self, job: Job, /, *arguments: object, key: str, workers: Sequence[str] = ()) -> Future[Any]:
        """Hand one task to the scheduler.

        Args:
            arguments: The result of the job before it, and its own.
            workers: Who had better do it, before the job's home; where they are gone, anybody does.

        Raises:
            LostError: The scheduler is gone.
        """
        threads = self._threads
        if threads is None and self._scheduler is None:
            threads = max(1, processors() // self._workers)
        home = None if job.home is None else [job.home]
        gpu = {"GPU": _BESIDE_SHARE if job.beside else 1}
        with reached():
            return self.client.submit(
                attempt,
                Terms(threads, software()),
                job.call,
                *arguments,
                key=key,
                pure=False,
                resources=gpu if job.teacher and self._gpu else None,
                workers=list(workers) or home,
                allow_other_workers=bool(workers) or home is not None,
            )

    def _local(self) -> Client:
        import dask
        from distributed import Client

        from pipeline.cluster.local_workers import LocalWorkers

        dashboard = "localhost:8787" if importlib.util.find_spec("bokeh") else None
        # Ctrl-C is for this process to answer; workers inherit that it is held back.
        with (
            warnings.catch_warnings(),
            interrupts_held(),
            # A worker of this machine that hangs is killed and started anew; one that computes tells that it lives.
            dask.config.set({**_BRIEF, "distributed.scheduler.worker-ttl": f"{_SILENT_SECONDS} s"}),
        ):
            warnings.filterwarnings("ignore", message="Port .* is already in use")
            cluster = LocalWorkers(self._workers, gpus=self._gpus, dashboard=dashboard)
            self._stack.callback(cluster.close)
            return self._stack.enter_context(Client(cluster, set_as_default=False))

    def _remote(self, scheduler: str) -> Client:
        try:
            client = self._connect(scheduler)
        except (*DISCONNECTED, ValueError) as error:
            raise PipelineError(
                f"extract.scheduler: no Dask scheduler answers at {scheduler} ({error}); start one with dask scheduler,"
                " or leave it out and give --workers"
            ) from error
        if not client.nthreads():
            CONSOLE.print(f"waiting for a worker of {scheduler}")
            client.wait_for_workers(1)
        return client

    def _connect(self, scheduler: str) -> Client:
        import dask
        from distributed import Client

        where = {"scheduler_file": scheduler} if scheduler.endswith(".json") else {"address": scheduler}
        with dask.config.set(_BRIEF):
            return self._stack.enter_context(Client(timeout=_CONNECT_SECONDS, set_as_default=False, **where))

    def _window(self) -> int:
        """How many chains may be in flight."""
        threads: int = sum(about["nthreads"] for about in self._known().values())
        return max(_WINDOW, _PER_WORKER * threads)

    def _known(self) -> Mapping[str, Mapping[str, Any]]:
        """The workers there are, by address, as of a moment ago."""
        now = time.monotonic()
        if now >= self._asked + _ASK_SECONDS and self.client.status == "running":
            with reached():
                self._workers_known = self.client.scheduler_info(n_workers=-1)["workers"]
            self._log.seen(self._workers_known)
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
                with suppress(*DISCONNECTED):
                    self._made = self._connect(scheduler)
        if self.client.status != "running":
            raise PipelineError(
                f"the Dask scheduler of {self.name} went away; start it again and run the same command: finished shards"
                " are kept"
            )
        with suppress(*DISCONNECTED):
            if not self.client.nthreads():
                self.client.wait_for_workers(1, timeout=max(1.0, stop - time.monotonic()))


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
