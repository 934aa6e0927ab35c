from __future__ import annotations

from pathlib import Path

import pytest

from store.costs import UNTIMED, Spent, parse_cost, render_cost
from store.crossings import count, counted
from store.document import render_document
from store.local_root import LocalRoot
from store.workers import map_threads


def test_what_a_root_moves_is_counted_and_nothing_outside(tmp_path: Path) -> None:
    root = LocalRoot(tmp_path)
    count(read=5, written=5)
    with counted() as first:
        root.write_atomic("a/one", b"x" * 1000)
    assert (first.written, first.read) == (1000, 1000), "read back once, to check it"
    with counted() as second:
        assert len(root.read_bytes("a/one", max_bytes=9999)) == 1000
        with counted() as inner:
            root.digest("a/one")
    assert (second.written, second.read, inner.read) == (0, 1000, 1000)


@pytest.mark.parametrize("threads", [1, 4])
def test_threads_that_work_for_somebody_count_for_them(threads: int) -> None:
    with counted() as crossed:
        map_threads(lambda size: count(read=size), range(100), threads=threads)
    assert crossed.read == sum(range(100))


def test_a_cost_comes_back_as_it_was() -> None:
    spent = Spent(2.5, 0.25, read=0.125, decoded_rows=32, read_bytes=1 << 40, written_bytes=7)
    assert parse_cost(render_cost(spent), where="here") == spent
    assert parse_cost(render_cost(UNTIMED), where="here") == UNTIMED
    assert type(parse_cost(render_cost(spent), where="here").read_bytes) is int


def test_costs_of_before_are_read() -> None:
    old = render_document("cost", {"seconds": 3.0, "encode_seconds": 0.5, "decode_seconds": 0.25, "host": "h"})
    assert parse_cost(old, where="here") == Spent(3.0, 0.5, 0.25)
