"""The ``sak bench`` commands: parse, call one stage, print what it returns."""

from __future__ import annotations

import dataclasses
import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.tables import print_table

if TYPE_CHECKING:
    from pipeline.bench.extraction_tables import ExtractionResult
    from pipeline.bench.tables import BenchResult

__all__ = ["bench_app"]

bench_app = typer.Typer(no_args_is_help=True, help="Measure on this machine.")


class Precision(StrEnum):
    """Number formats that a teacher runs in."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


Recipe = Annotated[
    Path | None, typer.Argument(metavar="[RECIPE", help="Measure this recipe's teachers, as it would run them.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE...]", help="Changes to the recipe, as in extract.compile=true.")
]
Teachers = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="In place of a recipe: a published teacher or a timm model, with random weights; repeat for more.",
    ),
]
Codec = Annotated[
    str | None, typer.Option(metavar="CODEC", help="As in a recipe: int8, or {name: ...}; a recipe's own, or int8.")
]
Batch = Annotated[
    str | None, typer.Option(metavar="N", help="Rows that a teacher sees at once, or auto; a recipe's own, or 32.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="Torch's threads; a recipe's own, or as it chooses.")]
Folder = Annotated[
    Path | None, typer.Option("--dir", metavar="DIR", help="Folder to write to; what is written is removed.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, with every round, in place of the table.")]


@bench_app.callback()
def bench() -> None:
    """Measure on this machine."""


@bench_app.command(
    "store", epilog="Example:  sak bench store --rows 1024 --dir /data/scratch --peers webdataset,memmap"
)
def bench_store(
    rows: Annotated[int, typer.Option(min=2, help="Rows to hold; an image's features take a row.")] = 512,
    batch: Annotated[int, typer.Option(min=1, help="Rows of a training batch.")] = 32,
    columns: Annotated[int, typer.Option(min=1, help="Made teachers whose features each row has.")] = 1,
    codec: Annotated[
        str, typer.Option(metavar="CODEC", help="Codec of the made features, as in a recipe: int8, or {name: ...}.")
    ] = "int8",
    source: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="STORE/VIEW_SET/COLUMN", help="Measure a real column's rows; nothing is written to it."
        ),
    ] = None,
    peers: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Only these peers; none for none. All that are installed, if absent."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds in which all take turns; medians are shown.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="Threads of our reader and of its limits.")] = 1,
    device: Annotated[
        str | None, typer.Option(metavar="DEVICE", help="Also decode to floats there, as training does: cuda, cpu.")
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--dir", metavar="DIR", help="Folder on the disk to measure; what is written is removed."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives other features.")] = 0,
    cold: Annotated[bool, typer.Option("--cold", help="Drop cached file pages before every pass.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, with every round, in place of the table.")
    ] = False,
) -> None:
    """Read shuffled batches, rows in order and single rows from this store, and from what one would use instead.

    All hold the same features, and each one's rows are compared with what was written before any is timed. The limits
    are what no reader of the same bytes can beat. Peers that are not installed are listed with what installs them.
    512 rows take about 5 GB on the disk and some minutes.
    """
    from pipeline.bench.plan import BenchPlan, parse_codec, parse_peers, parse_source
    from pipeline.stages.bench import bench_store as measure

    plan = BenchPlan(
        rows=rows,
        batch=batch,
        columns=columns,
        codec=parse_codec(codec),
        source=parse_source(source),
        peers=parse_peers(peers),
        rounds=rounds,
        threads=threads,
        device=device,
        folder=folder,
        seed=seed,
        cold=cold,
    )
    _show(measure(plan), as_json=as_json)


@bench_app.command(
    "extract",
    epilog="Example:  sak bench extract --teacher dinov2_vitb14 --teacher sam_vitb --size 384 --codec int8",
)
def bench_extract(
    recipe: Recipe = None,
    overrides: Overrides = None,
    teacher: Teachers = None,
    size: Annotated[int | None, typer.Option(min=8, help="Side of the views; a recipe's own, or 224.")] = None,
    images: Annotated[int, typer.Option(min=1, help="Images to make and extract in each round.")] = 64,
    shard: Annotated[int, typer.Option(min=1, help="Rows of a shard.")] = 256,
    codec: Codec = None,
    device: Annotated[str | None, typer.Option(metavar="DEVICE", help="cuda, cpu, or auto.")] = None,
    batch: Batch = None,
    precision: Annotated[Precision | None, typer.Option(help="The teachers', by autocast.")] = None,
    channels_last: Annotated[bool, typer.Option("--channels-last", help="Teachers in this memory format.")] = False,
    compiled: Annotated[bool, typer.Option("--compile", help="Teachers through torch.compile.")] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of bare teacher and extraction in turn.")] = 3,
    threads: Threads = None,
    projected: Annotated[int, typer.Option("--for", min=1, metavar="N", help="Tell hours for N images.")] = 1_281_167,
    folder: Folder = None,
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives other images.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Extract made images, and compare with the bare teacher on the same batches in memory, in turn.

    Tells rows a second, the time of each step, bytes that cross to the device and to the disk, and the hours that so
    many images would take. How extraction works, and what was measured: docs/extraction.md.
    """
    from pipeline.stages.bench_extract import asked_plan
    from pipeline.stages.bench_extract import bench_extract as measure

    asked = {
        "device": device,
        "threads": threads,
        "extract.codec": codec,
        "extract.batch": batch,
        "extract.precision": precision.value if precision else None,
        "extract.channels_last": channels_last or None,
        "extract.compile": compiled or None,
    }
    changes = [f"{key}={str(value).lower() if value is True else value}" for key, value in asked.items() if value]
    plan = asked_plan(recipe, teacher or [], overrides=[*(overrides or []), *changes])
    size_hw = (size, size) if size else plan.size
    plan = dataclasses.replace(plan, size=size_hw, images=images, shard=shard, rounds=rounds, projected=projected)
    _show_extraction(measure(dataclasses.replace(plan, folder=folder, seed=seed)), as_json=as_json)


@bench_app.command(
    "step", epilog="Example:  sak bench step --teacher dinov2_vitb14 --size 384 --batch 64 --precision bf16"
)
def bench_step(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="[RECIPE", help="Measure this recipe's step, from its own store.")
    ] = None,
    overrides: Overrides = None,
    teacher: Teachers = None,
    student: Annotated[
        list[str] | None,
        typer.Option(metavar="STEM", help="A timm ViT; repeat for more; a recipe's own, or a ViT-S and a ViT-B."),
    ] = None,
    size: Annotated[int, typer.Option(min=8, help="Side of the made views.")] = 224,
    batch: Annotated[int | None, typer.Option(min=1, help="Rows of a step; a recipe's own, or 16.")] = None,
    codec: Codec = None,
    device: Annotated[str | None, typer.Option(metavar="DEVICE", help="cuda, cpu, or auto.")] = None,
    precision: Annotated[Precision | None, typer.Option(help="Of student and teachers, by autocast.")] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="The student through torch.compile.")] = False,
    steps: Annotated[int, typer.Option(min=1, help="Steps of a turn.")] = 10,
    warmup: Annotated[int, typer.Option(min=1, help="Steps before them that are not timed.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds in which all take turns; medians are shown.")] = 3,
    shard: Annotated[int, typer.Option(min=1, help="Rows of a made shard.")] = 64,
    cold: Annotated[bool, typer.Option("--cold", help="Drop cached file pages before every turn.")] = False,
    threads: Threads = None,
    folder: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Time the step of stage 1 with targets from a store, in memory, and from live teachers, in turn.

    Without a recipe, a small store is made of images and of the maps of teachers with random weights. The limit is what
    leaving out the teachers can gain at most, from counted multiply-adds. What was measured: docs/studies/step.md.
    """
    from pipeline.bench.step_tables import step_json, step_notes, step_table
    from pipeline.stages.bench_step import bench_step as measure
    from pipeline.stages.bench_step import step_plan

    asked = {
        "device": device,
        "threads": threads,
        "extract.codec": codec,
        "distill.batch": batch,
        "distill.precision": precision.value if precision else None,
        "extract.precision": precision.value if precision and recipe is None else None,
        "distill.compile": "true" if compiled else None,
    }
    changes = [*(overrides or []), *(f"{key}={value}" for key, value in asked.items() if value)]
    plan = step_plan(recipe, teachers=teacher or [], students=student or [], overrides=changes, size=size)
    plan = dataclasses.replace(plan, steps=steps, warmup=warmup, rounds=rounds, shard=shard, cold=cold, folder=folder)
    result = measure(plan)
    if as_json:
        print(json.dumps(step_json(result), indent=1))
        return
    print_table(step_table(result))
    for line in step_notes(result):
        print(line)


def _show_extraction(result: ExtractionResult, *, as_json: bool) -> None:
    from pipeline.bench.extraction_tables import extraction_json, extraction_notes, extraction_table

    if as_json:
        print(json.dumps(extraction_json(result), indent=1))
        return
    print_table(extraction_table(result))
    for line in extraction_notes(result):
        print(line)


def _show(result: BenchResult, *, as_json: bool) -> None:
    from pipeline.bench.tables import bench_json, bench_notes, bench_table

    if as_json:
        print(json.dumps(bench_json(result), indent=1))
        return
    print_table(bench_table(result))
    for line in bench_notes(result):
        print(line)
