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
    """Bytes, and what sets them.

    Attributes:
        disk: The number of the disk, where they are what is free on it: stores on one disk share them.
    """

    bytes: int
    what: str
    disk: int | None = None


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
            disk[store] = Limit(free.bytes, "free on its disk", free.disk)
    memory, own = None, available_memory()
    if config.max_memory is not None:
        memory = Limit(parse_bytes(config.max_memory, key="extract.max_memory"), "extract.max_memory")
    elif own is not None and config.scheduler is None:
        memory = Limit(own + own_memory(), "available here")
    on_device = None
    if device.type == "cuda" and config.scheduler is None:
        on_device = Limit(torch.cuda.mem_get_info(device)[0], f"free on {torch.cuda.get_device_name(device)}")
    return Budget(disk, memory, on_device)


def process_memory(plan: Plan, /, *, base: int) -> Memory:
    """What each process of the plan takes.

    Args:
        base: What it holds before it begins.
    """
    return extract_memory(plan, base=base, keep=KEEP_BYTES)


def over_budget(plan: Plan, budget: Budget, /, *, base: int) -> str | None:
    """Why a plan is refused, in one line; None where it is not.

    Args:
        base: As in ``process_memory``.
    """
    if plan.done:
        return None
    need = process_memory(plan, base=base)
    return "; ".join([*_disk_faults(plan, budget), *_memory_faults(plan, budget, need)]) or None


def _disk_faults(plan: Plan, budget: Budget) -> Iterator[str]:
    for stores in _sharing(plan, budget):
        limit, size = budget.disk.get(stores[0]), sum(map(plan.disk, stores))
        if limit is None or size <= limit.bytes:
            continue
        columns = {key: item.missing_bytes for key, item in plan.columns.items() if key.views.store in stores}
        largest = max(columns, key=lambda key: columns[key], default=None)
        where = f" in {' and '.join(stores)}"
        mend = "fewer images (data.*.source.images) or views (data.*.views)"
        if largest is not None:
            name, share = largest.teacher, columns[largest] / size
            mend = (
                f"a smaller codec (extract.codec={{name: klt, error: 0.3}}; sak store tune compares them), a grid"
                f" (teachers.{name}.grid: its columns over {largest.views.name} are {share:.0%}), {mend}"
            )
        yield f"{_excess('disk', size, limit, where=where)}: take {mend}{_or_raise(limit, 'extract.max_disk')}"


def _sharing(plan: Plan, budget: Budget) -> list[list[str]]:
    """Stores by what limits them."""
    found: dict[object, list[str]] = {}
    for store in plan.stores:
        limit = budget.disk.get(store)
        found.setdefault(store if limit is None or limit.disk is None else limit.disk, []).append(store)
    return list(found.values())


def _memory_faults(plan: Plan, budget: Budget, need: Memory) -> Iterator[str]:
    engine = plan.engine
    host = (need.host if engine.accelerator else need.total) * engine.workers
    if budget.memory is not None and host > budget.memory.bytes:
        where = f" in {engine.workers} processes" if engine.workers > 1 else ""
        fault = _excess("memory", host, budget.memory, where=where)
        yield f"{fault}: {_memory_mend(plan, need)}{_or_raise(budget.memory, 'extract.max_memory')}"
    on_device = need.device * engine.sharing
    if engine.accelerator and budget.device is not None and on_device > budget.device.bytes:
        sharing = f" from {engine.sharing} workers" if engine.sharing > 1 else ""
        fault = _excess("memory", on_device, budget.device, where=f" on {engine.device}{sharing}")
        workers = " or extract.workers" if sharing else ""
        yield f"{fault}: lower {_batch(plan)}{workers}"


def _memory_mend(plan: Plan, need: Memory) -> str:
    most = max((item.shard_rows for item in plan.views.values()), default=0)
    batch, shards = _batch(plan), f"data.*.rows_per_shard (now up to {most})"
    first, second = (batch, shards) if need.device >= need.encoded + need.pixels else (shards, batch)
    workers = " or extract.workers" if plan.engine.workers > 1 else ""
    return f"lower {first}, or {second}{workers}"


def _batch(plan: Plan) -> str:
    # Of auto one row is counted, so that only smaller rows take less.
    return "data.*.view.size" if plan.engine.fits else f"extract.batch (now {plan.engine.batch})"


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
    refusal, base = None, own_memory()
    for draw in (False, True):
        plan = survey(studies, device=device, done=False, draw=draw).plan
        refusal = over_budget(plan, study_budget(studies[0][1], stores=plan.stores, device=device), base=base)
        if refusal is None:
            return
    raise BudgetError(refusal)
