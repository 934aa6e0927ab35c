from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.bench.held import Held, hold
from pipeline.bench.plan import BenchPlan
from store.codecs.base import LevelSpec

LEVELS = (LevelSpec(components=6, height=4, width=3), LevelSpec(components=4, height=2, width=2))


def tiny_plan(*, rows: int = 20, columns: int = 1, seed: int = 0) -> BenchPlan:
    return BenchPlan(rows=rows, batch=8, columns=columns, rounds=2, seed=seed, levels=LEVELS, peers=())


def tiny_held(root: Path, plan: BenchPlan) -> Held:
    return hold(plan, root)


@pytest.fixture(scope="session")
def plan() -> BenchPlan:
    return tiny_plan()


@pytest.fixture(scope="session")
def held(plan: BenchPlan, tmp_path_factory: pytest.TempPathFactory) -> Held:
    """20 rows of two levels: two batches of 8 and a short one. Shared: never write there."""
    return tiny_held(tmp_path_factory.mktemp("bench") / "sak", plan)
