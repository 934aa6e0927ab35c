"""``sak bench store``: this store against the limits of the machine and against what a user would pick instead."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline.bench.check import check_contender
from pipeline.bench.contender import BenchError, Contender, Facts
from pipeline.bench.files import flush, folder_bytes, machine, memory_bytes, scratch
from pipeline.bench.held import Held, hold
from pipeline.bench.limits import limits
from pipeline.bench.measure import Line, describe, measure
from pipeline.bench.ours import ours
from pipeline.bench.peers.base import Job, Peer, missing
from pipeline.bench.peers.registry import PEERS
from pipeline.bench.plan import BenchPlan
from pipeline.bench.tables import BenchResult
from pipeline.runtime import torch_threads
from pipeline.tracking import progress_bar
from store.codecs.base import PartSpec

__all__ = ["bench_store"]

_PACKAGES = ("numpy", "torch", "webdataset", "h5py", "mosaicml-streaming", "litdata", "zarr", "zstandard")


def bench_store(plan: BenchPlan, /) -> BenchResult:
    """Make or copy the rows, write every peer, check all against what was written, then time them in turn.

    What is written lies in a new folder, which is removed at the end, whatever the end.

    Raises:
        BenchError: The disk has too little room, or our own reader gave wrong data.
        StoreError: The column to copy cannot be read, or the disk is full.
    """
    with scratch(plan.folder) as folder, torch_threads(plan.threads), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peers' libraries, which their users cannot mend here
        return _bench(plan, folder)


def _bench(plan: BenchPlan, folder: Path) -> BenchResult:
    held = hold(plan, folder / "sak")
    _require_room(held, plan, folder)
    peers, absent = _write_peers(held, plan, folder)
    flush(folder)
    contenders: list[Contender] = [*ours(held, plan), *limits(held, plan)]
    for contender in contenders:
        check_contender(contender, held)
    for peer in peers:
        try:
            opened = PEERS[peer].open(_job(peer, held, plan, folder))
            check_contender(opened, held)
            contenders.append(opened)
        except Exception as error:
            # Whatever a peer's library raises: the others are still to be measured.
            absent.append(_absent(PEERS[peer], describe(error)))
    before = os.getloadavg()[0]
    with progress_bar("turns") as bar:
        shown = bar.add_task("measure", total=plan.rounds * len(contenders))
        lines = measure(contenders, plan, rows=held.rows, done=lambda name: bar.advance(shown, note=name))
    for contender in contenders:
        contender.close()
    conditions = _conditions(held, plan, lines, folder) | {"load_before": before, "load_after": os.getloadavg()[0]}
    return BenchResult(conditions=conditions, handed=_handed(held), lines=[*lines, *absent])


def _write_peers(held: Held, plan: BenchPlan, folder: Path) -> tuple[list[str], list[Line]]:
    """Peers that were written, and lines that say why others were not."""
    written, absent = [], []
    with progress_bar("peers") as bar:
        shown = bar.add_task("write peers", total=len(plan.peers))
        for name in plan.peers:
            problem = missing(PEERS[name])
            if not problem:
                try:
                    PEERS[name].write(_job(name, held, plan, folder))
                    written.append(name)
                except Exception as error:
                    # As above.
                    problem = describe(error)
            if problem:
                absent.append(_absent(PEERS[name], problem))
            bar.advance(shown, note=name)
    return written, absent


def _job(name: str, held: Held, plan: BenchPlan, folder: Path) -> Job:
    return Job(folder / name, held, plan.batch)


def _absent(peer: Peer, problem: str) -> Line:
    facts = Facts(name=peer.name, kind="peer", fidelity=peer.fidelity, bytes_per_row=0, family=peer.family)
    return Line(facts, problem=problem)


def _handed(held: Held) -> dict[str, int]:
    sizes = {kind: sum(map(_size, held.shapes(kind).values())) for kind in ("stored", "fp16", "bf16")}
    return sizes | {"none": held.row_bytes}


def _size(spec: PartSpec) -> int:
    # NumPy knows no bfloat16.
    return spec.row_bytes if spec.dtype != "bfloat16" else PartSpec(shape=spec.shape, dtype="float16").row_bytes


def _require_room(held: Held, plan: BenchPlan, folder: Path) -> None:
    handed = _handed(held)
    need = held.rows * sum(handed[PEERS[name].fidelity] for name in plan.peers if not missing(PEERS[name]))
    free = shutil.disk_usage(folder).free
    if need > free:
        raise BenchError(
            f"{folder.parent}: expected {need / 1e9:.1f} GB free for {held.rows} rows of every peer, got "
            f"{free / 1e9:.1f} GB; lower --rows, choose fewer --peers or another --dir"
        )


def _conditions(held: Held, plan: BenchPlan, lines: Sequence[Line], folder: Path) -> dict[str, Any]:
    ours_bytes = lines[0].facts.bytes_per_row
    return {
        "date": date.today().isoformat(),
        "machine": machine(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
        "rows": held.rows,
        "batch": plan.batch,
        "columns": len(held.names),
        "codec": held.codec.to_json(),
        "values": held.values,
        "bits_per_value": ours_bytes * 8 / held.values,
        "stored_bytes_per_row": held.row_bytes,
        "threads": plan.threads,
        "rounds": plan.rounds,
        "seed": plan.seed,
        "features": "/".join(plan.source) if plan.source else "made",
        "cache": "dropped before every pass, where the system allows" if plan.cold else "warm",
        "exceeds_memory": 0 < memory_bytes() < 2 * folder_bytes(folder),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
