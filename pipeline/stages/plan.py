"""Stage ``plan``: what ``sak extract`` would do, cost and save, before it does any of it; nothing is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from rich.table import Table

from pipeline.budgets import Budget, over_budget, process_memory, study_budget
from pipeline.config import Study
from pipeline.errors import PipelineError
from pipeline.planning import (
    Column,
    ColumnKey,
    Memory,
    Payback,
    Plan,
    column_seconds,
    loader_memory,
    payback,
    read_bytes,
    seconds,
    view_seconds,
)
from pipeline.report.quantities import DASH, bytes_text, count_text, seconds_text
from pipeline.resources import own_memory, read_rate
from pipeline.runtime import device_name, pick_device
from pipeline.survey import survey
from pipeline.trials import Terms, calibrated
from pipeline.tuning import codec_text
from store.codecs.registry import choice_json

__all__ = ["PlanOptions", "Planned", "plan_extract", "plan_json", "plan_lines", "plan_tables"]

_HOUR, _MB = 3600.0, 1e6


class PlanOptions(NamedTuple):
    """How to plan.

    Attributes:
        calibrate: Run teachers and codecs on a few rows; else times are not known, and fitted codecs' sizes nominal.
        images_per_s: Rate of the students that will read.
        disk_mb_s: Megabytes a second that the store's disk gives; measured on the store's own files where it is None.
        seconds: About how long each teacher runs in the trial, beside its warm-up.
    """

    calibrate: bool = True
    images_per_s: float = 2000.0
    disk_mb_s: float | None = None
    seconds: float = 5.0


class Planned(NamedTuple):
    """A plan with all that follows from it.

    Attributes:
        refusal: Why it is over its budget, in one line; None where it is not.
        memory: Of a process, one row at a time where batches are cut to what memory holds.
        whole: The same with batches that are not cut.
        rates: Bytes a second that each store's disk gives, where that is known.
    """

    plan: Plan
    options: PlanOptions
    machine: str
    budget: Budget
    refusal: str | None
    memory: Memory
    whole: Memory
    rates: dict[str, float]

    @property
    def totals(self) -> dict[str, float]:
        """Bytes of the rows that are missing: as float16, as they will be stored, and of their images."""
        return {
            "native_bytes": sum(item.native_bytes for item in self.plan.columns.values()),
            "feature_bytes": sum(item.missing_bytes for item in self.plan.columns.values()),
            "image_bytes": sum(item.missing * item.images.stored for item in self.plan.views.values()),
        }


def plan_extract(studies: Sequence[tuple[str, Study]], /, *, options: PlanOptions) -> Planned:
    """Plan an extraction of labelled studies.

    Raises:
        PipelineError: A source cannot be read, an option is refused, or the device is not there.
        TeacherError: A network takes no view of its size.
        StoreError: A store is damaged, or a codec cannot represent a teacher's maps.
    """
    for key, value in (("--images-per-s", options.images_per_s), ("--disk-mb-s", options.disk_mb_s)):
        if value is not None and not value > 0:
            raise PipelineError(f"{key}: expected more than 0, got {value:g}")
    study = studies[0][1]
    device = pick_device("auto" if study.extract.scheduler else study.device)
    found = survey(studies, device=device)
    plan, base = found.plan, own_memory()
    budget = study_budget(study, stores=plan.stores, device=device)
    if options.calibrate:
        room = budget.device if device.type == "cuda" else budget.memory
        plan = calibrated(found, terms=Terms(device, None if room is None else room.bytes, options.seconds))
    given, whole = options.disk_mb_s, replace(plan, engine=plan.engine._replace(fits=False))
    measured = {store: read_rate(store) if given is None else given * _MB for store in plan.stores}
    return Planned(
        plan=plan,
        options=options,
        machine=device_name(device),
        budget=budget,
        refusal=over_budget(plan, budget, base=base),
        memory=process_memory(plan, base=base),
        whole=process_memory(whole, base=base),
        rates={store: rate for store, rate in measured.items() if rate is not None},
    )


def plan_tables(planned: Planned, /) -> list[Table]:
    """What is missing, by view set and teacher; then what training will read, by run and stage."""
    return [_missing_table(planned), *([_reading_table(planned)] if planned.plan.stages else [])]


def plan_lines(planned: Planned, /) -> list[str]:
    """What follows: times, memory, pay-back, what limits training."""
    return [*_time_lines(planned), *_memory_lines(planned), *_disk_lines(planned), _payback_line(payback(planned.plan))]


def plan_json(planned: Planned, /) -> dict[str, Any]:
    """All of it as JSON values; bytes, seconds and rows a second."""
    plan, time, found = planned.plan, seconds(planned.plan), payback(planned.plan)
    memory = planned.memory
    return {
        "machine": planned.machine,
        "engine": plan.engine._asdict(),
        "views": [
            {
                **key._asdict(),
                "rows": item.rows,
                "rows_missing": item.missing,
                "image_bytes_per_row": round(item.images.stored, 1),
                "seconds": view_seconds(item, processes=plan.engine.drawing),
            }
            for key, item in plan.views.items()
        ],
        "columns": [_column_json(key, item, processes=plan.engine.processes) for key, item in plan.columns.items()],
        "totals": {
            **{key: round(value) for key, value in planned.totals.items()},
            "seconds_views": time.views,
            "seconds_columns": time.columns,
        },
        "reading": [
            {
                "run": stage.run,
                "stage": stage.name,
                "bytes_per_row": round(read_bytes(plan, stage), 1),
                "bytes_per_second": round(read_bytes(plan, stage) * planned.options.images_per_s),
            }
            for stage in plan.stages
        ],
        "images_per_s": planned.options.images_per_s,
        "disk_bytes_per_second": planned.rates,
        "memory": {**memory._asdict(), "total": memory.total, "loader": loader_memory(plan)},
        "budget": {
            "disk": {store: limit.bytes for store, limit in planned.budget.disk.items()},
            "memory": planned.budget.memory.bytes if planned.budget.memory else None,
            "device": planned.budget.device.bytes if planned.budget.device else None,
        },
        "payback": found._asdict(),
        "refused": planned.refusal,
    }


def _column_json(key: ColumnKey, item: Column, *, processes: int) -> dict[str, Any]:
    return {
        **key.views._asdict(),
        "teacher": key.teacher,
        "codec": choice_json(item.codec),
        "rows": item.rows,
        "rows_missing": item.missing,
        "native_bytes": item.native_bytes,
        "bytes": round(item.missing_bytes),
        "basis": item.size.basis,
        "gmac": round(item.cost.macs / 1e9, 3),
        "from_exact_column": item.exact,
        "weights": item.weights,
        "forward_seconds_per_row": item.speed.forward if item.speed else None,
        "encode_seconds_per_row": item.speed.encode if item.speed else None,
        "seconds": column_seconds(item, processes=processes),
    }


def _missing_table(planned: Planned) -> Table:
    table = Table(header_style="bold", title=f"to extract; {planned.machine}")
    for name in ("view set", "teacher", "codec"):
        table.add_column(name)
    for name in ("rows missing", "of", "fp16", "to store", "GMAC a view", "rows/s", "time"):
        table.add_column(name, justify="right")
    table.add_column("")
    plan = planned.plan
    for views, item in plan.views.items():
        rate = 1 / item.images.seconds * plan.engine.drawing if item.images.seconds else None
        time = _time(view_seconds(item, processes=plan.engine.drawing))
        size = bytes_text(item.missing * item.images.stored)
        counts = f"{item.missing:,}", f"{item.rows:,}"
        table.add_row(views.name, "images", "png", *counts, DASH, size, DASH, _rate(rate), time, "")
        for key, column in plan.columns.items():
            if key.views == views:
                table.add_row("", key.teacher, *_column_cells(column, processes=plan.engine.processes))
        table.add_section()
    totals, times = planned.totals, seconds(plan)
    whole = None if times.views is None or times.columns is None else times.views + times.columns
    size = bytes_text(totals["feature_bytes"] + totals["image_bytes"])
    native = bytes_text(totals["native_bytes"])
    table.add_row(
        "total",
        "",
        "",
        f"{plan.rows_missing:,}",
        f"{plan.rows:,}",
        native,
        size,
        "",
        "",
        _time(whole),
        "",
        style="bold",
    )
    return table


def _column_cells(item: Column, *, processes: int) -> tuple[str, ...]:
    notes = [] if item.size.basis == "counted" else [f"size {item.size.basis}"]
    notes += ["from its exact column"] if item.exact else []
    notes += ["weights missing"] if item.weights == "missing" else []
    rate = processes / item.speed.total if item.speed else None
    return (
        codec_text(choice_json(item.codec)),
        f"{item.missing:,}",
        f"{item.rows:,}",
        bytes_text(item.native_bytes),
        bytes_text(item.missing_bytes),
        f"{item.cost.macs / 1e9:.3g}",
        _rate(rate),
        _time(column_seconds(item, processes=processes)),
        ", ".join(notes),
    )


def _reading_table(planned: Planned) -> Table:
    rate = planned.options.images_per_s
    table = Table(header_style="bold", title=f"to read in training at {rate:g} images/s")
    table.add_column("run")
    table.add_column("stage")
    for name in ("an image", "MB/s", "from this disk, images/s", "limit"):
        table.add_column(name, justify="right")
    for stage in planned.plan.stages:
        size, disk = read_bytes(planned.plan, stage), planned.rates.get(stage.views.store)
        most = None if disk is None else disk / size
        limit = DASH if most is None else "disk" if most < rate else "student"
        need = f"{size * rate / _MB:,.1f}"
        table.add_row(stage.run, stage.name, bytes_text(size), need, count_text(most) if most else DASH, limit)
    return table


def _time_lines(planned: Planned) -> Iterator[str]:
    plan, times = planned.plan, seconds(planned.plan)
    if plan.done:
        yield "time: nothing is missing"
    elif times.columns is None or times.views is None:
        why = "no calibration was asked for"
        if planned.options.calibrate:
            why = "its teachers do not fit in memory" if times.columns is None else "no image could be drawn to time it"
        yield f"time: not known; {why}"
    else:
        who = "one worker's" if plan.engine.remote else f"{plan.engine.processes} x {plan.engine.device}"
        hours = times.columns / _HOUR * plan.engine.processes
        yield (
            f"time: {seconds_text(times.columns)} for features on {who} ({hours:.3g} {plan.engine.device}-hours),"
            f" {seconds_text(times.views)} for views in {plan.engine.drawing} processes"
        )
    missing = sorted({key.teacher for key, item in plan.columns.items() if item.weights == "missing"})
    if missing:
        sped = ", speeds are those of random ones" if any(item.speed for item in plan.columns.values()) else ""
        yield f"weights missing: {', '.join(missing)}; stored columns of theirs are not known{sped}"


def _memory_lines(planned: Planned) -> Iterator[str]:
    need, engine = planned.memory, planned.plan.engine
    place = f", the last two on {engine.device}" if engine.accelerator else ""
    yield (
        f"memory: {bytes_text(need.total)} a process: {bytes_text(need.base)} this program,"
        f" {bytes_text(need.pixels)} pixels of a shard, {bytes_text(need.encoded)} encoded shard,"
        f" {bytes_text(need.weights)} teachers, {bytes_text(need.maps)} maps and activations of"
        f" {_batch_text(planned)}{place}"
    )
    yield f"memory of a training run's loader: {bytes_text(loader_memory(planned.plan))} at most"


def _batch_text(planned: Planned) -> str:
    engine = planned.plan.engine
    if not engine.fits:
        return f"{engine.batch} views"
    return f"1 view ({bytes_text(planned.whole.maps)} of {engine.batch}; extract.batch=auto takes as many as fit)"


def _disk_lines(planned: Planned) -> Iterator[str]:
    plan, rate = planned.plan, planned.options.images_per_s
    for store in plan.stores:
        limit = planned.budget.disk.get(store)
        if limit is not None:
            yield f"disk: {bytes_text(plan.disk(store))} to write of {bytes_text(limit.bytes)} ({limit.what}), {store}"
        disk, stages = planned.rates.get(store), [stage for stage in plan.stages if stage.views.store == store]
        if not stages:
            continue
        if disk is None:
            yield "what the disk reads is not known: the store has nothing to read yet; give --disk-mb-s"
            continue
        how = "given" if planned.options.disk_mb_s is not None else "measured"
        most = max(stages, key=lambda stage: read_bytes(plan, stage))
        need = read_bytes(plan, most) * rate
        verdict = f"students at {rate:g} images/s are the limit, not the disk"
        if need > disk:
            verdict = (
                f"the disk is the limit of {most.run}'s {most.name}: {disk / read_bytes(plan, most):.0f} of"
                f" {rate:g} images/s; store {need / disk:.2g} times fewer bytes (codec, grid), or keep them in memory"
            )
        yield f"disk reads {bytes_text(disk)}/s ({how}): {verdict}"


def _payback_line(found: Payback) -> str:
    if found.runs is None:
        return "pay-back: no run learns from stored features"
    how = "in measured time" if found.unit == "s" else "in multiply-adds; encoding not counted"
    when = "within the first student run" if found.runs < 1 else f"after {found.runs:.1f} student runs"
    return f"pay-back: {when} ({found.runs:.2g} of a run's online teachers, {how})"


def _rate(rate: float | None) -> str:
    return DASH if rate is None else f"{rate:.3g}"


def _time(time: float | None) -> str:
    return DASH if time is None else seconds_text(time)
