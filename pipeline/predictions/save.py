"""Predictions of a scored network as files: what scoring has not written yet, their record, and contact sheets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from pipeline.config import Study
from pipeline.distributed import ALONE, Ranks
from pipeline.errors import PipelineError
from pipeline.identity import target_identity
from pipeline.loader import load_samples
from pipeline.needs import scores_tasks
from pipeline.predictions.formats import format_of, read_map
from pipeline.predictions.frame import map_in_image
from pipeline.predictions.saver import Place, Saver, map_path
from pipeline.predictions.sheets import SheetImage, sheet
from pipeline.runtime import pick_device, seed_everything
from pipeline.scoring import batches_of
from pipeline.stagedir import StageDir, read_json, write_json
from pipeline.students import Normalise
from pipeline.targets import target_source
from pipeline.tensors import to_tensors
from pipeline.tracking import CONSOLE, progress_bar
from pipeline.trained import spec_to_score, trained_to_score
from pipeline.viewsets import complete_views
from pipeline.whole_file import write_whole
from sak.dense.registry import LABELS
from sak.spec import StudentSpec
from sak.student.frozen import FrozenTeachers
from sak.tasks import TASK_NAMES, dataset_spec
from store.viewset import ViewSet

__all__ = ["save_predictions", "saving"]

RECORD = "predictions.json"
SHEETS = "sheets"
_PER_SHEET = 6


class _Plan(NamedTuple):
    """What is saved where, of which run."""

    label: str
    folder: Path
    view_set: ViewSet
    tasks: tuple[str, ...]
    rows: list[int]


@contextmanager
def saving(study: Study, out: Path, stage: StageDir, /, *, label: str) -> Iterator[Saver | None]:
    """What writes predictions while a study is scored; None where the recipe does not ask for them.

    Raises:
        PipelineError: The folder holds another network's predictions, or other files.
        DataError: An image's key cannot name a file.
    """
    plan = _plan(study, out, stage, label=label)
    if plan is None:
        yield None
        return
    with _saver(plan) as saver:
        yield saver


def save_predictions(study: Study, out: Path, stage: StageDir, /, *, label: str, ranks: Ranks = ALONE) -> None:
    """Save what the recipe asks for and is not there yet: maps that scoring did not write, then contact sheets.

    Of several ranks, all of which call this, each makes its share.

    Raises:
        PipelineError, DataError: As ``saving``.
    """
    plan = _plan(study, out, stage, label=label)
    if plan is None:
        return
    with _saver(plan) as saver:
        chunks = [chunk for chunk in batches_of(plan.rows, batch=study.eval.batch, ranks=ranks) if saver.absent(chunk)]
        if chunks:
            _predict(study, out, plan, saver, chunks, ranks)
    predicted = ranks.total(torch.tensor(len(chunks)))  # sheets show the maps of all ranks, which are there now
    pages = ranks.total(
        torch.tensor(_write_sheets(plan, saver.places, title=f"{label}, {stage.path.name}", ranks=ranks))
    )
    found = "saved in" if predicted + pages else "are there already:"
    CONSOLE.print(f"{label}: predictions of {len(plan.rows)} images {found} {plan.folder}")


def _plan(study: Study, out: Path, stage: StageDir, *, label: str) -> _Plan | None:
    asked, data = study.eval.save, study.data.eval
    if not asked or data is None:
        return None
    spec = spec_to_score(study, out)
    if not spec.tasks:
        CONSOLE.print(f"{label}: eval.save: a student without tasks has no predictions to save")
        return None
    folder = stage.path / "predictions" if asked is True else Path(asked) / label
    view_set = complete_views(study, data, labels=scores_tasks(study))
    tasks = tuple(task for task in TASK_NAMES if task in spec.tasks)
    _claim(folder, _record(stage, view_set, tasks) | _read_maps(study, spec, view_set))
    return _Plan(label, folder, view_set, tasks, view_set.usable_rows().tolist())


def _record(stage: StageDir, view_set: ViewSet, tasks: Sequence[str]) -> dict[str, object]:
    """What the folder's record says: whose maps they are, and how to read them."""
    dataset = dataset_spec(view_set.spec.dataset)
    about: dict[str, object] = {
        task: {"format": format_of(task).about}
        | ({"classes": list(dataset.task(task).classes)} if format_of(task).mode == "P" else {})
        for task in tasks
    }
    inputs = {key: stage.inputs[key] for key in ("trained", "views")}
    return {**inputs, "dataset": dataset.name, "files": "TASK/KEY.png", "tasks": about}


def _read_maps(study: Study, spec: StudentSpec, view_set: ViewSet) -> dict[str, object]:
    """Which maps heads on frozen teachers predict from; students predict from the views alone."""
    kind = study.scored_targets if spec.paths == "frozen" else None
    return {"maps": target_identity(study.scored, view_set.spec, kind=kind)} if kind else {}


def _claim(folder: Path, record: Mapping[str, object]) -> None:
    """Leave the record in a new folder, and refuse one that is not of the same network and images."""
    path = folder / RECORD
    # In this order: other ranks may be leaving the very same record.
    others = folder.exists() and any(not found.name.startswith(".") for found in folder.iterdir())
    if path.exists():
        there = read_json(path)
        if there != dict(record):
            changed = ", ".join(sorted(key for key in record if there.get(key) != record[key]))
            raise PipelineError(f"{folder}: holds other predictions (their {changed} differ); name another folder")
        return
    if others:
        raise PipelineError(f"{folder}: holds other files than predictions; name a new folder")
    write_json(path, record)


def _saver(plan: _Plan) -> Saver:
    return Saver(plan.folder, plan.view_set, tasks=plan.tasks, rows=plan.rows)


def _predict(study: Study, out: Path, plan: _Plan, saver: Saver, chunks: Sequence[Sequence[int]], ranks: Ranks) -> None:
    """Run the network over batches of scoring that lack a map, which give the same bits."""
    device = pick_device(study.device, ranks=ranks)
    seed_everything(study.seed, threads=study.threads)
    student = trained_to_score(study, out, device=device).student
    normalise = Normalise(mean=study.student.mean, std=study.student.std).to(device)
    kind = study.scored_targets if isinstance(student, FrozenTeachers) else None
    targets = target_source(study.scored, plan.view_set, kind=kind, device=device) if kind else None
    with torch.inference_mode(), progress_bar("images") as bar:
        shown = bar.add_task(f"{plan.label}: predictions", total=sum(map(len, chunks)), note="")
        for chunk in chunks:
            pixels = to_tensors(load_samples(plan.view_set, chunk, tasks=())).pixels.to(device)
            if isinstance(student, FrozenTeachers):
                assert targets is not None
                output = student(targets.targets(targets.read(np.asarray(chunk)), pixels))
            else:
                output = student(normalise(pixels), with_aligned=False)
            saver.add(chunk, output.tasks)
            bar.advance(shown, len(chunk))


def _write_sheets(plan: _Plan, places: Sequence[Place], *, title: str, ranks: Ranks) -> int:
    """This rank's share of the pages, where they are not there; says how many were made."""
    dataset = dataset_spec(plan.view_set.spec.dataset)
    starts = range(0, len(places), _PER_SHEET)
    paths = {start: plan.folder / SHEETS / f"{start // _PER_SHEET + 1:04d}.jpg" for start in starts}
    absent = [start for start in starts[ranks.rank :: ranks.world] if not paths[start].exists()]
    with progress_bar("pages") as bar:
        shown = bar.add_task(f"{plan.label}: contact sheets", total=len(absent), note="")
        for start in absent:
            images = _sheet_images(plan, places[start : start + _PER_SHEET])
            head = f"{dataset.title}: {title}, images {start + 1} to {start + len(images)} of {len(places)}"
            write_whole(paths[start], sheet(images, dataset=dataset, tasks=plan.tasks, title=head))
            bar.advance(shown)
    return len(absent)


def _sheet_images(plan: _Plan, places: Sequence[Place]) -> list[SheetImage]:
    """Images of one page; predictions come from their files, as whoever uses them gets them."""
    labelled = [task for task in plan.tasks if task in plan.view_set.spec.tasks]
    samples = load_samples(plan.view_set, [place.row for place in places], tasks=labelled)
    return [
        SheetImage(
            name=place.name.as_posix(),
            image=map_in_image("image", sample.image, frame=place.frame, fill=0),
            predicted={task: read_map(task, map_path(plan.folder, place, task)) for task in plan.tasks},
            true={
                task: map_in_image(task, label, frame=place.frame, fill=LABELS[task].invalid)
                for task, label in sample.labels.items()
            },
        )
        for place, sample in zip(places, samples, strict=True)
    ]
