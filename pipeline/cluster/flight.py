"""Chains of tasks that are with a Dask scheduler: attempted again when they fail, and elsewhere when they hang."""

from __future__ import annotations

import queue
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from pipeline.cluster.attempt import Outcome, Refused
from pipeline.errors import PipelineError
from pipeline.extraction_log import ExtractionLog
from sak.errors import SakError

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["DISCONNECTED", "Cluster", "Done", "Flight", "Job", "LostError", "reached"]

DISCONNECTED = (OSError, TimeoutError)
"""What Dask's own connections raise."""

_RETRIES = 2  # of tasks that failed with what another attempt may mend; a worker's death counts on its own, in Dask
_LOSSES = 5
_RESULT_SECONDS = 10.0  # to fetch a result, which is small, from the worker that has it; twice as long every time
# A task that takes so many times the median of its like, and no less than so many seconds, is attempted elsewhere too.
_STRAGGLE, _STRAGGLE_SECONDS = 4.0, 10.0
_LIKE = 256  # so many of late
_ATTEMPTS = 3  # at once
_ASK_SECONDS = 1.0


class Job(NamedTuple):
    """One task.

    Attributes:
        label: Names it in messages.
        call: A function that any worker can import.
        arguments: Plain and small.
        teacher: Whether it runs one.
        shared: A larger argument, the last, that many jobs have in common; sent to every worker once.
        home: Worker that had better do it.
        beside: Whether it lets its worker begin another before it ends.
    """

    label: str
    call: Callable[..., Any]
    arguments: Sequence[Any]
    teacher: bool
    shared: object = None
    home: str | None = None
    beside: bool = False


class Done(NamedTuple):
    """A job, what it returned, and the address of the worker that did it."""

    job: Job
    result: Any
    worker: str


class Cluster(Protocol):
    """Where jobs are done, ``pipeline.cluster.dask_cluster``."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def client(self) -> Client:
        """The connection to its scheduler."""

    def homes(self, *, teacher: bool) -> list[str]:
        """Addresses of the workers that may do a job."""

    def submit(self, job: Job, /, *arguments: object, key: str, workers: Sequence[str]) -> Future[Any]:
        """Hand a job to the scheduler."""


class LostError(Exception):
    """Futures, or the connection to the scheduler, are gone."""


@contextmanager
def reached() -> Iterator[None]:
    """Tell the loss of a connection from all that a task may raise.

    Raises:
        LostError: It was lost.
    """
    from distributed.client import ClosedClientError, FutureCancelledError, FuturesCancelledError

    try:
        yield
    except (*DISCONNECTED, ClosedClientError, FutureCancelledError, FuturesCancelledError) as error:
        raise LostError from error


@dataclass(slots=True, eq=False)
class _Chain:
    jobs: deque[Job]  # what is not done
    attempts: list[_Attempt] = field(default_factory=list)
    failures: int = 0
    unread: int = 0
    barred: set[str] = field(default_factory=set)  # workers that hang over it


@dataclass(slots=True, eq=False)
class _Attempt:
    chain: _Chain
    futures: deque[Future[Any]] = field(default_factory=deque)


class Flight:
    """Chains whose futures are with the scheduler.

    Whatever is attempted twice leaves equal bytes, of which the store keeps the first; so the first result is taken.
    """

    def __init__(self, cluster: Cluster, log: ExtractionLog, /) -> None:
        self._cluster, self._log, self._token = cluster, log, uuid.uuid4().hex[:8]
        self._chains: list[_Chain] = []
        self._futures: dict[Future[Any], tuple[_Attempt, Job]] = {}
        self._ready: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
        self._shared: tuple[object, Future[Any] | None] = (None, None)
        self._sent = self._losses = 0
        self._seconds: dict[Callable[..., Any], deque[float]] = defaultdict(lambda: deque(maxlen=_LIKE))
        self._heard: dict[str, float] = {}
        self._since: dict[tuple[str, str], float] = {}
        self._asked = -_ASK_SECONDS

    def __len__(self) -> int:
        return len(self._chains)

    def send(self, jobs: Sequence[Job], /) -> None:
        """Submit a chain.

        Raises:
            LostError: The scheduler is gone; ``again`` submits it.
        """
        # Listed before anything can go wrong, so that ``again`` submits it.
        self._chains.append(_Chain(deque(jobs)))
        self._submit(self._chains[-1])

    def wait(self, seconds: float, /) -> Done | None:
        """The next result, in the order of each chain; None when none came in this time, or none that counts.

        Raises:
            LostError: The scheduler or its futures are gone.
            PipelineError, SakError, StoreError: As the job.
        """
        try:
            future = self._ready.get(timeout=seconds)
        except queue.Empty:
            return None
        attempt, job = self._futures.pop(future, (None, None))
        if attempt is None or job is None:  # given up
            return None
        attempt.futures.remove(future)
        chain = attempt.chain
        if job is not chain.jobs[0]:  # another attempt was faster
            return None
        try:
            outcome = self._outcome(future, job, seconds=_RESULT_SECONDS * 2**chain.unread)
            if outcome is None:
                self._unread(attempt, future)
                return None
        except (LostError, PipelineError, SakError):
            raise
        except Exception as error:
            self._failed(attempt, job, error)
            return None
        self._heard[outcome.worker] = time.monotonic()
        self._seconds[job.call].append(outcome.seconds)
        chain.jobs.popleft()
        chain.failures = 0
        if not chain.jobs:
            self._chains.remove(chain)
            for other in list(chain.attempts):
                self._drop(other)
        return Done(job, outcome.value, outcome.worker)

    def hurry(self) -> None:
        """Attempt elsewhere too what takes far longer than its like: its worker may hang. For when no chains are left.

        Raises:
            LostError: The scheduler is gone.
        """
        now = time.monotonic()
        if now < self._asked + _ASK_SECONDS or self._cluster.client.status != "running":
            return
        self._asked = now
        with reached():
            processing = self._cluster.client.processing()
        where = {key: worker for worker, keys in processing.items() for key in keys}
        for chain in self._chains:
            waited = [attempt.futures[0].key for attempt in chain.attempts[-1:] if attempt.futures]
            for key in waited:
                if key in where and len(chain.attempts) < _ATTEMPTS:
                    self._double(chain, key, where[key], now=now)

    def again(self) -> None:
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
        self._futures, self._ready, self._shared = {}, queue.SimpleQueue(), (None, None)
        for chain in self._chains:
            chain.attempts.clear()
            self._submit(chain)

    def cancel(self) -> None:
        """Take back what is not done: of no use where the stream ended early, and nothing where it did not."""
        self._cancel(list(self._futures))

    def _double(self, chain: _Chain, key: str, worker: str, *, now: float) -> None:
        job = chain.jobs[0]
        # A worker that has given another result since has had this one waiting.
        since = max(self._since.setdefault((key, worker), now), self._heard.get(worker, 0.0))
        like = self._seconds[job.call]
        if not like or now - since < max(_STRAGGLE_SECONDS, _STRAGGLE * median(like)):
            return
        chain.barred.add(worker)
        others = self._others(chain)
        if not others:  # it may have waited for what another had, and hung in appearance only
            chain.barred = {worker}
            others = self._others(chain)
        if others:
            self._log.write("task_doubled", {"task": job.label, "worker": worker, "seconds": round(now - since, 3)})
            self._submit(chain, workers=others)

    def _outcome(self, future: Future[Any], job: Job, *, seconds: float) -> Outcome | None:
        """The result of a future that is done; None when the worker that has it does not give it."""
        from distributed import KilledWorker

        try:
            if future.status == "error":
                raise future.exception()
            with reached():
                try:
                    outcome: Outcome = future.result(timeout=seconds)
                except TimeoutError:
                    if self._cluster.client.status != "running":
                        raise
                    return None
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
        if isinstance(outcome.value, Refused):
            raise outcome.value.error
        return outcome

    def _unread(self, attempt: _Attempt, future: Future[Any]) -> None:
        """Do a job again, elsewhere, whose result is with a worker that hangs."""
        with reached():
            holders = self._cluster.client.who_has([future])
        chain = attempt.chain
        chain.unread += 1
        chain.barred.update(*holders.values())
        self._drop(attempt)
        if not chain.attempts:
            self._submit(chain, workers=self._others(chain))

    def _others(self, chain: _Chain) -> list[str]:
        """Workers that are not known to hang over a chain."""
        return [name for name in self._cluster.homes(teacher=chain.jobs[0].teacher) if name not in chain.barred]

    def _failed(self, attempt: _Attempt, job: Job, error: Exception) -> None:
        chain = attempt.chain
        self._drop(attempt)
        chain.failures += not chain.attempts  # where another attempt is on its way, that is the one that counts
        retried = chain.failures <= _RETRIES
        self._log.task_failed(job.label, error, retried=retried)
        if not retried:
            raise error
        if not chain.attempts:
            self._submit(chain)

    def _drop(self, attempt: _Attempt) -> None:
        attempt.chain.attempts.remove(attempt)
        for future in attempt.futures:
            self._futures.pop(future, None)
        self._cancel(list(attempt.futures))

    def _cancel(self, futures: Sequence[Future[Any]]) -> None:
        if futures and self._cluster.client.status == "running":
            with suppress(*DISCONNECTED):
                self._cluster.client.cancel(futures)

    def _submit(self, chain: _Chain, *, workers: Sequence[str] = ()) -> None:
        attempt = _Attempt(chain)
        chain.attempts.append(attempt)
        before: Future[Any] | None = None
        for job in chain.jobs:
            arguments = job.arguments if job.shared is None else (*job.arguments, self._spread(job.shared))
            key = f"{job.label.replace(' ', '-')}-{self._token}-{self._sent}"
            self._sent += 1
            before = self._cluster.submit(job, before, *arguments, key=key, workers=workers)
            self._futures[before] = attempt, job
            attempt.futures.append(before)
            before.add_done_callback(self._ready.put)

    def _spread(self, value: object) -> Future[Any]:
        held, future = self._shared
        if held is not value or future is None:
            with reached():
                # To all at once, unless one of them hangs: then to one, from which the others take it.
                everybody = not self._losses
                (future,) = self._cluster.client.scatter([value], broadcast=everybody, hash=False)
            self._shared = (value, future)
        return future
