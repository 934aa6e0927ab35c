from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.readahead import Ahead, read_ahead


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("sak-loader")]


@settings(max_examples=40)
@given(
    sizes=st.lists(st.integers(0, 9), max_size=30),
    nbytes=st.integers(0, 40),
    readers=st.integers(1, 4),
    slow=st.sets(st.integers(0, 29)),
)
def test_results_come_in_order_and_waiting_memory_is_bounded(
    sizes: list[int], nbytes: int, readers: int, slow: set[int]
) -> None:
    lock, live, most = threading.Lock(), 0, 0

    def read(job: int) -> bytes:
        nonlocal live, most
        with lock:
            live += 1
            most = max(most, live)
        if job in slow:
            time.sleep(0.0005)
        return bytes(sizes[job])

    found = []
    for item in read_ahead(range(len(sizes)), read, size=len, ahead=Ahead(nbytes, readers)):
        found.append(item)
        with lock:
            live -= 1
    assert found == [bytes(size) for size in sizes]
    assert threads() == []
    # Beside the one that the consumer holds. Sizes are known once read, so the first few may be larger than thought.
    if len(set(sizes)) == 1 and sizes[0]:
        assert most <= max(1, nbytes // sizes[0]) + 1


def test_an_error_comes_in_its_turn_and_ends_the_threads() -> None:
    def read(job: int) -> int:
        if job == 3:
            raise ValueError("job 3")
        return job

    items = read_ahead(range(9), read, size=lambda _: 1, ahead=Ahead(4, 2))
    assert [next(items), next(items), next(items)] == [0, 1, 2]
    with pytest.raises(ValueError, match="job 3"):
        next(items)
    assert threads() == []


def test_a_consumer_that_leaves_ends_the_threads_and_what_waits() -> None:
    done = []

    def read(job: int) -> int:
        done.append(job)
        return job

    items = read_ahead(range(1000), read, size=lambda _: 1, ahead=Ahead(8, 2))
    assert [next(items), next(items)] == [0, 1]
    items.close()
    assert threads() == []
    assert len(done) < 20


def test_jobs_are_taken_in_the_consumers_thread_and_no_earlier_than_needed() -> None:
    taken = []

    def jobs() -> object:
        for job in range(100):
            assert threading.current_thread() is threading.main_thread()
            taken.append(job)
            yield job

    items = read_ahead(jobs(), lambda job: job, size=lambda _: 10, ahead=Ahead(30, 1))  # type: ignore[call-overload]
    next(items)
    assert len(taken) == 4, "one held, three waiting"
    items.close()
