"""The ``sak`` command: parse, call one stage, turn expected errors into one line and exit code 2.

Stages are imported inside the commands, after the recipe is read: ``sak --help`` and a mistyped key load no torch.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from pipeline.commands.bench import bench_app
from pipeline.commands.boundary import eval_boundary
from pipeline.commands.data import data_app
from pipeline.commands.importing import import_checkpoint
from pipeline.commands.options import GpuWorkers, Overrides, RecipeFile, Runs, Scheduler, Workers
from pipeline.commands.planning import (
    Calibrate,
    DiskRate,
    DryRun,
    ImagesPerSecond,
    MaxDisk,
    MaxMemory,
    PlanJson,
    show_plan,
)
from pipeline.commands.store import store_app
from pipeline.commands.tables import print_table
from pipeline.commands.teachers import teachers_app

if TYPE_CHECKING:
    from pipeline.distributed import Ranks
    from pipeline.errors import RankError
    from pipeline.recipes import Recipe

__all__ = ["app", "main"]

_INTERRUPTED = 130
_AFTER_SECONDS = 1.0
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _TwoWords(TyperGroup):
    """Commands whose names may be two words: ``sak eval boundary`` stands beside ``sak eval RECIPE``."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # click's types, which typer may hold a copy of
        """Take the first two words for a name where they are one."""
        joined = " ".join(args[:2])
        return super().resolve_command(ctx, [joined, *args[2:]] if joined in self.commands else args)


app = typer.Typer(
    name="sak",
    cls=_TwoWords,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="""Distil a committee of vision foundation models into one multi-task student.

    Each teacher runs once over the images; its features go, compressed, into a store.
    Any number of students trains from the store without loading a teacher.
    """,
    epilog="""Example:  sak run workflows/quickstart.yaml

    Exit codes: 0 done, or stopped by SIGTERM in extraction or training, with what was finished saved; 1 damage found by
    sak store verify or left by repair, or faults found by sak data check; 2 input to correct; 130 interrupted.""",
)
app.add_typer(store_app, name="store")
app.add_typer(bench_app, name="bench")
app.add_typer(data_app, name="data")
app.add_typer(teachers_app, name="teachers")


class Part(StrEnum):
    """What ``sak export`` writes."""

    student = "student"
    stem = "stem"


class Precision(StrEnum):
    """Number formats of ``sak export``."""

    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"


@app.command(epilog="Example:  sak run workflows/quickstart.yaml distill.steps=800 --run sak")
def run(recipe: RecipeFile, overrides: Overrides = None, only: Runs = None) -> None:
    """Run every stage of a recipe, skip what is done, print the table and write the report.

    Stages: extract, distill, finetune, eval, report. Interrupt it whenever you like: the same command goes on where
    it stopped. A changed recipe redoes only what the change touches.
    """
    loaded = _load(recipe, overrides)
    from pipeline.stages.run import STAGES

    with _ranks() as ranks, _made_by("run", recipe, overrides):
        _stages(STAGES, loaded, only, ranks)
    if only:
        print(f"finished {', '.join(only)}; the table and report need every run of the recipe")
    else:
        report(recipe, overrides)


@app.command(epilog="Example:  sak extract workflows/quickstart.yaml extract.codec=fp16 --workers 2")
def extract(
    recipe: RecipeFile,
    overrides: Overrides = None,
    only: Runs = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    gpu_workers: GpuWorkers = False,
    max_disk: MaxDisk = None,
    max_memory: MaxMemory = None,
    dry_run: DryRun = False,
    calibrate: Calibrate = True,
    images_per_s: ImagesPerSecond = 2000.0,
    disk_mb_s: DiskRate = None,
    as_json: PlanJson = False,
) -> None:
    """Write the views and teacher columns that a recipe reads into its store; done shards are never redone.

    The only stage that loads teachers, unless a recipe says targets: online.

    Teachers run in this process, and extract.workers (2) processes decode images for them. With --workers or
    --scheduler Dask spreads the work, and all of the above does each shard in one worker: a worker that dies costs
    time and no shard. Where the recipe sets threads, the store's bytes are the same in every case; else torch's share
    of the processors, and with it the last bit of a feature, depends on the workers. Clusters: workflows/cluster.md.

    Ctrl-C and SIGTERM keep every finished shard; a kill costs each process the shard in the making and those that are
    written behind it: one on a CPU, two on a GPU.

    What happens (parts, bad images, failed tasks, workers lost) is appended to extract/events.jsonl in the recipe's
    folder, one JSON object a line: docs/extraction-events.md.

    --dry-run writes nothing: it tells what is missing, bytes, arithmetic, hours, memory, read rates and pay-back.

    extract.precision=bf16, extract.channels_last, extract.compile and extract.batch=auto are for speed and memory;
    sak bench extract measures what they give, and docs/extraction.md says what each does to the bytes.
    """
    changes = [
        *(["extract.engine=dask"] if workers or scheduler else []),
        *([f"extract.workers={workers}"] if workers else []),
        *([f"extract.scheduler={scheduler}"] if scheduler else []),
        *(["extract.gpu_workers=true"] if gpu_workers else []),
        *([f"extract.max_disk={max_disk}"] if max_disk else []),
        *([f"extract.max_memory={max_memory}"] if max_memory else []),
    ]
    if not dry_run and (as_json or disk_mb_s or not calibrate):
        raise typer.BadParameter("--json, --no-calibrate and --disk-mb-s need --dry-run")
    if dry_run:
        loaded = _load(recipe, [*(overrides or []), *changes])
        raise typer.Exit(
            show_plan(loaded, only or [], calibrate=calibrate, rates=(images_per_s, disk_mb_s), as_json=as_json)
        )
    with _ranks() as ranks, _made_by("run", recipe, overrides):
        _stages(("extract",), _load(recipe, [*(overrides or []), *changes]), only, ranks)


@app.command(epilog="Example:  sak distill workflows/quickstart.yaml --run sak")
def distill(recipe: RecipeFile, overrides: Overrides = None, only: Runs = None) -> None:
    """Stage 1: train students on stored teacher features; no teacher is loaded and no label is read.

    Needs what sak extract writes. On N GPUs: torchrun --nproc_per_node=N --no-python sak distill RECIPE; distill.batch
    is that of all of them (docs/training.md).
    """
    with _ranks() as ranks, _made_by("extract", recipe, overrides):
        _stages(("distill",), _load(recipe, overrides), only, ranks)


@app.command(epilog="Example:  sak finetune workflows/quickstart.yaml finetune.alpha=0.5 --run sak")
def finetune(recipe: RecipeFile, overrides: Overrides = None, only: Runs = None) -> None:
    """Stage 2: train routers and heads on the tasks, with the teachers' loss at weight finetune.alpha.

    Needs what sak extract and, for runs that have a stage 1, sak distill write. On N GPUs as sak distill.
    """
    with _ranks() as ranks, _made_by("run", recipe, overrides):
        _stages(("finetune",), _load(recipe, overrides), only, ranks)


@app.command(name="eval", epilog="Example:  sak eval workflows/quickstart.yaml --run sak")
def evaluate(
    recipe: RecipeFile,
    overrides: Overrides = None,
    only: Runs = None,
    save: Annotated[
        bool, typer.Option("--save", help="Also write predictions, into predictions/ of the score's own folder.")
    ] = False,
    save_to: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also write predictions, into DIR/RUN of each run.")
    ] = None,
) -> None:
    """Score finished students, alone, on held-out images, and print every metric of every task, class by class.

    --save (or eval.save in a recipe) writes every task's map of every image at the image's own size, TASK/KEY.png:
    class indices with a palette, depth in 16-bit millimetres, normals as RGB, saliency and boundary in 8 bits; and
    contact sheets of prediction and truth. What is scored already is not scored again, what is saved is not made
    again. edge/ is what sak eval boundary --predictions takes. Formats: docs/predictions.md.

    On N GPUs: torchrun --nproc_per_node=N --no-python sak eval RECIPE; the result is the same (docs/evaluation.md).
    """
    where = json.dumps(str(save_to)) if save_to is not None else "true"
    changes = [f"eval.save={where}"] if save or save_to is not None else []
    with _ranks() as ranks, _made_by("run", recipe, overrides):
        loaded = _load(recipe, [*(overrides or []), *changes])
        _stages(("eval",), loaded, only, ranks)
        if ranks is None or ranks.first:
            from pipeline.runs import scored
            from pipeline.scores import score_tables

            for table in score_tables(scored(loaded, only or [])):
                print_table(table)


app.command(
    "eval boundary", epilog="Example:  sak eval boundary --predictions edge/img --labels pascal-context/trainval"
)(eval_boundary)


@app.command(epilog="Example:  sak report workflows/quickstart.yaml --out talk.html")
def report(
    recipe: RecipeFile,
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File to write; by default report.html in the recipe's folder."),
    ] = None,
) -> None:
    """Print the results table of finished runs and write one self-contained HTML page."""
    loaded = _load(recipe, overrides)
    from pipeline.results import delta_notes, results_table
    from pipeline.stages.report import report as write

    path = out or loaded.out / "report.html"
    with _made_by("run", recipe, overrides):
        results = write(loaded, path)
    print_table(results_table(results))
    for note in delta_notes(loaded, results):
        print(note)
    print(f"report: {path}")


@app.command(
    epilog="Example:  sak export workflows/quickstart.yaml --run sak --what stem --dtype fp16 --out stem.safetensors"
)
def export(
    recipe: RecipeFile,
    out: Annotated[Path, typer.Option(metavar="FILE", help="File to write; its name ends in .safetensors.")],
    run_name: Annotated[
        str,
        typer.Option("--run", "-r", metavar="NAME", help="Which run; RUN/TASK where each task has its own network."),
    ],
    overrides: Overrides = None,
    what: Annotated[
        Part, typer.Option(help="The whole student, or its stem alone, which timm loads as a plain ViT.")
    ] = Part.student,
    dtype: Annotated[Precision, typer.Option(help="Number format of the weights.")] = Precision.fp32,
) -> None:
    """Write a finished run's weights as safetensors."""
    loaded = _load(recipe, overrides)
    from pipeline.runs import find_study
    from pipeline.stages.export import export as write

    study = find_study(loaded, run_name)
    with _made_by("run", recipe, overrides):
        size = write(study, loaded.out, out, what=what.value, dtype=dtype.value)
    print(f"{out}: {size / 1e6:.2f} MB")


app.command("import", epilog="Example:  sak import 29_checkpoint.pth --out sak_stage1.safetensors")(import_checkpoint)


def _stages(stages: Sequence[str], recipe: Recipe, only: list[str] | None, ranks: Ranks | None) -> None:
    from pipeline.distributed import ALONE
    from pipeline.runs import select
    from pipeline.stages.run import prepare, run_stage

    plans = select(recipe, only or [])
    prepare(recipe, plans, stages=stages, ranks=ranks or ALONE)
    for stage in stages:
        run_stage(stage, recipe, plans, ranks=ranks or ALONE)


@contextmanager
def _ranks() -> Iterator[Ranks | None]:
    """The other processes that torchrun started; without it none are looked for, and no torch is loaded."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield None
        return
    # Read when torch is loaded: what its C++ has to say would hide what ended the job.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from pipeline.distributed import joined

    with joined() as ranks:
        yield ranks


def _load(recipe: Path, overrides: list[str] | None) -> Recipe:
    from pipeline.recipes import load_recipe

    return load_recipe(recipe, overrides or [])


@contextmanager
def _made_by(command: str, recipe: Path, overrides: list[str] | None) -> Iterator[None]:
    """Note on errors about what is not made yet the command that makes it: only here are recipe and overrides known."""
    from pipeline.errors import UNFINISHED

    try:
        yield
    except UNFINISHED as error:
        error.add_note(f"make it with: {shlex.join(['sak', command, str(recipe), *(overrides or [])])}")
        raise


def main() -> None:
    """Entry point: one line and exit code 2 for every error that a user can mend."""
    try:
        code = app(standalone_mode=False)
    except KeyboardInterrupt:
        code = _INTERRUPTED
    except Exception as error:
        sys.exit(_explain(error))
    # typer turns a KeyboardInterrupt inside a command into this code.
    if code == _INTERRUPTED:
        _complain("interrupted; the same command goes on where it stopped")
    sys.exit(code or 0)


def _explain(error: Exception, where: str = "") -> int:
    """Print an expected error and return its exit code; raise any other."""
    from pipeline.errors import EXPECTED, Interrupted, Preempted, RankError, RecipeError

    if isinstance(error, RankError):
        _end_rank(error)
    # typer's own errors have no public base class that all its versions share.
    usage = getattr(error, "format_message", None)
    if usage is not None:
        context = getattr(error, "ctx", None)
        message = " ".join(str(usage()).split()).rstrip(".")
        if message:
            _complain(f"{where}{message}; see {context.command_path if context else 'sak'} --help")
        return 2
    if isinstance(error, RecipeError):
        message = str(error)
    elif isinstance(error, EXPECTED):
        message = " ".join("; ".join([str(error), *getattr(error, "__notes__", ())]).split())
    elif isinstance(error, OSError) and error.filename is not None:
        message = f"{error.filename}: {error.strerror}; check the path, its permissions and the space on its disk"
    elif isinstance(error, OSError) and error.errno in _NO_SPACE:
        message = f"{error.strerror}; make room where out and store of the recipe lie, or name others; then rerun"
    else:
        raise error
    _complain(where + message)
    if isinstance(error, Preempted):
        return 0
    return _INTERRUPTED if isinstance(error, Interrupted) else 2


def _end_rank(failed: RankError) -> NoReturn:
    """End one of several processes, with its line if it is the one to tell."""
    from pipeline.errors import Interrupted, Preempted

    error, code = failed.error, 1
    try:
        if failed.told:
            code = _explain(error, "" if isinstance(error, Interrupted) else f"rank {failed.rank}: ")
        elif isinstance(error, Interrupted):
            code = 0 if isinstance(error, Preempted) else _INTERRUPTED
        else:
            time.sleep(_AFTER_SECONDS)  # torchrun's report takes the rank that ends first for the cause
    except Exception:
        traceback.print_exc()
    # No goodbye to the other ranks: where one has died, it would wait for an answer.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _complain(message: str) -> None:
    print(f"sak: {message}", file=sys.stderr)


if __name__ == "__main__":
    main()
