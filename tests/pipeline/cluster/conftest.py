"""One Dask cluster for all tests, whose processes take seconds to start, and what they compare it with."""

from __future__ import annotations

import dataclasses
import gc
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Study
from pipeline.stages.extract import extract
from tests.tiny_recipe import stored_bytes, tiny_recipe

distributed = pytest.importorskip("distributed")

FITTED = ["extract.codec={name: klt, error: 0.1, rows: 17}", "extract.batch=2"]

SMALL = ["data.distill.rows_per_shard=2", "student.teachers=[first]"]


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Dask leaves sockets to workers that were killed to the garbage collector."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"))


@pytest.fixture(scope="module", autouse=True)
def left_sockets() -> Iterator[None]:
    """None is left for the tests of other modules to trip over."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def study_of(root: Path, overrides: Sequence[str] = ()) -> Study:
    """Stage 1 of the tiny recipe: 22 rows in 3 shards, 2 teachers."""
    study = tiny_recipe(root, overrides, only="sak").runs[0].study
    return dataclasses.replace(study, finetune=None, data=dataclasses.replace(study.data, eval=None))


def over(address: str) -> list[str]:
    return ["extract.engine=dask", f"extract.scheduler={address}"]


def records(root: Path) -> int:
    return len(list((root / "store").glob("*/*/**/commits/*.json")))


@pytest.fixture(scope="session")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The store of one process."""
    root = tmp_path_factory.mktemp("process")
    extract([study_of(root, FITTED)])
    return stored_bytes(root / "store")


@pytest.fixture(scope="session")
def expected_small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The store of one process, in shards of two rows, for one teacher."""
    root = tmp_path_factory.mktemp("process")
    extract([study_of(root, SMALL)])
    return stored_bytes(root / "store")


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


def client_of(address: str) -> Any:
    return distributed.Client(address, set_as_default=False)
