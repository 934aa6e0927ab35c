from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.distributed import Ranks
from pipeline.errors import PipelineError
from pipeline.split import Split


@given(world=st.integers(1, 8), accumulate=st.integers(1, 5), micro=st.integers(1, 7))
def test_the_shares_of_all_ranks_are_the_batch_in_order(world: int, accumulate: int, micro: int) -> None:
    batch = world * accumulate * micro
    splits = [Split(batch=batch, ranks=Ranks(rank=rank, world=world), accumulate=accumulate) for rank in range(world)]
    rows = [
        row for split in splits for share in split.shares() for row in range(share.start, share.start + split.micro)
    ]
    assert rows == list(range(batch))
    assert {split.micro for split in splits} == {micro}
    assert {share.total for split in splits for share in split.shares()} == {batch}


@given(world=st.integers(1, 8), accumulate=st.integers(1, 5), batch=st.integers(1, 60))
def test_a_batch_that_does_not_divide_is_refused(world: int, accumulate: int, batch: int) -> None:
    def make() -> Split:
        return Split(batch=batch, ranks=Ranks(world=world), accumulate=accumulate, key="distill")

    if batch % (world * accumulate) == 0:
        assert make().whole == (world * accumulate == 1)
    else:
        with pytest.raises(PipelineError, match=f"distill.batch: expected rows .* got {batch}; take ") as caught:
            make()
        offered = str(caught.value).split("take ")[1].split(",")[0].split(" or ")
        assert all(int(rows) % (world * accumulate) == 0 and int(rows) > 0 for rows in offered)


def test_it_reads_as_arithmetic() -> None:
    assert str(Split(batch=4)) == "4"
    split = Split(batch=128, ranks=Ranks(world=8), accumulate=2)
    assert str(split) == "128 (8 ranks x 8 images x 2 micro-batches)"
    assert str(Split(batch=4, accumulate=2)) == "4 (2 images x 2 micro-batches)"
    assert str(Split(batch=4, ranks=Ranks(world=4))) == "4 (4 ranks x 1 images)"
