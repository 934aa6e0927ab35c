"""What is timed: anything that yields batches of rows, shuffled or in order, and perhaps single rows.

B is rows in a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from pipeline.errors import PipelineError

__all__ = ["Batch", "BenchError", "Contender", "Facts", "WrongDataError"]


class BenchError(PipelineError):
    """A benchmark that cannot be run as asked."""


class WrongDataError(BenchError):
    """A contender gave other rows or other numbers than it was given; it gets no figures."""


class Batch(NamedTuple):
    """Rows ready for a loss.

    Shapes:
        arrays: field name to ``(B, ...)``, a NumPy array or torch tensor; empty for a limit.
    """

    rows: Sequence[int]
    arrays: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a table says of a contender besides its speed.

    ``kind`` is ``ours``, ``limit`` or ``peer``. ``fidelity`` says which numbers it holds: ``stored`` (the very integers
    of our store), ``fp16``, ``bf16``, or ``none`` where it yields nothing to compare. ``bytes_per_row`` is its size
    on the disk. ``family`` of a peer is ``tar``, ``packed`` (unpacks rows as it reads) or ``plain``.
    """

    name: str
    kind: str
    fidelity: str
    bytes_per_row: float
    family: str = ""
    note: str = ""


class Contender(Protocol):
    """One line of the table."""

    @property
    def facts(self) -> Facts:
        """Name and what it holds."""
        ...

    def shuffled(self, epoch: int, /) -> Iterator[Batch]:
        """Every row once, shuffled as training would; another epoch has another order."""
        ...

    def in_order(self) -> Iterator[Batch]:
        """Every row once, in stored order."""
        ...

    def one(self, row: int, /) -> Batch | None:
        """A single row, or None where the format has no random access."""
        ...

    def drop_cache(self) -> None:
        """Ask the system to forget its files' pages, where it can."""
        ...

    def close(self) -> None:
        """Let go of its files; called once, after the last read."""
        ...
