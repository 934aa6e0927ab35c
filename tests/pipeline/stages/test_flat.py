"""That nothing which an extraction holds or does for a shard grows with the shards before it: counted, not timed."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pipeline import bad_rows, column_engine
from pipeline.column_engine import Overlap
from pipeline.config import Study
from pipeline.loader import Loader
from pipeline.recipes import recipe_from_mapping
from pipeline.stages.extract import extract
from pipeline.targets import CachedTargets
from store import disk
from store.local_file import LocalFile
from store.store import Store
from store.workers import available_threads
from tests.tiny_recipe import tiny_mapping

SHARDS, ROWS = 24, 4


class Shard(NamedTuple):
    """At the moment when a part is committed: what was done for it, and what is held."""

    calls: Counter[str]
    files: int
    threads: int


class Watch:
    """Counts every call to the disk, and looks around whenever a commit record gets its name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: Counter[str] = Counter()
        self.shards: dict[str, list[Shard]] = {"views": [], "columns": []}
        for name in disk.__all__:
            monkeypatch.setattr(disk, name, self._counted(name, getattr(disk, name)))

    def _counted(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self.calls[name] += 1
            result = real(*arguments)
            if name == "replace" and arguments[1].parent.name == "commits":
                self._look("columns" if "columns" in arguments[1].parts else "views")
            return result

        return call

    def _look(self, kind: str) -> None:
        self.shards[kind].append(Shard(self.calls, len(os.listdir("/proc/self/fd")), threading.active_count()))
        self.calls = Counter()


def study_in(root: Path) -> Study:
    """One small column over many small shards."""
    mapping = tiny_mapping(root) | {"finetune": None, "runs": {}, "baselines": []}
    data = dict(mapping["data"]["distill"]) | {"rows_per_shard": ROWS}
    data["source"] = dict(data["source"]) | {"images": SHARDS * ROWS}
    mapping["data"] = {"distill": data}
    mapping["teachers"] = {"first": mapping["teachers"]["first"]}
    mapping["extract"] = {"codec": "int8", "batch": ROWS, "workers": 1}
    return recipe_from_mapping(mapping).runs[0].study


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> Study:
    study = study_in(tmp_path_factory.mktemp("flat"))
    extract([study])
    return study


def test_every_shard_costs_the_same_calls_and_holds_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bad_rows, "monotonic", lambda: 0.0)  # its glances go by the clock
    # One after the other, so that the calls between two commits are those of one shard.
    monkeypatch.setattr(column_engine, "overlap_of", lambda *_, **__: Overlap(threads=1))
    watch = Watch(monkeypatch)
    extract([study_in(tmp_path)])
    for kind, shards in watch.shards.items():
        assert len(shards) == SHARDS
        settled = shards[2:]  # the first makes folders, and what is between view sets and columns falls to the next
        assert len({frozenset(shard.calls.items()) for shard in settled}) == 1, kind
        assert {"listdir", "scan", "walk"}.isdisjoint(settled[0].calls), kind
        assert len({shard.files for shard in settled}) == 1, kind
        # A pool starts a thread for a task whenever none of its threads is idle, up to its size.
        assert settled[-1].threads <= shards[0].threads + available_threads(), kind


def test_a_second_extraction_reads_the_records_of_the_views_alone_and_writes_nothing(
    extracted: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(monkeypatch)
    extract([extracted])
    assert watch.shards == {"views": [], "columns": []}
    assert SHARDS <= watch.calls["open_read"] < 2 * SHARDS
    assert not {"write", "replace", "unlink", "mkdir"} & watch.calls.keys()


def test_a_second_epoch_opens_few_shards_at_a_time_and_hashes_none_again(
    extracted: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(extracted.store)
    (view_set,) = store.view_sets()
    (column,) = store.columns(view_set.name)
    column._shards._capacity = 16
    loader = Loader(view_set, batch=ROWS, seed=0, targets=CachedTargets({"first": column}))
    before, steps = len(os.listdir("/proc/self/fd")), loader.steps_per_cycle
    held = [len(os.listdir("/proc/self/fd")) - before for _ in loader.batches(0, steps)]
    assert len(held) == SHARDS
    assert max(held) <= 16
    watch = Watch(monkeypatch)
    monkeypatch.setattr(LocalFile, "digest", lambda _: pytest.fail("hashed again"))
    assert len(list(loader.batches(steps, 2 * steps))) == SHARDS
    assert watch.calls["open_read"] > 0
    assert {"listdir", "scan", "walk"}.isdisjoint(watch.calls)
