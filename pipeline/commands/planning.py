"""Options of ``sak extract`` that plan it, and what ``--dry-run`` prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.tables import print_table

if TYPE_CHECKING:
    from pipeline.recipes import Recipe

__all__ = [
    "Calibrate",
    "DiskRate",
    "DryRun",
    "ImagesPerSecond",
    "MaxDisk",
    "MaxMemory",
    "PlanJson",
    "show_plan",
]

DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Write nothing; print rows missing, bytes, arithmetic, hours on this machine, memory, what training will"
        " read, and after how many student runs the store has paid for itself. Over a budget: exit code 2.",
    ),
]
Calibrate = Annotated[
    bool,
    typer.Option(
        "--calibrate/--no-calibrate",
        help="With --dry-run: run each teacher for some seconds; without, hours are not known and klt's sizes nominal.",
    ),
]
ImagesPerSecond = Annotated[
    float,
    typer.Option("--images-per-s", metavar="N", help="With --dry-run: images a second that students will train on."),
]
DiskRate = Annotated[
    float | None,
    typer.Option(
        "--disk-mb-s",
        metavar="MB",
        help="With --dry-run: megabytes a second that the store's disk reads; measured on what the store holds, if"
        " absent.",
    ),
]
PlanJson = Annotated[bool, typer.Option("--json", help="With --dry-run: print JSON in place of the tables.")]
MaxDisk = Annotated[
    str | None,
    typer.Option(
        "--max-disk",
        metavar="BYTES",
        help="Refuse to begin if more than this would be added to the store, as in 2TB; without it, more than is free"
        " on a local store's disk. As extract.max_disk=BYTES.",
    ),
]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        "--max-memory",
        metavar="BYTES",
        help="Refuse to begin if all processes here would need more than this, as in 16GB; without it, more than is"
        " available. As extract.max_memory=BYTES.",
    ),
]


def show_plan(
    recipe: Recipe, only: Sequence[str], /, *, calibrate: bool, rates: tuple[float, float | None], as_json: bool
) -> int:
    """Plan an extraction and print it; returns the exit code.

    Args:
        rates: Images a second in training, and megabytes a second of the disk, None to measure.

    Raises:
        PipelineError, SakError, StoreError: As the stage.
    """
    from pipeline.runs import select, substudies
    from pipeline.stages.plan import PlanOptions, plan_extract, plan_json, plan_lines, plan_tables

    studies = [labelled for plan in select(recipe, only) for labelled in substudies(plan)]
    images_per_s, disk_mb_s = rates
    options = PlanOptions(calibrate=calibrate, images_per_s=images_per_s, disk_mb_s=disk_mb_s)
    planned = plan_extract(studies, options=options)
    if as_json:
        print(json.dumps(plan_json(planned), indent=1))
    else:
        for table in plan_tables(planned):
            print_table(table)
        for line in plan_lines(planned):
            print(line)
    if planned.refusal is None:
        return 0
    print(f"sak: {planned.refusal}", file=sys.stderr)
    return 2
