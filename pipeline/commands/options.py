"""Arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["GpuWorkers", "Overrides", "RecipeFile", "Runs", "Scheduler", "Workers"]

RecipeFile = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="Recipe file (YAML); the shipped ones are in workflows/.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE...",
        help="Changes to the recipe: dotted keys, values read as YAML, as in distill.steps=100 student.router=none.",
    ),
]
Runs = Annotated[
    list[str] | None,
    typer.Option("--run", "-r", metavar="NAME", help="Only this run; repeat for several. All of them, if absent."),
]

Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        "-w",
        min=1,
        metavar="N",
        help="Start N Dask workers on this machine; each makes whole shards, views and teachers, with its share of"
        " the cores. As extract.engine=dask extract.workers=N.",
    ),
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Use a Dask cluster that exists: its scheduler's address, tcp://HOST:8786, or scheduler file (.json)."
        " Its workers must see the store, images and weights under the same paths. As extract.engine=dask"
        " extract.scheduler=ADDRESS.",
    ),
]
GpuWorkers = Annotated[
    bool,
    typer.Option(
        "--gpu-workers",
        help="With --scheduler: teachers wait for workers with the resource GPU (dask worker --resources GPU=1)."
        " Where a worker has it when the run starts, that goes without saying.",
    ),
]
