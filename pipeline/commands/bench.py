"""The ``sak bench`` commands: parse, call one stage, print what it returns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.tables import print_table

if TYPE_CHECKING:
    from pipeline.bench.tables import BenchResult

__all__ = ["bench_app"]

bench_app = typer.Typer(no_args_is_help=True, help="Measure on this machine.")


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


def _show(result: BenchResult, *, as_json: bool) -> None:
    from pipeline.bench.tables import bench_json, bench_notes, bench_table

    if as_json:
        print(json.dumps(bench_json(result), indent=1))
        return
    print_table(bench_table(result))
    for line in bench_notes(result):
        print(line)
