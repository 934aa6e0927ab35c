from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_samples import view_spec

from store import order as module
from store.errors import FormatError, MissingRowsError
from store.order import epoch_rows, image_permutation, row_samples

SMALL = st.integers(1, 12)


@given(rows=st.integers(0, 200), rows_per_shard=SMALL, seed=st.integers(), epoch=st.integers(0, 99), window=SMALL)
def test_an_epoch_visits_every_row_once(rows: int, rows_per_shard: int, seed: int, epoch: int, window: int):
    order = epoch_rows(rows, rows_per_shard, seed=seed, epoch=epoch, window=window)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(rows))


@given(shards=st.integers(1, 12), rows_per_shard=SMALL, seed=st.integers(), window=SMALL)
def test_an_epoch_reads_one_window_of_shards_at_a_time(shards: int, rows_per_shard: int, seed: int, window: int):
    order = epoch_rows(shards * rows_per_shard, rows_per_shard, seed=seed, epoch=0, window=window)
    step = window * rows_per_shard
    seen = [set((order[first : first + step] // rows_per_shard).tolist()) for first in range(0, len(order), step)]
    assert all(len(window_shards) <= window for window_shards in seen)
    assert sum(map(len, seen)) == shards


def test_epochs_and_seeds_differ_and_repeat():
    def order(seed: int, epoch: int) -> list[int]:
        return epoch_rows(64, 8, seed=seed, epoch=epoch, window=2).tolist()

    assert order(1, 0) == order(1, 0)
    assert len({tuple(order(seed, epoch)) for seed in (1, 2, 12) for epoch in (0, 1, 2)}) == 9


def test_order_is_the_same_on_every_machine():
    assert image_permutation(10, order_seed=7).tolist() == PERMUTATION
    assert epoch_rows(10, 4, seed=3, epoch=1, window=2).tolist() == EPOCH


def test_images_are_sorted_once_for_all_parts(monkeypatch: pytest.MonkeyPatch):
    made: list[int] = []
    real = module._permutation
    monkeypatch.setattr(module, "_permutation", lambda size, *key: made.append(size) or real(size, *key))
    spec = view_spec(order_seed=912)
    for part in range(spec.parts):
        row_samples(spec, rows=spec.part_rows(part))
    assert made == [spec.images]
    with pytest.raises(ValueError, match="read-only"):
        image_permutation(spec.images, order_seed=912)[0] = 1


def test_rows_are_view_major():
    spec = view_spec()
    samples = row_samples(spec, rows=np.arange(spec.rows))
    np.testing.assert_array_equal(samples.view, [0] * 10 + [1] * 10)
    np.testing.assert_array_equal(samples.image[:10], samples.image[10:])
    np.testing.assert_array_equal(np.sort(samples.image[:10]), np.arange(10))


def test_bad_arguments_are_refused():
    with pytest.raises(FormatError, match="window >= 1"):
        epoch_rows(10, 4, seed=0, epoch=0, window=0)
    with pytest.raises(MissingRowsError, match="0 to 19"):
        row_samples(view_spec(), rows=[20])


PERMUTATION = [8, 9, 5, 6, 2, 1, 4, 0, 3, 7]
EPOCH = [1, 6, 3, 5, 4, 2, 7, 0, 9, 8]
