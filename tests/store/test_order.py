from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_samples import view_spec

from store import order as module
from store.errors import FormatError, MissingRowsError
from store.order import EpochOrder, epoch_rows, image_permutation, row_samples
from store.spec import ViewSetSpec

SMALL = st.integers(1, 12)
SPECS = st.builds(view_spec, images=st.integers(1, 40), views=st.integers(1, 5), rows_per_shard=SMALL)


@given(spec=SPECS, seed=st.integers(), epoch=st.integers(0, 99), window=SMALL)
def test_an_epoch_visits_every_row_of_its_view_once(spec: ViewSetSpec, seed: int, epoch: int, window: int):
    order = epoch_rows(spec, seed=seed, epoch=epoch, window=window)
    assert order.dtype == np.int64
    first = epoch % spec.views * spec.images
    assert sorted(order.tolist()) == list(range(first, first + spec.images))


@given(spec=SPECS, views=st.integers(1, 5), seed=st.integers(), epoch=st.integers(0, 99), window=SMALL)
def test_the_order_of_images_does_not_depend_on_how_many_views_there_are(
    spec: ViewSetSpec, views: int, seed: int, epoch: int, window: int
):
    one = epoch_rows(spec, seed=seed, epoch=epoch, window=window)
    other = epoch_rows(spec.with_views(views), seed=seed, epoch=epoch, window=window)
    np.testing.assert_array_equal(one % spec.images, other % spec.images)


@given(spec=SPECS, seed=st.integers(), window=SMALL)
def test_an_epoch_reads_one_window_of_shards_at_a_time(spec: ViewSetSpec, seed: int, window: int):
    order = epoch_rows(spec, seed=seed, epoch=0, window=window)
    parts_N = spec.parts_of(order)
    last = {part: step for step, part in enumerate(parts_N.tolist())}
    open_now: set[int] = set()
    for step, part in enumerate(parts_N.tolist()):
        open_now.add(part)
        assert len(open_now) <= window
        # Windows follow each other: none begins before the one before it has been read to its end.
        open_now = {other for other in open_now if last[other] > step or len(open_now) < window}


def test_epochs_and_seeds_differ_and_repeat():
    def order(seed: int, epoch: int) -> list[int]:
        return epoch_rows(view_spec(images=64, views=1), seed=seed, epoch=epoch, window=2).tolist()

    assert order(1, 0) == order(1, 0)
    assert len({tuple(order(seed, epoch)) for seed in (1, 2, 12) for epoch in (0, 1, 2)}) == 9


def test_order_is_the_same_on_every_machine():
    assert image_permutation(10, order_seed=7).tolist() == PERMUTATION
    spec = view_spec(images=10, views=1, rows_per_shard=4)
    assert epoch_rows(spec, seed=3, epoch=1, window=2).tolist() == EPOCH


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
    spec = view_spec(images=10, views=2)
    samples = row_samples(spec, rows=np.arange(spec.rows))
    np.testing.assert_array_equal(samples.view, [0] * 10 + [1] * 10)
    np.testing.assert_array_equal(samples.image[:10], samples.image[10:])
    np.testing.assert_array_equal(np.sort(samples.image[:10]), np.arange(10))


def test_bad_arguments_are_refused():
    with pytest.raises(FormatError, match="window >= 1"):
        epoch_rows(view_spec(), seed=0, epoch=0, window=0)
    with pytest.raises(MissingRowsError, match="0 to 19"):
        row_samples(view_spec(), rows=[20])


PERMUTATION = [8, 9, 5, 6, 2, 1, 4, 0, 3, 7]
EPOCH = [1, 6, 3, 5, 4, 2, 7, 0, 9, 8]


@given(
    st.integers(1, 40),
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 4),
    st.integers(0, 3),
    st.data(),
)
def test_any_stretch_of_an_order_is_that_of_the_whole(
    images: int, views: int, per_shard: int, window: int, epoch: int, data: st.DataObject
) -> None:
    spec = view_spec(images=images, views=views, rows_per_shard=per_shard)
    bad = np.array(sorted(data.draw(st.sets(st.integers(0, spec.rows - 1)))), np.int64)
    whole = epoch_rows(spec, seed=3, epoch=epoch, window=window)
    usable = whole[~np.isin(whole, bad)]
    order = EpochOrder(spec, seed=3, epoch=epoch, window=window, leave_out=bad)
    assert len(order) == len(usable)
    for _ in range(3):
        start, stop = data.draw(st.integers(0, spec.rows)), data.draw(st.integers(0, spec.rows + 5))
        np.testing.assert_array_equal(order.rows(start, stop), usable[start:stop])


def test_an_order_holds_few_windows() -> None:
    spec = view_spec(images=64, views=1, rows_per_shard=2)
    order = EpochOrder(spec, seed=0, epoch=0, window=2)
    visited = [row for start in range(0, 64, 4) for row in order.rows(start, start + 4).tolist()]
    assert sorted(visited) == list(range(64))
    assert len(order._made) <= 4
