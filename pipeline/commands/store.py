"""The ``sak store`` commands: parse, call one stage, print what it returns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.tables import print_table

if TYPE_CHECKING:
    from pipeline.config import Study

__all__ = ["store_app"]

store_app = typer.Typer(no_args_is_help=True, help="Look into a feature store and check it.")

Root = Annotated[
    str,
    typer.Argument(metavar="STORE", help="Folder or s3://bucket/prefix of the store: the key store of a recipe."),
]

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE...", help="Changes to the recipe, as sak run takes them."),
]


@store_app.command("ls", epilog="Example:  sak store ls runs/store")
def store_ls(root: Root) -> None:
    """List view sets and columns: rows, shards, size, size against plain fp16, who uses them, and who could.

    "used by" counts the experiments on record; "holds" is what a recipe's teacher must say to read the column as it is.
    """
    from pipeline.stages.housekeeping import list_store

    print_table(list_store(root))


@store_app.command("info", epilog="Example:  sak store info runs/store semantics-0123456789abcdef")
def store_info(
    root: Root,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A view set or column, as sak store ls prints it.")],
) -> None:
    """Show all that is recorded of a view set or column, with its codec's measured error and the rows left out."""
    from pipeline.stages.inspect import show

    print(show(root, name), end="")


@store_app.command(
    "verify",
    epilog="Example:  sak store verify runs/store --recompute 32 --recipe workflows/quickstart.yaml",
)
def store_verify(
    root: Root,
    overrides: Overrides = None,
    recompute: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Also make N rows of each view set again, and run their teachers again."),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(metavar="RECIPE", help="The recipe that made the store; for --recompute.")
    ] = None,
) -> None:
    """Read every committed byte again; exit 1 and name what differs from its record.

    Nothing is repaired: sak store repair does that, and the last lines say what to do by hand. Rows still to be
    written are listed as info, and sak extract writes them. Files of a part that has no commit record are damage:
    left by a writer that died, or the record was deleted. So is a part that an experiment on record reads and that is
    gone or was made again with other bytes. Writers may work meanwhile: a part in the making is info.

    With --recompute, N rows spread over each view set are drawn again from their images and compared byte for byte, and
    the recipe's teachers run again over the stored pixels of N rows. A column fails when its stored features differ
    from that by more than 1.25 times the error on its record, plus 0.001 for another device's rounding.
    "equal numbers" says how many of the stored numbers come out the same: all of them, on the machine that made them.
    """
    if (recompute is None) != (recipe is None):
        raise typer.BadParameter("--recompute N and --recipe RECIPE belong together")
    if overrides and recipe is None:
        raise typer.BadParameter(
            f"{overrides[0]}: changes a recipe, and none is given; add --recompute N --recipe RECIPE"
        )
    studies = _studies(recipe, overrides) if recipe is not None else []
    from pipeline.stages.inspect import verify_store

    verdict = verify_store(root)
    for line in verdict.lines:
        print(line)
    print("damaged" if verdict.failed else "every committed byte is as recorded")
    failed = verdict.failed
    if failed and recompute is not None:
        print("nothing was computed again: repair the store first")
    elif recompute is not None:
        failed = _recompute(root, studies, rows=recompute)
    if failed:
        raise typer.Exit(1)


@store_app.command("repair", epilog="Example:  sak store repair runs/store workflows/quickstart.yaml")
def store_repair(
    root: Root,
    recipe: Annotated[
        Path,
        typer.Argument(metavar="RECIPE", help="The recipe that made the store: it says where images and teachers are."),
    ],
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing; print what would be done.")] = False,
    delete_stray: Annotated[
        bool, typer.Option("--delete-stray", help="Delete files that belong to nothing, and what dead writers left.")
    ] = False,
) -> None:
    """Verify a store and make again just what is damaged, by the code that made it; exit 1 when damage is left.

    Images come from the recipe's data, features from the stored pixels; a teacher is loaded only when something of its
    columns is damaged. What the recipe cannot make is listed with what to do by hand, and not touched. Interrupted, the
    same command goes on.
    """
    studies = _studies(recipe, overrides)
    from pipeline.stages.repair import repair_store

    verdict = repair_store(root, studies, dry_run=dry_run, delete_stray=delete_stray)
    for line in verdict.lines:
        print(line)
    whole = "nothing would be left damaged" if dry_run else "every committed byte is as recorded"
    print(("damage would be left" if dry_run else "damage is left") if verdict.failed else whole)
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


@store_app.command("du", epilog="Example:  sak store du runs/store")
def store_du(root: Root) -> None:
    """Show where a store's bytes are: by view set, column and level, and which of them nobody can read.

    Dead bytes are those of discarded or unfinished parts and of writers that died; sak store gc frees them.
    """
    from pipeline.stages.housekeeping import measure_store

    print_table(measure_store(root))


@store_app.command("gc", epilog="Example:  sak store gc runs/store --dry-run")
def store_gc(
    root: Root,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would go, and how many bytes.")] = False,
    grace_hours: Annotated[
        float,
        typer.Option(min=0, help="What was written to within so many hours stays: its experiment may not have begun."),
    ] = 168,
    forget_missing: Annotated[
        bool,
        typer.Option("--forget-missing", help="Drop the records of this host's experiments whose folder is gone."),
    ] = False,
) -> None:
    """Remove the columns and view sets that no experiment uses, and what writers that died left behind.

    Every stage that reads a store leaves a record there of what it reads, and what a record names stays. Interrupted
    at any moment, the store is sound, and the same command goes on.
    """
    from pipeline.stages.housekeeping import collect_garbage

    for line in collect_garbage(root, dry_run=dry_run, grace_hours=grace_hours, forget_missing=forget_missing).lines:
        print(line)


@store_app.command("export", epilog="Example:  sak store export runs/store train/sam-0123456789abcdef --out shared/sam")
def store_export(
    root: Root,
    name: Annotated[str, typer.Argument(metavar="VIEW_SET/COLUMN", help="The column, and the view set it is over.")],
    out: Annotated[str, typer.Option(metavar="DIR", help="Folder to make; it may hold this export, cut short.")],
    backend: Annotated[
        str, typer.Option(help="How the column is stored there: webdataset (a tar per shard) or zarr.")
    ] = "webdataset",
    with_images: Annotated[
        bool, typer.Option("--with-images", help="Copy the view set's images too, so that it can be imported anywhere.")
    ] = False,
) -> None:
    """Write one column into a folder of its own, to share it or to move it to another store.

    The folder is a small store: it holds the column, the description and index of its view set, and the commit records,
    so that sak store import can prove whose rows these are. Interrupted, the same command goes on where it stopped.
    """
    from pipeline.stages.transfer import export_to

    print(export_to(str(root), name, out, backend=backend, images=with_images))


@store_app.command("import", epilog="Example:  sak store import runs/store shared/sam")
def store_import(
    root: Root,
    source: Annotated[str, typer.Argument(metavar="DIR", help="What sak store export wrote.")],
    backend: Annotated[str, typer.Option(help="How the column is stored here: zarr or webdataset.")] = "zarr",
) -> None:
    """Add an exported column to a store, after proving that both have the same rows, keys and images.

    A column keeps its name and fingerprint, so that recipes find it as if it had been extracted here. Where the store
    lacks the view set, an export made --with-images brings it along. Interrupted, the same command goes on.
    """
    from pipeline.stages.transfer import import_from

    print(import_from(str(root), source, backend=backend))


@store_app.command(
    "tune", epilog="Example:  sak store tune workflows/quickstart.yaml --fidelity 0.99 --out codecs.html"
)
def store_tune(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe file (YAML).")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE...", help="Changes to the recipe, as for sak run.")
    ] = None,
    teacher: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this teacher; repeat for several.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Held-out rows to measure on.")] = 64,
    fit_rows: Annotated[int, typer.Option(min=1, help="Other rows that fitted codecs (klt) are fitted to.")] = 64,
    fidelity: Annotated[
        float | None,
        typer.Option(help="Least cosine to accept, 0.988 if absent; with --metric loss the greatest loss."),
    ] = None,
    metric: Annotated[
        str, typer.Option(help="What --fidelity is in: token_cosine, image_cosine or loss.")
    ] = "token_cosine",
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write every number there.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with charts (HTML).")] = None,
) -> None:
    """Try every codec on a sample of a recipe's views and teachers, and say which is the cheapest that is good enough.

    Measured for each: bits a value on disk, cosine per token and per image, relative error, the distillation loss
    that the codec alone causes, and speed. The last lines are what to write into the recipe and the bytes it will
    take. Needs the teachers and images; reads and writes no store.
    """
    from pipeline.recipes import load_recipe
    from pipeline.stages.tune import rate_table, tune
    from pipeline.tuning import TuneOptions, tuning_json, verdict_lines

    loaded = load_recipe(recipe, overrides or [])
    options = TuneOptions(rows=rows, fit_rows=fit_rows, fidelity=fidelity, metric=metric, teachers=tuple(teacher or ()))
    found = tune(loaded.study, options=options)
    for item in found.teachers:
        print_table(rate_table(found, item))
    for line in verdict_lines(found):
        print(line)
    if json_file:
        json_file.write_text(json.dumps(tuning_json(found), indent=1) + "\n", encoding="utf-8")
    if out:
        from pipeline.report.tuning import write_tuning

        print(f"page: {write_tuning(found, out, title=loaded.name)}")


def _studies(recipe: Path, overrides: list[str] | None) -> list[Study]:
    from pipeline.recipes import load_recipe

    return [plan.study for plan in load_recipe(recipe, overrides or []).runs]


def _recompute(root: str, studies: list[Study], *, rows: int) -> bool:
    """Run teachers again, print what that gives; whether anything is wrong."""
    from pipeline.stages.recompute import recompute

    found = recompute(root, studies, rows=rows)
    print_table(found.table)
    for line in found.lines:
        print(line)
    print("not what the recipe makes" if found.failed else f"{rows} rows of each view set are what the recipe makes")
    return found.failed
