"""One Dask cluster for all tests: its processes take seconds to start."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

distributed = pytest.importorskip("distributed")


@contextmanager
def local_cluster(workers: int, /, *, processes: bool, **options: Any) -> Iterator[Any]:
    """A scheduler in this process with workers of one thread each."""
    with distributed.LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        processes=processes,
        memory_limit=0,
        protocol="tcp",
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        silence_logs=logging.CRITICAL,
        **options,
    ) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """Two worker processes, which nannies start again when they die."""
    with local_cluster(2, processes=True) as made:
        yield made


@pytest.fixture(scope="session")
def address(cluster: Any) -> str:
    """Of its scheduler."""
    return str(cluster.scheduler_address)
