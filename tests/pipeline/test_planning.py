"""Arithmetic of a plan, worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.planning import (
    Column,
    ColumnKey,
    Engine,
    Group,
    Memory,
    Plan,
    Speed,
    Stage,
    ViewKey,
    Views,
    extract_memory,
    loader_memory,
    payback,
    read_bytes,
    seconds,
)
from pipeline.samples import Drawn
from pipeline.sizes import RowSize
from sak.teachers.footprint import Footprint
from sak.teachers.spec import TeacherSpec

HERE = ViewKey("store", "views")
# 10 channels of 4 x 5: 200 values, twice.
COST = Footprint(parameters=1000, macs=50_000, input=(8, 8), maps=((10, 4, 5), (10, 4, 5)), activations=3000)
ENGINE = Engine(device="cpu", accelerator=False, processes=1, remote=False, threads=0, batch=4, drawing=2)
A, B = (ColumnKey(HERE, name, name, "int8") for name in "ab")


def column(name: str, *, missing: int = 100, exact: bool = False, speed: Speed | None = None, fits: int = 0) -> Column:
    spec = TeacherSpec(name=name, timm=f"net_{name}", random=0)
    return Column(spec, "int8", 100, missing, RowSize(500.0, 400.0, "counted"), COST, exact, fits, "here", speed)


def plan(a: Column, b: Column, *, views_missing: int = 100) -> Plan:
    views = Views(rows=100, missing=views_missing, shard_rows=16, pixels=192, images=Drawn(150.0, 192.0, 0.01))
    stages = (
        Stage("one", "distill", HERE, (A, B), images=1000, batch=8),
        Stage("one", "finetune", HERE, (A, B), images=200, batch=2),
        Stage("two", "distill", HERE, (A,), images=800, batch=8),
    )
    return Plan(views={HERE: views}, columns={A: a, B: b}, groups=(Group(HERE, (A, B)),), stages=stages, engine=ENGINE)


def test_bytes_of_what_is_missing() -> None:
    found = plan(column("a"), column("b", missing=20))
    assert (found.columns[A].native_bytes, found.columns[B].native_bytes) == (100 * 800, 20 * 800)
    assert found.disk("store") == 100 * 150 + 100 * 500 + 20 * 500
    assert found.disk("elsewhere") == 0
    assert (found.rows, found.rows_missing, found.done) == (300, 220, False)
    assert plan(column("a", missing=0), column("b", missing=0), views_missing=0).done


def test_time_is_shared_by_processes() -> None:
    found = plan(column("a", speed=Speed(0.4, 0.1)), column("b", missing=10, speed=Speed(1.0, None)))
    assert seconds(found) == (pytest.approx(100 * 0.01 / 2), pytest.approx(100 * 0.5 + 10 * 1.0))
    shared = replace(found, engine=ENGINE._replace(processes=4))
    assert seconds(shared).columns == pytest.approx((100 * 0.5 + 10 * 1.0) / 4)


def test_time_is_not_known_where_a_speed_is_not_unless_nothing_is_missing() -> None:
    assert seconds(plan(column("a", speed=Speed(1.0, 0.0)), column("b"))).columns is None
    assert seconds(plan(column("a", speed=Speed(1.0, 0.0)), column("b", missing=0))).columns == 100


def test_pay_back_is_extraction_over_the_mean_run() -> None:
    found = payback(plan(column("a", speed=Speed(2.0, 0.5)), column("b", speed=Speed(1.0, 0.0))))
    extraction = 100 * 2.5 + 100 * 1.0
    online = ((1000 + 200) * (2.0 + 1.0) + 800 * 2.0) / 2
    assert found == (pytest.approx(extraction / online), extraction, online, "s")


def test_pay_back_counts_arithmetic_without_speeds_and_no_teacher_for_exact_columns() -> None:
    found = payback(plan(column("a"), column("b", exact=True)))
    assert (found.extraction, found.online, found.unit) == (100 * 50_000, (1200 * 100_000 + 800 * 50_000) / 2, "MAC")


def test_a_column_from_an_exact_one_saves_a_teachers_forward() -> None:
    b = column("a", exact=True, speed=Speed(0.0, 0.5))  # the same teacher, other codec
    found = payback(plan(column("a", speed=Speed(2.0, 0.5)), b))
    assert found.extraction == 100 * 2.5 + 100 * 0.5
    assert found.online == (1200 * (2.0 + 2.0) + 800 * 2.0) / 2


def test_no_run_that_reads_has_nothing_to_pay_back() -> None:
    assert payback(replace(plan(column("a"), column("b")), stages=())).runs is None


@given(st.floats(0.001, 1e3), st.integers(2, 50))
def test_pay_back_does_not_depend_on_the_machine_but_on_views(speed: float, views: int) -> None:
    base = plan(column("a", speed=Speed(1.0, 0.0)), column("b", speed=Speed(3.0, 0.0)))
    faster = {key: item._replace(speed=Speed(item.speed.forward * speed, 0.0)) for key, item in base.columns.items()
              if item.speed}  # fmt: skip
    more = {key: item._replace(rows=item.rows * views) for key, item in base.columns.items()}
    runs = payback(base).runs
    assert runs is not None
    assert payback(replace(base, columns=faster)).runs == pytest.approx(runs)
    assert payback(replace(base, columns=more)).runs == pytest.approx(runs * views)


def test_reading_takes_features_of_the_stage_and_the_image() -> None:
    found = plan(column("a"), column("b"))
    assert [read_bytes(found, stage) for stage in found.stages] == [1150, 1150, 650]


def test_memory_is_of_what_is_held_at_a_time() -> None:
    found = plan(column("a", fits=50), column("b"))
    batch = 4 * (2 * 4 * 400 + 3000)  # maps there and back, activations
    fit = 50 * 4 * 400
    expected = Memory(base=7, pixels=16 * 192, encoded=2 * 16 * 400, weights=2 * 4000, maps=batch + fit)
    assert extract_memory(found, base=7, keep=1 << 30) == expected
    assert extract_memory(found, base=7, keep=100).maps == batch + 100
    assert expected.device == expected.weights + expected.maps
    assert expected.total == 7 + 3072 + 12800 + 8000 + batch + fit


def test_exact_columns_and_finished_ones_load_no_teacher() -> None:
    found = extract_memory(plan(column("a", exact=True), column("b", missing=0)), base=0, keep=0)
    assert (found.weights, found.maps) == (0, 4 * 2 * 4 * 400)
    views = extract_memory(plan(column("a", missing=0), column("b", missing=0)), base=0, keep=0)
    assert views.total == 2 * 16 * 150, "a shard of images, and its tar"


def test_the_loader_reads_ahead_of_an_accelerator_alone() -> None:
    found = plan(column("a"), column("b"))
    kept, row = 100 * 192, 192 + 800
    assert loader_memory(found) == kept + 8 * row
    ahead = loader_memory(replace(found, engine=ENGINE._replace(accelerator=True)))
    assert ahead > kept + 4 * 8 * row
