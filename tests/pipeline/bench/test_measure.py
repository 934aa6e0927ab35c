from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from pipeline.bench.contender import Batch, Facts, WrongDataError
from pipeline.bench.measure import Line, measure, time_passes
from tests.pipeline.bench.conftest import tiny_plan


class Fake:
    """Gives rows and no arrays, and keeps a diary."""

    def __init__(self, name: str, diary: list[str], *, kind: str = "peer", fails: int = 99) -> None:
        self.facts = Facts(name=name, kind=kind, fidelity="none", bytes_per_row=1)
        self._diary, self._fails, self._turns = diary, fails, 0

    def shuffled(self, epoch: int, /) -> Iterator[Batch]:
        self._diary.append(f"{self.facts.name} shuffled")
        self._turns += 1
        if self._turns == self._fails:
            raise RuntimeError("its loader\nbroke")
        return iter([Batch(range(4), {})] * 5)

    def in_order(self) -> Iterator[Batch]:
        self._diary.append(f"{self.facts.name} in order")
        return iter([Batch(range(4), {})] * 5)

    def one(self, row: int, /) -> Batch | None:
        return None if self.facts.name == "tar" else Batch([row], {})

    def drop_cache(self) -> None:
        self._diary.append(f"{self.facts.name} drop")

    def close(self) -> None: ...


@pytest.fixture(autouse=True)
def one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.bench.measure._LEAST_SECONDS", 0.0)


def run(*contenders: Fake, cold: bool = False) -> list[Line]:
    return measure(contenders, replace(tiny_plan(), cold=cold), rows=20, done=lambda name: None)


def test_contenders_take_turns() -> None:
    diary: list[str] = []
    lines = run(Fake("tar", diary), Fake("map", diary))
    assert diary == ["tar shuffled", "tar in order", "map shuffled", "map in order"] * 2
    assert [len(line.shuffled) for line in lines] == [2, 2]
    assert [len(line.single) for line in lines] == [0, 16]
    assert all(line.rate and line.rate > 0 for line in lines)


def test_pages_are_dropped_before_every_pass_when_asked() -> None:
    diary: list[str] = []
    run(Fake("map", diary), cold=True)
    assert diary == ["map drop", "map shuffled", "map drop", "map in order", "map drop"] * 2


def test_a_peer_that_breaks_is_left_out_and_the_others_go_on() -> None:
    diary: list[str] = []
    broken, whole = run(Fake("broken", diary, fails=2), Fake("whole", diary))
    assert broken.problem == "failed: RuntimeError: its loader broke"
    assert len(whole.shuffled) == 2
    with pytest.raises(RuntimeError):
        run(Fake("sak", diary, kind="ours", fails=1))


def test_whole_passes_are_timed_until_enough_seconds_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    monkeypatch.setattr("time.process_time", lambda: now[0] / 2)
    epochs: list[int] = []

    def read(epoch: int) -> Iterator[Batch]:
        epochs.append(epoch)
        for seconds in (10.0, 1.0, 1.0):
            now[0] += seconds
            yield Batch(range(8), {})

    assert time_passes(read, rows=24, least=0.0) == (2.0, 0.5, 10.0)
    assert time_passes(read, rows=24, least=13.0) == (2.0, 0.5, 10.0)
    assert epochs == [0, 0, 1]
    with pytest.raises(WrongDataError, match="expected 25 rows, got 24"):
        time_passes(read, rows=25, least=0.0)
