"""Errors of the stages, and the list of those the command line turns into one line."""

from __future__ import annotations

from sak.errors import SakError
from store.errors import MissingColumnError, MissingRowsError, StoreError, UnreachableError

__all__ = [
    "EXPECTED",
    "UNFINISHED",
    "BadImageError",
    "DataError",
    "Interrupted",
    "NotDoneError",
    "PipelineError",
    "Preempted",
    "RankError",
    "RecipeError",
    "TooManyBadError",
]


class PipelineError(ValueError):
    """Base of every pipeline error that a user can mend; the message says what, where and how."""


class RecipeError(PipelineError):
    """A recipe that cannot be read or does not validate; the message lists every fault with its key path."""


class Interrupted(PipelineError):
    """Training was asked to stop; a checkpoint was written and the same command continues."""


class Preempted(Interrupted):
    """``Interrupted`` by SIGTERM, as a batch system sends it: all is well, and the command ends with exit code 0."""


class RankError(PipelineError):
    """What one of several processes that train together raised.

    Attributes:
        rank: Which one.
        error: What it raised.
        told: Whether this process is to tell of it; the others end without a word.
    """

    def __init__(self, rank: int, error: Exception, *, told: bool) -> None:
        super().__init__(f"rank {rank}: {error}")
        self.rank, self.error, self.told = rank, error, told


class NotDoneError(PipelineError):
    """A stage or view set that is needed is not done, or not complete; the message names it."""


class DataError(PipelineError):
    """A data set, folder or file that is missing or malformed."""


class TooManyBadError(DataError):
    """More images cannot be used than the recipe allows; the message counts them and gives the first reasons."""


class BadImageError(DataError):
    """One image or label file that cannot be decoded; the message names the file."""


EXPECTED: tuple[type[Exception], ...] = (PipelineError, SakError, StoreError, UnreachableError)

# Not wrong, only not made yet: the command line, which knows recipe and overrides, adds the command that makes it.
UNFINISHED: tuple[type[Exception], ...] = (NotDoneError, MissingColumnError, MissingRowsError)
