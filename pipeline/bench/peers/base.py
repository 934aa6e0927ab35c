"""What a peer is: another way to keep the same rows, written once and read as its own documentation recommends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.bench.contender import Batch, Contender, Facts
from pipeline.bench.files import drop_pages, folder_bytes
from store.codecs.base import PartSpec

__all__ = ["SHUFFLE_BUFFER", "FolderReader", "Job", "Peer", "Rows", "batches_of", "missing"]

SHUFFLE_BUFFER = 256
"""Rows in a peer's shuffle buffer, if it has one and the benchmark holds twice as many."""


class Rows(Protocol):
    """Rows to be written, and what they look like."""

    @property
    def rows(self) -> int:
        """How many."""
        ...

    def shapes(self, fidelity: str, /) -> Mapping[str, PartSpec]:
        """Array name to shape and type of a row."""
        ...

    def iterate(self, fidelity: str, /) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Every row in order."""
        ...


class Job(NamedTuple):
    """Where a peer writes, what, and the rows of a batch."""

    folder: Path
    held: Rows
    batch: int


class Peer(Protocol):
    """Another format with its own reader.

    Implementations are stateless; their libraries are imported when they are used.
    """

    @property
    def name(self) -> str:
        """Name in the registry and the table."""
        ...

    @property
    def package(self) -> str:
        """Module that must be importable."""
        ...

    @property
    def extra(self) -> str:
        """Extra of this project that installs it."""
        ...

    @property
    def fidelity(self) -> str:
        """``stored``, ``fp16`` or ``bf16``."""
        ...

    @property
    def family(self) -> str:
        """``tar``, ``packed`` or ``plain``."""
        ...

    def write(self, job: Job, /) -> None:
        """Write every row below the job's folder."""
        ...

    def open(self, job: Job, /) -> Contender:
        """Its reader."""
        ...


class FolderReader:
    """What readers of a folder share."""

    def __init__(self, peer: Peer, job: Job, *, note: str = "") -> None:
        self.job = job
        self.facts = Facts(
            name=peer.name,
            kind="peer",
            fidelity=peer.fidelity,
            family=peer.family,
            bytes_per_row=folder_bytes(job.folder) / job.held.rows,
            note=note,
        )

    def one(self, row: int, /) -> Batch | None:
        """No random access, unless a reader has it."""
        return None

    def drop_cache(self) -> None:
        """Forget the folder's pages."""
        drop_pages(self.job.folder)

    def close(self) -> None:
        """Nothing to let go of, unless a reader has something."""


def batches_of(job: Job, *, epoch: int | None) -> Iterator[NDArray[np.int64]]:
    """Rows of each step, for peers with random access and no loader of their own: uniformly shuffled, or in order."""
    order = np.arange(job.held.rows) if epoch is None else np.random.default_rng(epoch).permutation(job.held.rows)
    return (order[first : first + job.batch] for first in range(0, len(order), job.batch))


def missing(peer: Peer, /) -> str:
    """What to install where a peer's library is absent; empty where it is there."""
    return "" if find_spec(peer.package) else f"not installed: pip install 'sak-distill[{peer.extra}]'"
