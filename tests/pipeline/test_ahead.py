from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from pipeline.ahead import Behind, Room, ahead


class _Fault(Exception):
    pass


def counting(stop: int, made: list[int], *, fail: bool = False) -> Iterator[int]:
    for number in range(stop):
        made.append(number)
        yield number
    if fail:
        raise _Fault


@pytest.mark.parametrize("count", [1, 3, 50])
def test_items_come_in_order_and_no_more_are_made_than_may_be(count: int) -> None:
    made: list[int] = []
    got = []
    for item in ahead(counting(20, made), count=count):
        got.append(item)
        # Those that wait, one in the thread's hand, and what was taken.
        assert len(made) <= len(got) + count + 1
    assert got == list(range(20))


def test_an_error_comes_after_the_items_before_it() -> None:
    got: list[int] = []
    with pytest.raises(_Fault):
        got.extend(ahead(counting(5, [], fail=True), count=2))
    assert got == list(range(5))


def test_closing_ends_the_thread() -> None:
    stream = ahead(counting(1000, []), count=2)
    assert next(stream) == 0
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "sak-ahead"]


def failed() -> int:
    raise _Fault


@pytest.mark.parametrize("count", [0, 1, 3])
def test_results_are_told_in_order_in_the_calling_thread(count: int) -> None:
    told: list[tuple[int, bool]] = []
    caller = threading.get_ident()
    with Behind(count, most_bytes=100) as behind:
        for number in range(7):
            size = 1000 if number == 3 else 40
            behind.hand(
                lambda number=number: number,  # type: ignore[misc]
                size=size,
                then=lambda value: told.append((value, threading.get_ident() == caller)),
            )
            if number == 3:
                assert len(told) == 4, "one that keeps more than may be kept is waited for"
    assert told == [(number, True) for number in range(7)]


def test_no_more_is_kept_than_may_be() -> None:
    gate = threading.Event()
    held: list[int] = []

    def wait() -> None:
        gate.wait(10)

    with Behind(4, most_bytes=100) as behind:
        for _ in range(2):
            behind.hand(wait, size=50, then=lambda _: held.append(1))
        assert not held
        threading.Timer(0.05, gate.set).start()
        behind.hand(wait, size=50, then=lambda _: held.append(1))
        assert held, "the third waited for the first"


@pytest.mark.parametrize(("times", "size"), [(1, 1), (2, 60)])
def test_those_that_share_room_wait_for_each_other(times: int, size: int) -> None:
    """For want of a place, and for want of memory where there are places enough."""
    gate, order = threading.Event(), []
    room = Room(times=times)

    def other() -> None:
        with Behind(1, most_bytes=100, room=room) as behind:
            behind.hand(lambda: order.append("second"), size=size, then=lambda _: None)

    def first() -> None:
        gate.wait(10)
        order.append("first")

    with Behind(1, most_bytes=100, room=room) as behind:
        behind.hand(first, size=size, then=lambda _: None)
        beside = threading.Thread(target=other)
        beside.start()
        beside.join(0.05)
        gate.set()
    beside.join()
    assert order == ["first", "second"]


def test_what_failed_leaves_its_room() -> None:
    room = Room()
    for _ in range(3):
        with pytest.raises(_Fault), Behind(1, most_bytes=100, room=room) as behind:
            behind.hand(failed, size=60, then=lambda _: None)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_first_error_is_told(count: int) -> None:
    told: list[int] = []

    def work() -> None:
        with Behind(count, most_bytes=100) as behind:
            behind.hand(lambda: 1, size=1, then=told.append)
            behind.hand(failed, size=1, then=told.append)
            raise ValueError("later")

    with pytest.raises(_Fault):
        work()
    assert told == [1]


def test_an_interrupt_is_told_whatever_else_failed() -> None:
    def work() -> None:
        with Behind(1, most_bytes=100) as behind:
            behind.hand(failed, size=1, then=lambda _: None)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
