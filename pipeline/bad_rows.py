"""How many images may be left out of a view set before the data are to be mended instead."""

from __future__ import annotations

from collections import Counter
from time import monotonic

from pipeline.config import DataConfig
from pipeline.errors import TooManyBadError
from store.errors import one_line
from store.viewset import ViewSet

__all__ = ["BadRows"]

_SECONDS, _SHARE = 5.0, 0.02  # looks are so far apart at least, and take so little of the time
_SHOWN = 3


class BadRows:
    """Rows without an image in the committed parts of a view set, against what its data allow.

    Only parts that were not there when it looked before are read.
    """

    def __init__(self, view_set: ViewSet, data: DataConfig, /) -> None:
        self._view_set = view_set
        # Rows that were left out when that was asked for stay so.
        self._most = data.max_bad if data.on_error == "skip" else 1.0
        self._bad: dict[int, int] = {}
        self._next = monotonic() + _SECONDS

    def glance(self) -> None:
        """``check``, unless that was done a moment ago: listing the parts takes requests, more the more there are.

        Raises:
            TooManyBadError: As ``check``.
        """
        if monotonic() > self._next:
            self.check()

    def check(self) -> int:
        """How many there are.

        Raises:
            TooManyBadError: More than are allowed; the message counts them and gives the first reasons.
        """
        start = monotonic()
        commits = self._view_set.commits
        if not self._bad:
            ledger = commits.ledger()
            self._bad = dict.fromkeys(ledger.parts.tolist(), 0) | Counter(ledger.excluded_parts.tolist())
        new = [part for part in self._view_set.committed_parts() if part not in self._bad]
        self._bad |= {commit.part: len(commit.excluded) for commit in commits.require(new)}
        self._next = monotonic() + max(_SECONDS, (monotonic() - start) / _SHARE)
        bad, rows = sum(self._bad.values()), self._view_set.spec.rows
        if bad > self._most * rows:
            reasons = "; ".join(self._reasons())
            raise TooManyBadError(
                one_line(
                    f"views {self._view_set.name}: {bad} of {rows} rows have no image ({bad / rows:.2%}), max_bad is"
                    f" {self._most:.2%}; first: {reasons}; mend the data and discard these shards, or raise max_bad"
                )
            )
        return bad

    def _reasons(self) -> list[str]:
        found: list[str] = []
        for part in sorted(part for part, bad in self._bad.items() if bad):
            found += [str(row.error) for row in self._view_set.index(part) if row.error]
            if len(found) >= _SHOWN:
                break
        return found[:_SHOWN]
