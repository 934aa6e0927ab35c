"""The ``sak data`` commands: parse, call one stage."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["data_app"]

data_app = typer.Typer(no_args_is_help=True, help="Make data sets.")


@data_app.callback()
def data_sets() -> None:
    """Make data sets."""


class Layout(StrEnum):
    """On-disk layouts that ``sak data scenes`` writes."""

    imagefolder = "imagefolder"
    pascal_context = "pascal-context"
    nyud = "nyud"


@data_app.command("scenes", epilog="Example:  sak data scenes --layout nyud --out scenes_nyud --train 200 --val 50")
def data_scenes(
    layout: Annotated[Layout, typer.Option(help="Whose on-disk layout to write.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write; created if absent.")],
    train: Annotated[int, typer.Option(min=1, help="Training scenes.")] = 64,
    val: Annotated[int, typer.Option(min=1, help="Validation scenes.")] = 16,
    size: Annotated[int, typer.Option(min=16, help="Side of a scene in pixels.")] = 128,
    seed: Annotated[int, typer.Option(help="Another seed gives other scenes.")] = 0,
) -> None:
    """Render the built-in scenes with labels, in the layout of an image folder, PASCAL-Context or NYUD-v2.

    The readers of the real data sets then run on them: data.eval.source={name: nyud, root: DIR, split: val}.
    """
    from pipeline.stages.data import write_scenes

    write_scenes(layout.value, out=out, train=train, val=val, size=size, seed=seed)
    print(f"{train} training and {val} validation scenes in {out}")
