"""What an extraction may take, and the refusal of one that would take more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from pipeline.calibration import KEEP_BYTES
from pipeline.config import Study
from pipeline.errors import PipelineError
from pipeline.planning import Memory, Plan, extract_memory
from pipeline.report.quantities import bytes_text
from pipeline.resources import available_memory, free_space, own_memory
from pipeline.runtime import pick_device
from pipeline.sizes import parse_bytes
from pipeline.survey import survey
from store.roots import open_root

__all__ = ["Budget", "BudgetError", "Limit", "over_budget", "process_memory", "require_budgets", "study_budget"]


class BudgetError(PipelineError):
    """A plan that takes more than it may; the message says by how much, and what to change."""


class Limit(NamedTuple):
    """Bytes, and what sets them."""

    bytes: int
    what: str


class Budget(NamedTuple):
    """What an extraction may take; None where nothing limits it.

    Attributes:
        disk: Of each store, what may be added.
        memory: Of this machine, all processes together.
        device: Of the accelerator, free now.
    """

    disk: dict[str, Limit]
    memory: Limit | None
    device: Limit | None


def study_budget(study: Study, /, *, stores: Sequence[str], device: torch.device) -> Budget:
    """What the recipe allows, or else what is free: of a local store's disk, and of this machine's memory."""
    config, disk = study.extract, dict[str, Limit]()
    for store in stores:
        free = free_space(open_root(store))
        if config.max_disk is not None:
            disk[store] = Limit(parse_bytes(config.max_disk, key="extract.max_disk"), "extract.max_disk")
        elif free is not None:
            disk[store] = Limit(free, "free on its disk")
    memory, own = None, available_memory()
    if config.max_memory is not None:
        memory = Limit(parse_bytes(config.max_memory, key="extract.max_memory"), "extract.max_memory")
    elif own is not None and config.scheduler is None:
        memory = Limit(own + own_memory(), "available here")
    on_device = None
    if device.type == "cuda" and config.scheduler is None:
        on_device = Limit(torch.cuda.mem_get_info(device)[0], f"free on {torch.cuda.get_device_name(device)}")
    return Budget(disk, memory, on_device)


def process_memory(plan: Plan, /) -> Memory:
    """What each process of the plan takes, with what this one holds by now for its own share."""
    return extract_memory(plan, base=own_memory(), keep=KEEP_BYTES)


def over_budget(plan: Plan, budget: Budget, /) -> str | None:
    """Why a plan is refused, in one line; None where it is not."""
    faults = [] if plan.done else [*_disk_faults(plan, budget), *_memory_faults(plan, budget)]
    return "; ".join(faults) or None


def _disk_faults(plan: Plan, budget: Budget) -> Iterator[str]:
    for store in plan.stores:
        limit, size = budget.disk.get(store), plan.disk(store)
        if limit is None or size <= limit.bytes:
            continue
        columns = {key: item.missing_bytes for key, item in plan.columns.items() if key.views.store == store}
        largest = max(columns, key=lambda key: columns[key], default=None)
        mend = "fewer images (data.*.source.images) or views (data.*.views)"
        if largest is not None:
            name, share = largest.teacher, columns[largest] / size
            mend = (
                f"a smaller codec (extract.codec={{name: klt, error: 0.3}}; sak store tune compares them), a grid"
                f" (teachers.{name}.grid: its columns over {largest.views.name} are {share:.0%}), {mend}"
            )
        yield f"{_excess('disk', size, limit, where=f' in {store}')}: take {mend}{_or_raise(limit, 'extract.max_disk')}"


def _memory_faults(plan: Plan, budget: Budget) -> Iterator[str]:
    need, engine = process_memory(plan), plan.engine
    host = need.total - (need.device if engine.accelerator else 0)
    processes = 1 if engine.remote else engine.processes
    if budget.memory is not None and host * processes > budget.memory.bytes:
        where = f" in {processes} processes" if processes > 1 else ""
        fault = _excess("memory", host * processes, budget.memory, where=where)
        yield f"{fault}: {_memory_mend(plan, need)}{_or_raise(budget.memory, 'extract.max_memory')}"
    if engine.accelerator and budget.device is not None and need.device > budget.device.bytes:
        fault = _excess("memory", need.device, budget.device, where=f" on {engine.device}")
        yield f"{fault}: lower extract.batch (now {engine.batch})"


def _memory_mend(plan: Plan, need: Memory) -> str:
    batch, shards = f"extract.batch (now {plan.engine.batch})", "data.*.rows_per_shard"
    most = max((item.shard_rows for item in plan.views.values()), default=0)
    shards = f"{shards} (now up to {most})"
    first, second = (batch, shards) if need.device >= need.encoded + need.pixels else (shards, batch)
    workers = " or extract.workers" if plan.engine.processes > 1 else ""
    return f"lower {first}, or {second}{workers}"


def _excess(what: str, size: float, limit: Limit, *, where: str) -> str:
    over, most = bytes_text(size - limit.bytes), bytes_text(limit.bytes)
    return f"extract needs {bytes_text(size)} of {what}{where}, {over} over the {most} {_named(limit)}"


def _named(limit: Limit) -> str:
    return f"of {limit.what}" if limit.what.startswith("extract.") else limit.what


def _or_raise(limit: Limit, key: str) -> str:
    return f", or raise {key}" if limit.what.startswith("extract.") else ""


def require_budgets(studies: Sequence[tuple[str, Study]], /) -> None:
    """Refuse an extraction that would take more than it may, without any trial.

    From shapes alone; where these leave room for a doubt, from a few drawn rows as well.

    Raises:
        BudgetError: It would.
        PipelineError, SakError, StoreError: As ``survey``.
    """
    if not studies:
        return
    # A cluster's workers have devices of their own.
    device = torch.device("cpu") if studies[0][1].extract.scheduler else pick_device(studies[0][1].device)
    refusal = None
    for draw in (False, True):
        plan = survey(studies, device=device, done=False, draw=draw).plan
        refusal = over_budget(plan, study_budget(studies[0][1], stores=plan.stores, device=device))
        if refusal is None:
            return
    raise BudgetError(refusal)
