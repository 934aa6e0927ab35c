"""Arithmetic of a plan, worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.budgets import Budget, Limit, over_budget
from pipeline.calibration import KEEP_BYTES
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
from pipeline.readahead import Ahead
from pipeline.samples import Drawn
from pipeline.sizes import RowSize
from sak.teachers.footprint import Footprint
from sak.teachers.spec import TeacherSpec

HERE = ViewKey("store", "views")
# 10 channels of 4 x 5: 200 values, twice.
COST = Footprint(parameters=1000, macs=50_000, input=(8, 8), maps=((10, 4, 5), (10, 4, 5)), activations=3000)
ENGINE = Engine(
    device="cpu",
    accelerator=False,
    processes=1,
    workers=1,
    remote=False,
    threads=0,
    batch=4,
    fits=False,
    drawing=2,
    behind=0,
    behind_bytes=0,
)
A, B = (ColumnKey(HERE, name, name, "int8") for name in "ab")


def column(name: str, *, missing: int = 100, exact: bool = False, speed: Speed | None = None, fits: int = 0) -> Column:
    spec = TeacherSpec(name=name, timm=f"net_{name}", random=0)
    return Column(spec, "int8", 100, missing, RowSize(500.0, 400.0, "counted"), COST, exact, fits, "here", speed)


def plan(a: Column, b: Column, *, views_missing: int = 100) -> Plan:
    views = Views(rows=100, missing=views_missing, shard_rows=16, pixels=192, images=Drawn(150.0, 192.0, 0.01))
    stages = (
        Stage("one", "distill", HERE, (A, B), images=1000, batch=8, ahead=Ahead(0)),
        Stage("one", "finetune", HERE, (A, B), images=200, batch=2, ahead=Ahead(0)),
        Stage("two", "distill", HERE, (A,), images=800, batch=8, ahead=Ahead(0)),
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


def test_a_loader_holds_what_it_reads_ahead() -> None:
    found = plan(column("a"), column("b"))
    kept, row = 100 * 192, 192 + 800
    assert loader_memory(found) == kept + 8 * row
    ahead = [stage._replace(ahead=Ahead(5000, readers=3)) for stage in found.stages]
    assert loader_memory(replace(found, stages=tuple(ahead))) == kept + 5000 + 4 * 8 * row


def test_host_and_accelerator_are_each_measured_where_they_hold_most() -> None:
    there = ViewKey("store", "others")
    first = plan(column("a", fits=50), column("b", missing=0))
    wide = first.views[HERE]._replace(shard_rows=100, pixels=19200)  # much to hold, and little to compute
    elsewhere = ColumnKey(there, "a", "a", "int8")
    both = replace(
        first,
        views={**first.views, there: wide},
        columns={**first.columns, elsewhere: column("a", exact=True)},
        groups=(*first.groups, Group(there, (elsewhere,))),
        engine=ENGINE._replace(device="cuda", accelerator=True),
    )
    alone = [extract_memory(replace(both, groups=(group,)), base=7, keep=1 << 30) for group in both.groups]
    found = extract_memory(both, base=7, keep=1 << 30)
    assert alone[0].device > alone[1].device
    assert alone[0].host < alone[1].host
    assert (found.host, found.device) == (alone[1].host, alone[0].device)


def test_shards_that_are_written_behind_are_held_as_far_as_they_may() -> None:
    shard = 16 * 400
    for room, copies in ((10 * shard, 4), (1.5 * shard, 3), (shard - 1, 2)):
        engine = ENGINE._replace(behind=2, behind_bytes=int(room))
        found = replace(plan(column("a"), column("b")), engine=engine)
        assert extract_memory(found, base=0, keep=0).encoded == copies * shard


def test_where_batches_are_cut_room_for_one_row_is_enough() -> None:
    cut = replace(plan(column("a"), column("b")), engine=ENGINE._replace(fits=True))
    row = 2 * 4 * 400 + 3000
    assert extract_memory(cut, base=0, keep=0).maps == row
    whole = extract_memory(replace(cut, engine=ENGINE), base=0, keep=0)
    assert whole.maps == 4 * row
    room = Budget({}, Limit(extract_memory(cut, base=0, keep=KEEP_BYTES).total, "extract.max_memory"), None)
    assert over_budget(cut, room, base=0) is None
    assert "extract.batch (now 4)" in (over_budget(replace(cut, engine=ENGINE), room, base=0) or "")


def test_memory_is_that_of_every_worker_however_few_processors_there_are() -> None:
    engine = ENGINE._replace(device="cuda", accelerator=True, processes=2, workers=5)
    found = replace(plan(column("a"), column("b")), engine=engine)
    need = extract_memory(found, base=0, keep=KEEP_BYTES)
    assert engine.sharing == 3
    enough = Budget({}, Limit(5 * need.host, "here"), Limit(3 * need.device, "free on a GPU"))
    assert over_budget(found, enough, base=0) is None
    less = Budget({}, Limit(5 * need.host - 1, "here"), Limit(3 * need.device - 1, "free on a GPU"))
    refusal = over_budget(found, less, base=0) or ""
    assert "in 5 processes" in refusal
    assert "on cuda from 3 workers" in refusal


def test_a_step_that_draws_its_teachers_reads_and_saves_less() -> None:
    found = plan(column("a"), column("b"))
    drawn = replace(found, stages=tuple(stage._replace(share=0.5) for stage in found.stages))
    assert [read_bytes(drawn, stage) for stage in drawn.stages] == [650, 650, 400]
    assert payback(drawn).online == payback(found).online / 2


def test_stores_on_one_disk_share_what_is_free() -> None:
    found = plan(column("a"), column("b"))
    other = ViewKey("elsewhere", "views")
    both = replace(found, views={**found.views, other: found.views[HERE]})
    free = int(found.disk("store")) + 1
    here, there = Limit(free, "free on its disk", disk=1), Limit(free, "free on its disk", disk=2)
    assert over_budget(both, Budget({"store": here, "elsewhere": there}, None, None), base=0) is None
    refusal = over_budget(both, Budget({"store": here, "elsewhere": here}, None, None), base=0) or ""
    assert "of disk in store and elsewhere" in refusal
