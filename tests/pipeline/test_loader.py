from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.config import LoaderConfig
from pipeline.errors import DataError
from pipeline.images.sample import ImageSample
from pipeline.loader import Loader, _Job, load_samples
from pipeline.pixels import encode_sample
from store.errors import CorruptShardError
from store.rows import ViewRow
from store.spec import ViewSetSpec
from store.store import Store
from store.viewset import ViewSet

ONE_READER = LoaderConfig(ahead_bytes=10**6, readers=1)


def make_views(root: Path, *, images: int, bad: frozenset[int] = frozenset(), rows_per_shard: int = 4) -> ViewSet:
    """A view set whose row r is filled with the value r, without the rows in ``bad``."""
    spec = ViewSetSpec(
        name="views",
        source={"name": "made"},
        view={"kind": "full", "size": [8, 8]},
        images=images,
        views=1,
        rows_per_shard=rows_per_shard,
        order_seed=0,
        seed=0,
        dataset="scenes",
        tasks=("sal",),
    )
    view_set = Store.create(root).create_view_set(spec)
    for part in range(spec.parts):
        view_set.write_part(part, [_row(row, bad=row in bad) for row in spec.part_rows(part)])
    return view_set


def _row(row: int, *, bad: bool) -> ViewRow:
    if bad:
        return ViewRow(row=row, key=f"k{row:04d}", view=0, files={}, error="cannot be decoded")
    image = np.full((8, 8, 3), row, np.uint8)
    files = encode_sample(ImageSample(key="k", image=image, labels={"sal": np.full((8, 8), row % 2, np.uint8)}))
    return ViewRow(row=row, key=f"k{row:04d}", view=0, files=files)


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("sak-loader")]


class _Stub:
    """As much of a view set as the order of rows depends on."""

    def __init__(self, rows: int, per_shard: int, usable: NDArray[np.int64], *, views: int = 1) -> None:
        self.name = "stub"
        self.spec = ViewSetSpec(
            name="stub", source={}, view={"size": [8, 8]}, images=rows, views=views, rows_per_shard=per_shard,
            order_seed=0, seed=0, dataset="", tasks=(),
        )  # fmt: skip
        self._usable = usable

    def usable_rows(self) -> NDArray[np.int64]:
        return self._usable

    def unusable_rows(self) -> NDArray[np.int64]:
        return np.setdiff1d(np.arange(self.spec.rows), self._usable)


@st.composite
def stubs(draw: st.DrawFn) -> tuple[Any, int]:
    rows = draw(st.integers(1, 120))
    bad = draw(st.sets(st.integers(0, rows - 1), max_size=rows - 1))
    usable = np.array(sorted(set(range(rows)) - bad), dtype=np.int64)
    return _Stub(rows, draw(st.integers(1, 17)), usable), draw(st.integers(1, len(usable)))


@settings(deadline=None)
@given(stubs(), st.integers(0, 2**31), st.integers(0, 3))
def test_a_cycle_visits_each_usable_row_at_most_once(stub: tuple[Any, int], seed: int, cycle: int) -> None:
    view_set, batch = stub
    loader = Loader(view_set, batch=batch, seed=seed)
    first = cycle * loader.steps_per_cycle
    rows = [loader.rows(step) for step in range(first, first + loader.steps_per_cycle)]
    assert all(len(step) == batch for step in rows)
    visited = np.concatenate(rows)
    assert len(set(visited.tolist())) == len(visited)
    assert set(visited.tolist()) <= set(view_set.usable_rows().tolist())
    # Only the last, incomplete batch of a cycle is left out.
    assert len(view_set.usable_rows()) - len(visited) < batch


@settings(deadline=None)
@given(stubs(), st.integers(0, 2**31), st.lists(st.integers(0, 60), min_size=1, max_size=8))
def test_rows_are_a_function_of_seed_and_step(stub: tuple[Any, int], seed: int, asked: list[int]) -> None:
    view_set, batch = stub
    one = Loader(view_set, batch=batch, seed=seed)
    for step in asked:  # in any order, in any process
        assert np.array_equal(one.rows(step), Loader(view_set, batch=batch, seed=seed).rows(step))


def test_a_cycle_is_one_view_and_all_are_as_long_as_the_one_with_fewest_rows() -> None:
    usable = np.setdiff1d(np.arange(30), [10, 11, 12, 25])  # 10, 7 and 9 rows of three views
    loader = Loader(_Stub(10, 4, usable, views=3), batch=2, seed=0)  # type: ignore[arg-type]
    assert loader.steps_per_cycle == 3
    for step in range(24):
        rows = loader.rows(step)
        assert len(rows) == 2
        assert {*(rows // 10).tolist()} == {step // 3 % 3}
        assert {*rows.tolist()} <= {*usable.tolist()}


def test_cycles_and_seeds_differ() -> None:
    view_set: Any = _Stub(64, 8, np.arange(64))
    loader, other = Loader(view_set, batch=64, seed=0), Loader(view_set, batch=64, seed=1)
    assert not np.array_equal(loader.rows(0), loader.rows(1))
    assert not np.array_equal(loader.rows(0), other.rows(0))


def test_fewer_rows_than_a_batch_is_said(tmp_path: Path) -> None:
    view_set = make_views(tmp_path / "store", images=5, bad=frozenset({1, 2}))
    with pytest.raises(DataError, match="3 usable rows of a view are fewer than one batch of 4"):
        Loader(view_set, batch=4, seed=0)


@pytest.mark.parametrize("ahead", [0, 1, 3000])
def test_batches_hold_their_rows_and_skip_the_bad(tmp_path: Path, ahead: int) -> None:
    bad = frozenset({0, 3, 7, 8})
    view_set = make_views(tmp_path / "store", images=11, bad=bad)
    loader = Loader(view_set, batch=3, seed=5, tasks=("sal",))
    seen: set[int] = set()
    for number, batch in enumerate(loader.batches(0, 10, loading=LoaderConfig(ahead_bytes=ahead, readers=2))):
        assert batch.step == number
        assert np.array_equal(batch.rows, loader.rows(number))
        assert batch.pixels[:, 0, 0, 0].tolist() == batch.rows.tolist()
        assert batch.labels["sal"][:, 0, 0, 0].tolist() == (batch.rows % 2).tolist()
        assert batch.encoded == {}
        seen |= set(batch.rows.tolist())
    assert number == 9
    assert seen == set(range(11)) - bad
    assert loader_threads() == []


def test_starting_later_gives_the_same_batches(tmp_path: Path) -> None:
    view_set = make_views(tmp_path / "store", images=10)
    whole = [batch.rows.tolist() for batch in Loader(view_set, batch=3, seed=1).batches(0, 9)]
    late = [batch.rows.tolist() for batch in Loader(view_set, batch=3, seed=1).batches(4, 9)]
    assert late == whole[4:]


def test_no_steps_left_is_no_batch(tmp_path: Path) -> None:
    loader = Loader(make_views(tmp_path / "store", images=4), batch=2, seed=0)
    assert list(loader.batches(5, 5)) == []
    assert loader_threads() == []


def test_errors_of_the_thread_are_raised_in_the_consumer(tmp_path: Path) -> None:
    view_set = make_views(tmp_path / "store", images=16)
    tar = view_set.tar_path(1)
    data = bytearray(tar.read_bytes())
    data[600] ^= 1
    tar.write_bytes(bytes(data))
    with pytest.raises(CorruptShardError, match=r"part-00001\.tar"):
        list(Loader(view_set, batch=2, seed=0).batches(0, 50, loading=ONE_READER))
    assert loader_threads() == []


def test_a_consumer_that_stops_ends_the_thread(tmp_path: Path) -> None:
    batches = Loader(make_views(tmp_path / "store", images=8), batch=2, seed=0).batches(0, 10_000, loading=ONE_READER)
    next(batches)
    assert len(loader_threads()) == 1
    batches.close()
    assert loader_threads() == []


def test_targets_are_read_for_the_rows_of_the_batch(tmp_path: Path) -> None:
    class Targets:
        widths: dict[str, tuple[int, ...]]

        def __init__(self) -> None:
            self.asked: list[list[int]] = []
            self.announced: list[dict[int, list[int]]] = []
            self.threads: set[str] = set()

        def read(self, rows: NDArray[np.int64], /, *, step: int | None = None) -> dict[str, list[dict[str, Any]]]:
            self.threads.add(threading.current_thread().name)
            self.asked.append(rows.tolist())
            return {"teacher": [{"values": torch.from_numpy(rows.copy())}]}

        def prefetch(self, parts: dict[int, list[int]], /) -> None:
            self.announced.append(parts)

    targets: Any = Targets()
    loader = Loader(make_views(tmp_path / "store", images=8), batch=2, seed=0, targets=targets)
    for batch in loader.batches(0, 6, loading=ONE_READER):
        assert np.array_equal(batch.encoded["teacher"][0]["values"].numpy(), batch.rows)
    assert targets.asked == [loader.rows(step).tolist() for step in range(6)]
    assert {name.rpartition("_")[0] for name in targets.threads} == {"sak-loader"}
    # The shards of this cycle's steps, those to come with them; without a thread nothing is announced.
    parts = [sorted({row // 4 for row in loader.rows(step).tolist()}) for step in range(8)]
    ends = (4, 4, 4, 4, 8, 8)
    assert targets.announced == [{now: parts[now] for now in range(step, end)} for step, end in enumerate(ends)]
    assert len(list(loader.batches(0, 2, loading=LoaderConfig()))) == 2
    assert len(targets.announced) == 6


def test_only_the_shards_of_the_next_steps_are_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.loader._ANNOUNCED", 2)
    monkeypatch.setattr("pipeline.loader._WINDOW", 1)
    announced: list[dict[int, list[int]]] = []

    class Targets:
        read = staticmethod(lambda rows, *, step: {})
        prefetch = staticmethod(announced.append)

    targets: Any = Targets()
    loader = Loader(make_views(tmp_path / "store", images=16), batch=2, seed=0, targets=targets)
    read = [sorted({row // 4 for row in batch.rows.tolist()}) for batch in loader.batches(0, 8, loading=ONE_READER)]
    assert announced == [{now: read[now] for now in range(step, min(step + 2, 8))} for step in range(8)]


def test_on_a_cpu_no_thread_competes_with_the_step(tmp_path: Path) -> None:
    batches = Loader(make_views(tmp_path / "store", images=4), batch=2, seed=0).batches(0, 3)
    next(batches)
    assert loader_threads() == []


def test_samples_beyond_the_memory_bound_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.loader._KEEP_BYTES", 8 * 8 * 3 * 2)
    loader = Loader(make_views(tmp_path / "store", images=6), batch=3, seed=0)
    for batch in loader.batches(0, 8):
        assert batch.pixels[:, 0, 0, 0].tolist() == batch.rows.tolist()


def test_load_samples_keeps_the_order_asked_for(tmp_path: Path) -> None:
    samples = load_samples(make_views(tmp_path / "store", images=9), [7, 0, 5], tasks=("sal",))
    assert [int(sample.image[0, 0, 0]) for sample in samples] == [7, 0, 5]
    assert [sample.key for sample in samples] == ["k0007", "k0000", "k0005"]


def test_everything_that_crosses_to_a_gpu_is_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class _Targets:
        widths: dict[str, tuple[int, ...]] = {}  # noqa: RUF012

        def read(self, rows: NDArray[np.int64], /, *, step: int | None = None) -> Any:
            return {"first": [{"values": torch.ones(2), "scale": torch.ones(3)}, {"values": torch.ones(4)}]}

        def prefetch(self, parts: dict[int, list[int]], /) -> None:
            pass

    pinned: list[int] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor.numel())
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    targets: Any = _Targets()
    options: Any = {"batch": 2, "seed": 0, "tasks": ("sal",), "targets": targets}
    view_set = make_views(tmp_path, images=4)
    job = _Job(0, np.array([2, 1]), None)
    Loader(view_set, **options)._read(job)
    assert pinned == []
    Loader(view_set, device=torch.device("cuda"), **options)._read(job)
    assert sorted(pinned) == [2, 3, 4, 2 * 8 * 8, 2 * 3 * 8 * 8]
