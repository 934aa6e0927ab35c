"""The ``sak store`` commands: parse, call one stage, print what it returns."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.tables import print_table

__all__ = ["store_app"]

store_app = typer.Typer(no_args_is_help=True, help="Look into a feature store and check it.")

Root = Annotated[Path, typer.Argument(metavar="STORE", help="Folder of the store: the key store of a recipe.")]


@store_app.command("ls", epilog="Example:  sak store ls runs/store")
def store_ls(root: Root) -> None:
    """List view sets and columns: rows, shards, size, and size against plain fp16."""
    from pipeline.stages.inspect import list_store

    print_table(list_store(root))


@store_app.command("info", epilog="Example:  sak store info runs/store semantics-0123456789abcdef")
def store_info(
    root: Root,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A view set or column, as sak store ls prints it.")],
) -> None:
    """Show all that is recorded of a view set or column, with its codec's measured error and the rows left out."""
    from pipeline.stages.inspect import show

    print(show(root, name), end="")


@store_app.command("verify", epilog="Example:  sak store verify runs/store")
def store_verify(root: Root) -> None:
    """Read every committed byte again; exit 1 and name what differs from its record.

    Nothing is repaired; the last lines say what to do about each damaged part. What is merely unfinished is listed as
    info, and sak extract completes it.
    """
    from pipeline.stages.inspect import verify_store

    verdict = verify_store(root)
    for line in verdict.lines:
        print(line)
    print("damaged" if verdict.failed else "every committed byte is as recorded")
    if verdict.failed:
        raise typer.Exit(1)


@store_app.command("discard", epilog="Example:  sak store discard runs/store semantics-0123456789abcdef 3")
def store_discard(
    root: Root,
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="A view set, a column, or VIEW_SET/COLUMN where several have the column."),
    ],
    part: Annotated[int, typer.Argument(metavar="PART", min=0, help="Number of the part, as sak store verify says.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be dropped.")] = False,
) -> None:
    """Drop one damaged part; the same sak extract or sak run then makes just that part again."""
    from pipeline.stages.inspect import discard_part

    print(discard_part(root, name, part, dry_run=dry_run))
