"""What ranks count merges to what one counts, and no row is scored twice or by nobody."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.boundary.counts import Counted, CountTable, Rules
from pipeline.distributed import ALONE, Ranks
from pipeline.scoring import ScoreSums, all_counted, batches_of
from sak.metrics import TaskMetrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Told(Ranks):
    """Rank 0, which is told what the others have."""

    others: list[bytes] = field(default_factory=list)

    def gathered(self, data: bytes, /) -> list[bytes]:
        return [data, *self.others]


class Telling(Ranks):
    """Another rank, whose bytes are kept."""

    def gathered(self, data: bytes, /) -> list[bytes]:
        KEPT.append(data)
        return []


KEPT: list[bytes] = []


def counted(batches: Sequence[int]) -> ScoreSums:
    """Batches by their seed."""
    sums = ScoreSums(TaskMetrics("nyud", ["semseg", "depth"]))
    for seed in batches:
        generator = torch.Generator().manual_seed(seed)
        logits = {
            name: torch.randn(2, size, 4, 5, generator=generator) for name, size in (("semseg", 40), ("depth", 1))
        }
        labels = {"semseg": torch.randint(0, 40, (2, 1, 4, 5), generator=generator), "depth": torch.rand(2, 1, 4, 5)}
        gates = {"semseg": [torch.rand(2, 3, generator=generator) for _ in range(4)]}
        assert sums.metrics is not None
        sums.metrics.update(logits, labels | {"depth": torch.rand(2, 1, 4, 5, generator=generator)})
        sums.count(2, loss=float(torch.rand(1, generator=generator)), gates=gates)
    return sums


def test_ranks_merge_to_one_to_the_last_bit_even_with_nothing_of_their_own() -> None:
    whole = counted(range(6))
    KEPT.clear()
    for share in ([5, 3], [], [4]):
        counted(share).merged(Telling(rank=1, world=4))
    merged = counted([2, 0, 1])
    merged.merged(Told(world=4, others=list(KEPT)))
    assert merged.metrics is not None
    assert whole.metrics is not None
    assert repr(merged.metrics.compute()) == repr(whole.metrics.compute())
    assert (merged.images, merged.loss()) == (12, whole.loss())
    np.testing.assert_array_equal(merged.gates()["semseg"], whole.gates()["semseg"])
    assert merged.gates()["semseg"].shape == (4, 3)


def test_boundary_counts_of_all_ranks_are_one_table_in_the_order_of_keys() -> None:
    def table(*keys: str) -> CountTable:
        counts = np.ones((99, 4), dtype=np.int64)
        return CountTable(Rules("sak", 0.0075), {key: Counted(key, "a", "b", 4, 5, counts) for key in keys})

    KEPT.clear()
    for part in (table("c", "a"), table()):
        assert all_counted(part, Telling(rank=1, world=3)) is part
    merged = all_counted(table("b"), Told(world=3, others=list(KEPT)))
    assert list(merged.images) == ["a", "b", "c"]
    assert merged.rules == ("sak", 0.0075)
    assert list(all_counted(table("b", "a"), ALONE).images) == ["a", "b"]


@given(st.integers(0, 40), st.integers(1, 9), st.integers(1, 8))
def test_batches_are_those_of_one_rank_shared_out(count: int, batch: int, world: int) -> None:
    rows = list(range(count))
    alone = [list(chunk) for chunk in batches_of(rows, batch=batch, ranks=ALONE)]
    assert [row for chunk in alone for row in chunk] == rows
    assert all(len(chunk) == batch for chunk in alone[:-1])
    shared = [[*batches_of(rows, batch=batch, ranks=Ranks(rank=rank, world=world))] for rank in range(world)]
    assert [list(chunk) for chunks in shared for chunk in chunks] == alone
    assert max(map(len, shared)) - min(map(len, shared)) <= 1
