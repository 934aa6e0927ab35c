from __future__ import annotations

import gc
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.buffers import Buffers

SIZE = 1 << 20


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def test_memory_comes_back_once_nobody_holds_it():
    buffers = Buffers()
    first = buffers.take(SIZE)
    where = address(first)
    assert buffers.idle_bytes == 0
    del first
    assert buffers.idle_bytes == SIZE
    assert address(buffers.take(SIZE)) == where


@pytest.mark.parametrize(
    "hold",
    [
        lambda lent: lent.view("<i2").reshape(4, -1),
        lambda lent: lent.reshape(4, -1)[1:3].T.view(),
        lambda lent: memoryview(lent)[5:9],
        lambda lent: np.asarray(lent.reshape(2, -1)[1][7:]),
    ],
)
def test_no_memory_is_lent_twice_while_a_view_of_it_is_left(hold):
    buffers = Buffers()
    lent = buffers.take(SIZE)
    kept, where = hold(lent), address(lent)
    del lent
    gc.collect()
    assert buffers.idle_bytes == 0
    assert address(buffers.take(SIZE)) != where
    del kept
    gc.collect()
    assert buffers.idle_bytes == 2 * SIZE


def test_a_tensor_holds_it_too():
    torch = pytest.importorskip("torch")
    buffers = Buffers()
    tensor = torch.from_numpy(buffers.take(SIZE).reshape(4, -1))[1]
    gc.collect()
    assert buffers.idle_bytes == 0
    del tensor
    gc.collect()
    assert buffers.idle_bytes == SIZE


@given(sizes=st.lists(st.sampled_from([100, 1 << 16, 1 << 17, 3 << 16]), max_size=30), limit=st.integers(0, 1 << 18))
def test_what_lies_idle_is_bounded(sizes: list[int], limit: int):
    buffers = Buffers(idle_bytes=limit)
    lent = [buffers.take(size) for size in sizes]
    assert [array.nbytes for array in lent] == sizes
    assert len({address(array) for array in lent}) == len(sizes)
    lent.clear()
    assert buffers.idle_bytes <= limit


def test_many_threads_never_share_memory():
    buffers, wrong = Buffers(), []

    def work(number: int) -> None:
        for _ in range(200):
            lent = buffers.take(1 << 16)
            lent[:] = number
            if not (lent == number).all():
                wrong.append(number)
            del lent

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert buffers.idle_bytes <= 6 << 16
