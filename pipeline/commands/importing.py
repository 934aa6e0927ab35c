"""The ``sak import`` command: parse, call one stage, print what it returns."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.tables import print_table

__all__ = ["import_checkpoint"]


def import_checkpoint(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="Checkpoint of the published code: .pth, .pt, .ckpt, .bin or .safetensors."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Student to write, .safetensors. Without it, only tells what is in FILE."),
    ] = None,
    stem: Annotated[
        str | None, typer.Option(metavar="NAME", help="timm name of its vision transformer, if not of a usual size.")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="HxW", help="Rows x columns it was trained at, in pixels, if no square: 448x576."),
    ] = None,
    teachers: Annotated[
        str | None,
        typer.Option(metavar="A,B,...", help="Its teachers in the order of its configuration; a .pth keeps that."),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Data set of its tasks, such as nyud, if they do not tell.")
    ] = None,
) -> None:
    """Turn a checkpoint of the published code, of either stage, into a student that recipes take.

    What student it is (stem, teachers, aligners, routers, tasks) is read off its tensors. Every tensor of it must have
    its place, or nothing is written. No code in the file is run. How the file was normalised is not in it: the
    published code's ImageNet statistics, which are a recipe's default too, are noted.

    A stage-1 student starts stage 2 in place of distill, at any image size:
    sak finetune RECIPE distill=null student.trained=FILE. A stage-2 student is scored as it is:
    sak eval RECIPE distill=null finetune=null student.trained=FILE. More: docs/importing.md.
    """
    from pipeline.stages.import_student import import_student, known_of, parts_table, student_lines

    found = import_student(checkpoint, out, known=known_of(stem, size=size, teachers=teachers, dataset=dataset))
    print("\n".join(student_lines(found)))
    print_table(parts_table(found))
    if out is None:
        print("nothing written; --out FILE.safetensors makes a student of it")
    else:
        print(f"{out}: {out.stat().st_size / 1e6:.2f} MB; use it as student.trained={out}")
