"""The ``sak data`` commands: parse, call one stage."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.tables import print_table

__all__ = ["data_app"]

data_app = typer.Typer(no_args_is_help=True, help="Make and check data sets.")


@data_app.callback()
def data_sets() -> None:
    """Make and check data sets."""


class Layout(StrEnum):
    """On-disk layouts that ``sak data scenes`` writes."""

    imagefolder = "imagefolder"
    pascal_context = "pascal-context"
    nyud = "nyud"
    cityscapes = "cityscapes"


@data_app.command("scenes", epilog="Example:  sak data scenes --layout nyud --out scenes_nyud --train 200 --val 50")
def data_scenes(
    layout: Annotated[Layout, typer.Option(help="Whose on-disk layout to write.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write; created if absent.")],
    train: Annotated[int, typer.Option(min=1, help="Training scenes.")] = 64,
    val: Annotated[int, typer.Option(min=1, help="Validation scenes.")] = 16,
    size: Annotated[int, typer.Option(min=16, help="Side of a scene in pixels.")] = 128,
    seed: Annotated[int, typer.Option(help="Another seed gives other scenes.")] = 0,
) -> None:
    """Render the built-in scenes with labels, in the layout of an image folder or of a published data set.

    The readers of the real data sets then run on them: data.eval.source={name: nyud, root: DIR, split: val}.
    """
    from pipeline.stages.data import write_scenes

    write_scenes(layout.value, out=out, train=train, val=val, size=size, seed=seed)
    print(f"{train} training and {val} validation scenes in {out}")


@data_app.command("check", epilog="Example:  sak data check PASCALContext")
def data_check(
    root: Annotated[str, typer.Argument(metavar="DIR", help="The data set's folder, as a recipe names it.")],
    kind: Annotated[
        str | None,
        typer.Option("--as", metavar="KIND", help="A source's name, as a recipe gives it. By its folders, if absent."),
    ] = None,
    splits: Annotated[
        list[str] | None, typer.Option("--split", metavar="SPLIT", help="Only this split; may be repeated.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", "-w", min=1, metavar="N", help="Processes. One a processor, if absent.")
    ] = None,
    show: Annotated[int, typer.Option(min=0, metavar="N", help="Most faults to print.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with every fault, in place of tables.")] = False,
) -> None:
    """Decode every image and label of a data set once; exit 1 and name what is missing, damaged or out of range.

    Lists, counts, sizes and label ranges are checked. Another number of images than was published is said, but is no
    fault. Part maps and boundaries that are derived from annotations are in the cache afterwards.
    """
    from pipeline.stages.data import check_data, label_table, report_json, split_table

    report = check_data(root, kind=kind, splits=splits or (), workers=workers)
    if as_json:
        print(json.dumps(report_json(report), indent=1))
    else:
        print(f"{root}: {report.kind}")
        print_table(split_table(report))
        labels = label_table(report)
        if labels is not None:
            print_table(labels)
        for note in report.notes:
            print(f"note: {note}")
        for fault in report.faults[:show]:
            print(f"fault: {fault}")
        if len(report.faults) > show:
            print(f"{len(report.faults) - show:,} more faults; --json prints all")
        print(f"{len(report.faults):,} faults" if report.faults else "every file is as it should be")
    if report.faults:
        raise typer.Exit(1)
