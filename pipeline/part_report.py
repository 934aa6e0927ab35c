"""What the making of a part is reported by, from whatever process made it. Loads no torch."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from store.column import Column
from store.commits import PartCommit
from store.costs import Spent
from store.rows import ViewRow

__all__ = ["OF_VIEWS", "BadImage", "PartReport", "PartReports", "bad_images", "report_of"]

OF_VIEWS = ""
"""In place of a teacher's name: the views themselves. No teacher is called so."""


class BadImage(NamedTuple):
    """A row that was left out, its image's key, and why."""

    row: int
    key: str
    reason: str


class PartReport(NamedTuple):
    """A part that stands in the store.

    Attributes:
        teacher: Whose column it is a part of; ``OF_VIEWS`` for a part of a view set.
        bytes: As stored.
        spent: What its maker wrote beside it.
        host, pid: The process that reports.
        bad: Rows without an image, in a report on views alone: each is told of once and not with every teacher.
    """

    teacher: str
    part: int
    rows: int
    bytes: int
    spent: Spent
    host: str
    pid: int
    bad: tuple[BadImage, ...] = ()


class PartReports:
    """What a task returns to the process that shows and records it, kept while ``fill_columns`` tells of its work.

    Args:
        columns: By their teachers' names.
    """

    def __init__(self, columns: Mapping[str, Column], /) -> None:
        self.made: list[PartReport] = []
        self._columns = columns

    def advance(self, teacher: str, rows: int, /) -> None:
        """Nothing is sent before the part is done."""

    def finished(self, teacher: str, part: int, commit: PartCommit, /) -> None:
        """A part of a teacher's column is committed."""
        spent = self._columns[teacher].commits.spent(part)
        self.made.append(report_of(teacher, part, commit, spent=spent))


def report_of(
    teacher: str, part: int, commit: PartCommit, /, *, spent: Spent, bad: Sequence[BadImage] = ()
) -> PartReport:
    """The report on a committed part, in the name of this process."""
    rows, host = len(commit.rows), socket.gethostname()
    return PartReport(teacher, part, rows, commit.size, spent, host, os.getpid(), tuple(bad))


def bad_images(rows: Sequence[ViewRow], /) -> list[BadImage]:
    """The rows that have no image."""
    return [BadImage(row.row, row.key, row.error) for row in rows if row.error]
