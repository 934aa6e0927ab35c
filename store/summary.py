"""How far a view set or column is, and what it takes: all of its commit records added up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from store.costs import Spent
from store.ledger import Ledger
from store.record import PartCommit
from store.spec import ViewSetSpec

__all__ = ["Progress", "Summary", "add_up", "progress"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """How far a view set or column is, and what it takes.

    Units:
        ``bytes`` as stored, and ``folder_bytes`` those below each folder of the owner (``level_0``, ``images``);
        ``fp16_bytes`` what the committed rows would take as plain float16, 0 for a view set; ``spent`` as writers
        reported it, ``encode`` over the ``timed_rows`` for which it is known and ``decode`` over those of them of which
        ``decoded_rows`` tells.
    """

    views: int
    committed_views: int
    rows: int
    committed_rows: int
    excluded_rows: int
    parts: int
    committed_parts: int
    bytes: int
    folder_bytes: Mapping[str, int]
    fp16_bytes: int
    spent: Spent
    timed_rows: int
    decoded_rows: int
    stats: Mapping[str, Any]


class Progress(NamedTuple):
    """How far a view set or column is: whole views, parts and rows that are committed, and the bytes they take."""

    views: int
    parts: int
    rows: int
    bytes: int


def progress(ledger: Ledger, /, *, spec: ViewSetSpec) -> Progress:
    """What a ledger tells of that, without another look at the records."""
    parts = ledger.parts.tolist()
    rows = sum(len(spec.part_rows(part)) for part in parts)
    return Progress(spec.whole_views(parts), len(parts), rows, int(ledger.sizes.sum()))


def add_up(noted: Iterable[tuple[PartCommit, Spent]], /, *, spec: ViewSetSpec, fp16_bytes_per_row: int) -> Summary:
    """The sum of records, each with what its writer said that it took; only its numbers are held on to."""
    sizes: Counter[str] = Counter()
    parts, rows, excluded, timed, decoded, size = [], 0, 0, 0, 0, 0
    spent = Spent()
    weighted = []
    for commit, item in noted:
        parts.append(commit.part)
        rows, excluded, size = rows + len(commit.rows), excluded + len(commit.excluded), size + commit.size
        timed += len(commit.rows) if item.encode else 0
        decoded += (item.decoded_rows or len(commit.rows)) if item.encode and item.decode else 0
        spent = spent.plus(item)
        weighted.append((commit.stats, len(commit.rows)))
        for path, digest in commit.objects.items():
            sizes[path.split("/", 1)[0]] += digest.size
    return Summary(
        views=spec.views,
        committed_views=spec.whole_views(parts),
        rows=spec.rows,
        committed_rows=rows,
        excluded_rows=excluded,
        parts=spec.parts,
        committed_parts=len(parts),
        bytes=size,
        folder_bytes=sizes,
        fp16_bytes=rows * fp16_bytes_per_row,
        spent=spent,
        timed_rows=timed,
        decoded_rows=decoded,
        stats=_average(weighted),
    )


def _average(weighted: Sequence[tuple[Mapping[str, Any], int]]) -> dict[str, Any]:
    """Row-weighted mean of every number in nested stats; other values are left out."""
    names = sorted({name for stats, _ in weighted for name in stats})
    result: dict[str, Any] = {}
    for name in names:
        values = [(stats[name], weight) for stats, weight in weighted if name in stats]
        if all(isinstance(value, Mapping) for value, _ in values):
            result[name] = _average(values)
        elif all(isinstance(value, int | float) for value, _ in values):
            result[name] = sum(value * weight for value, weight in values) / sum(weight for _, weight in values)
    return result
