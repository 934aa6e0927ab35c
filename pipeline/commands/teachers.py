"""The ``sak teachers`` commands: parse, call one stage, print what it returns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.tables import print_table

__all__ = ["teachers_app"]

teachers_app = typer.Typer(no_args_is_help=True, help="Look at teachers before one is run.")

View = Annotated[
    int,
    typer.Option(
        "--view", min=16, metavar="SIDE", help="Side of the square views they would see; a student's grid is a 16th."
    ),
]
WeightsFolder = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        metavar="DIR",
        help="Look for weight files here too: NAME.safetensors, or the name a publisher gives them. .pth, .pt, .bin as"
        " well.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON in place of the table.")]


@teachers_app.command("ls", epilog="Example:  sak teachers ls dinov2 --cost --view 384")
def teachers_ls(
    pattern: Annotated[str, typer.Argument(metavar="PART", help="Only names that contain this.")] = "",
    cost: Annotated[
        bool, typer.Option("--cost", help="Count parameters, arithmetic and bytes an image too: half a minute for all.")
    ] = False,
    view: View = 384,
    weights: WeightsFolder = None,
    as_json: AsJson = False,
) -> None:
    """List the teachers that a recipe can name, each with its own preprocessing, levels and licence.

    In a recipe: teachers: {dinov2: {name: dinov2_vitb14, pretrained: true}}, or checkpoint: FILE.

    Files load under timm's names and under those of OpenAI, OpenCLIP, DINOv2, DINOv3, SAM, SAM 2, AIMv2, RADIO, Theia
    and the transformers package; every key must find its place. "weights" tells whether they are on this machine: in
    the cache of the hub or of torch, or in --weights. Any other timm model is a teacher too: timm: MODEL.
    """
    from pipeline.stages.teachers import about_teachers, find_teachers, ls_table

    abouts = about_teachers(find_teachers(pattern, weights=weights), view=view, cost=cost)
    if as_json:
        print(json.dumps(abouts, indent=1))
        return
    print_table(ls_table(abouts))


@teachers_app.command("info", epilog="Example:  sak teachers info sam_vitb --view 512")
def teachers_info(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A teacher, as sak teachers ls prints it.")],
    view: View = 384,
    weights: WeightsFolder = None,
    as_json: AsJson = False,
) -> None:
    """Show one teacher: how it sees a view, its maps, what a forward costs, and bytes an image by codec.

    Nothing is loaded or allocated, whatever its size. Bytes are those before the store's lossless byte codec, except
    for klt, whose rate is nominal: sak store tune measures rates on your images.
    """
    from pipeline.stages.teachers import about_teacher, find_teachers, info_table

    (teacher,) = find_teachers(name, weights=weights, exact=True)
    about = about_teacher(teacher, view=view)
    if as_json:
        print(json.dumps(about, indent=1))
        return
    print_table(info_table(about))
