"""The ``sak`` command: parse, call one stage, turn expected errors into one line and exit code 2.

Stages are imported inside the commands, so that ``sak --help`` loads no torch.
"""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app", "main"]

app = typer.Typer(
    name="sak",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="""Distil a committee of vision foundation models into one multi-task student.

    Each teacher runs once over the images; its features go, compressed, into a store. Any number of students trains
    from the store without loading a teacher.

    Start with:  sak run workflows/quickstart.yaml
    """,
)
store_app = typer.Typer(no_args_is_help=True, help="Look into a feature store and check it.")
data_app = typer.Typer(no_args_is_help=True, help="Make data sets.")
teachers_app = typer.Typer(no_args_is_help=True, help="Built-in teachers.")
app.add_typer(store_app, name="store")
app.add_typer(data_app, name="data")
app.add_typer(teachers_app, name="teachers")

Recipe = Annotated[Path, typer.Argument(help="Recipe file (YAML); the shipped ones are in workflows/.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Overrides KEY=VALUE with dotted keys, read as YAML: distill.steps=100 student.router=none"),
]
Runs = Annotated[list[str] | None, typer.Option("--run", "-r", help="Only this run of the recipe; repeat for several.")]
Root = Annotated[Path, typer.Argument(help="Folder of the store.")]


class Layout(StrEnum):
    """On-disk layouts that ``sak data scenes`` writes."""

    imagefolder = "imagefolder"
    pascal_context = "pascal-context"
    nyud = "nyud"


@app.command()
def run(recipe: Recipe, overrides: Overrides = None, only: Runs = None) -> None:
    """Run every stage of a recipe, skip what is done, print the table and write the report.

    Interrupt it whenever you like: the same command goes on where it stopped.
    """
    from pipeline.stages.run import STAGES

    for stage in STAGES:
        _stage(stage, recipe, overrides, only)
    if only:
        print(f"finished {', '.join(only)}; the table and report need every run of the recipe")
    else:
        report(recipe, overrides)


@app.command()
def extract(recipe: Recipe, overrides: Overrides = None, only: Runs = None) -> None:
    """Write the views and teacher columns that a recipe reads into its store; done shards are never redone."""
    _stage("extract", recipe, overrides, only)


@app.command()
def distill(recipe: Recipe, overrides: Overrides = None, only: Runs = None) -> None:
    """Stage 1: train students on stored teacher features; no teacher is loaded and no label is read."""
    _stage("distill", recipe, overrides, only)


@app.command()
def finetune(recipe: Recipe, overrides: Overrides = None, only: Runs = None) -> None:
    """Stage 2: train routers and heads on the tasks, with the teachers' loss at weight finetune.alpha."""
    _stage("finetune", recipe, overrides, only)


@app.command(name="eval")
def evaluate(recipe: Recipe, overrides: Overrides = None, only: Runs = None) -> None:
    """Score finished students, alone, on held-out images."""
    _stage("eval", recipe, overrides, only)


@app.command()
def report(
    recipe: Recipe,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="File to write; by default report.html in the recipe's folder.")
    ] = None,
) -> None:
    """Print the results table of finished runs and write one self-contained HTML page."""
    from rich.console import Console

    from pipeline.results import results_table
    from pipeline.stages.report import report as write

    loaded = _load(recipe, overrides)
    path = out or loaded.out / "report.html"
    results = write(loaded, path, hint=_hint("run", recipe, overrides))
    Console().print(results_table(results))
    print(f"report: {path}")


@app.command()
def export(
    recipe: Recipe,
    out: Annotated[Path, typer.Option(help="File to write (.safetensors).")],
    run_name: Annotated[str, typer.Option("--run", "-r", help="Which run of the recipe.")],
    overrides: Overrides = None,
    what: Annotated[str, typer.Option(help="student (all of it) or stem (a plain timm ViT).")] = "student",
    dtype: Annotated[str, typer.Option(help="fp32, fp16 or bf16.")] = "fp32",
) -> None:
    """Write a finished run's weights as safetensors."""
    from pipeline.stages.export import export as write
    from pipeline.stages.run import select

    loaded = _load(recipe, overrides)
    (plan,) = select(loaded, [run_name])
    hint = _hint("run", recipe, overrides)
    size = write(plan.study, loaded.out, out, what=what, dtype=dtype, hint=hint)
    print(f"{out}: {size / 1e6:.2f} MB")


@store_app.command("ls")
def store_ls(root: Root) -> None:
    """List view sets and columns: rows, shards, size, and size against plain fp16."""
    from rich.console import Console

    from pipeline.stages.inspect import list_store

    Console().print(list_store(root))


@store_app.command("info")
def store_info(
    root: Root, name: Annotated[str, typer.Argument(help="A view set or column, as sak store ls prints it.")]
) -> None:
    """Show all that is recorded of a view set or column, with its codec's measured error."""
    from pipeline.stages.inspect import show

    print(show(root, name), end="")


@store_app.command("verify")
def store_verify(root: Root) -> None:
    """Read every committed byte again; exit 1 and name what differs from its record."""
    from pipeline.stages.inspect import verify_store

    verdict = verify_store(root)
    for line in verdict.lines:
        print(line)
    print("damaged" if verdict.failed else "every committed byte is as recorded")
    if verdict.failed:
        raise typer.Exit(1)


@data_app.command("scenes")
def data_scenes(
    layout: Annotated[Layout, typer.Option(help="Whose on-disk layout to write.")],
    out: Annotated[Path, typer.Option(help="Folder to write; created if absent.")],
    train: Annotated[int, typer.Option(min=1, help="Training scenes.")] = 64,
    val: Annotated[int, typer.Option(min=1, help="Validation scenes.")] = 16,
    size: Annotated[int, typer.Option(min=16, help="Side of a scene in pixels.")] = 128,
    seed: Annotated[int, typer.Option(help="Another seed gives other scenes.")] = 0,
) -> None:
    """Render the built-in scenes with labels, in the layout of an image folder, PASCAL-Context or NYUD-v2."""
    from pipeline.stages.data import write_scenes

    write_scenes(layout.value, out=out, train=train, val=val, size=size, seed=seed)
    print(f"{train} training and {val} validation scenes in {out}")


@teachers_app.command("ls")
def teachers_ls() -> None:
    """List the built-in teachers; any timm model is a teacher too (timm: NAME in a recipe)."""
    from pipeline.stages.inspect import list_teachers

    for line in list_teachers():
        print(line)


def _stage(stage: str, recipe: Path, overrides: list[str] | None, only: list[str] | None) -> None:
    from pipeline.stages.run import run_stage, select

    loaded = _load(recipe, overrides)
    run_stage(stage, loaded, select(loaded, only or []), hint=_hint("run", recipe, overrides))


def _load(recipe: Path, overrides: list[str] | None):  # type: ignore[no-untyped-def]  # naming the type would load torch
    from pipeline.recipes import load_recipe

    return load_recipe(recipe, overrides or [])


def _hint(command: str, recipe: Path, overrides: list[str] | None) -> str:
    return " ".join(["sak", command, str(recipe), *(overrides or [])])


def main() -> None:
    """Entry point: one line and exit code 2 for every error that a user can mend."""
    try:
        app()
    except Exception as error:
        from pipeline.errors import EXPECTED

        if not isinstance(error, EXPECTED):
            raise
        print(f"sak: {error}", file=sys.stderr)
        sys.exit(2)
