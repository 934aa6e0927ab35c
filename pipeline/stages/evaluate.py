"""Stage ``evaluate``: score the student alone on held-out views, and keep what the report shows of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.boundary.counts import CountTable, write_counts
from pipeline.boundary.held_out import HeldOut, rules_of
from pipeline.config import Study
from pipeline.config_losses import FeatureLossConfig
from pipeline.distributed import ALONE, Ranks
from pipeline.errors import PipelineError
from pipeline.identity import distill_dir, evaluate_dir
from pipeline.loader import load_samples
from pipeline.needs import scores_tasks
from pipeline.own_size import OwnSize, Scored
from pipeline.predictions.save import save_predictions, saving
from pipeline.predictions.saver import Saver
from pipeline.runtime import pick_device, seed_everything
from pipeline.scoring import ScoreSums, all_counted, batches_of
from pipeline.stagedir import StageDir, write_json
from pipeline.standards import Standards, read_standards
from pipeline.students import Normalise
from pipeline.targets import TargetSource, target_source
from pipeline.tensors import to_tensors
from pipeline.tracking import CONSOLE, progress_bar
from pipeline.trained import trained_to_score
from pipeline.training import loss_weights
from pipeline.uses import record_uses
from pipeline.viewsets import complete_views
from sak.dense.registry import LABELS
from sak.losses.distill import distill_loss
from sak.metrics import TaskMetrics
from sak.student.frozen import FrozenTeachers
from sak.student.model import Student, StudentOutput, parameter_counts
from store.viewset import ViewSet

__all__ = ["decode_predictions", "evaluate"]

Array = NDArray[np.generic]


def evaluate(study: Study, out: Path, /, *, label: str, ranks: Ranks = ALONE) -> StageDir:
    """Score a study's last stage, or find it scored.

    Writes ``metrics.json`` (task to metric to value; ``distill`` holds the held-out teacher loss where the network is
    still aligned to teachers), ``routers.json`` (task to mean mixing weights, level by expert), ``gallery.npz`` and,
    where ``eval.boundary`` asks for odsF, ``boundary.parquet`` with every image's counts. Of several ranks each scores
    its share of the rows, and the first writes the same files as one alone would.

    Raises:
        NotDoneError: The last stage is not done, or the views are incomplete.
        PipelineError: The study has no ``data.eval``, or one of another data set.
    """
    stage, data = evaluate_dir(study, out), study.data.eval
    assert data is not None
    if ranks.agreed(stage.done()):
        CONSOLE.print(f"{label}: eval is done ({stage.path}), skipped")
        save_predictions(study, out, stage, label=label, ranks=ranks)
        return stage
    device = pick_device(study.device, ranks=ranks)
    seed_everything(study.seed, threads=study.threads)
    view_set = complete_views(study, data, labels=scores_tasks(study))
    student, dataset, before = trained_to_score(study, out, device=device)
    if view_set.spec.dataset != dataset:
        raise PipelineError(f"eval: trained on {dataset or 'no labels'}, but data.eval is {view_set.spec.dataset}")
    kind = study.scored_targets
    targets = target_source(study.scored, view_set, kind=kind, device=device) if kind else None
    normalise = Normalise(mean=study.student.mean, std=study.student.std).to(device)
    standards = Standards({})
    if targets is not None and study.distill is not None:
        standards = read_standards(study.distill, distill_dir(study, out).path, device=device)
    scorer = _Scorer(student, normalise, view_set, targets, standards, study.finetune or study.distill)
    with stage.work(device=device, ranks=ranks) as extra:
        if ranks.first:
            extra |= record_uses(study, stage, view_set=view_set, targets=targets, after=before)
        rows = view_set.usable_rows().tolist()
        mine = [*batches_of(rows, batch=study.eval.batch, ranks=ranks)]
        own_size = OwnSize(view_set, data) if study.eval.resolution == "image" and student.spec.tasks else None
        maps = saving(study, out, stage, label=label)
        with _boundary(study, view_set, student, ranks) as boundary, maps as saver:
            sums = ScoreSums(_task_metrics(study, view_set, student))
            scorer.score(mine, sums, label=f"{label}: eval", boundary=boundary, own_size=own_size, saver=saver)
            table = all_counted(boundary.table(), ranks) if boundary else None
        sums.merged(ranks)
        if ranks.first:
            extra |= _write_scores(study, stage, scorer, sums, boundary, table)
            extra |= {} if before else _description(student, dataset)
    save_predictions(study, out, stage, label=label, ranks=ranks)
    return stage


def _write_scores(
    study: Study, stage: StageDir, scorer: _Scorer, sums: ScoreSums, boundary: HeldOut | None, table: CountTable | None
) -> dict[str, object]:
    """Write what the sums of all ranks come to; gives what is recorded of it."""
    metrics: dict[str, dict[str, float]] = sums.metrics.compute() if sums.metrics else {}
    rows, student = scorer.view_set.usable_rows().tolist(), scorer.student
    about: dict[str, object] = {"images": len(rows), "experts": ["stem", *student.spec.teacher_widths]}
    if scorer.targets is not None and isinstance(student, Student):
        metrics["distill"] = {"loss": sums.loss()}
    if boundary and table:
        metrics["edge"] |= _write_boundary(table, stage.path, metric=study.eval.boundary)
        about["boundary"] = boundary.about
    write_json(stage.path / "metrics.json", metrics)
    write_json(stage.path / "routers.json", {task: value.tolist() for task, value in sums.gates().items()})
    gallery = scorer.gallery(rows[: study.eval.gallery])
    np.savez_compressed(stage.path / "gallery.npz", **gallery)  # type: ignore[arg-type]
    return about


def _description(student: Student | FrozenTeachers, dataset: str) -> dict[str, object]:
    """What a training stage would have on record."""
    return {"dataset": dataset, "parameters": parameter_counts(student), "spec": student.spec.to_dict()}


def _task_metrics(study: Study, view_set: ViewSet, student: Student | FrozenTeachers) -> TaskMetrics | None:
    tasks, absent = tuple(student.spec.tasks), study.eval.absent_classes
    return TaskMetrics(view_set.spec.dataset, tasks, absent=absent) if tasks else None


def decode_predictions(logits: Mapping[str, Tensor], /) -> dict[str, Array]:
    """Network outputs as the maps a person looks at.

    Shapes:
        ``(B, C, H, W)`` logits to ``(B, H, W)``, or ``(B, H, W, 3)`` unit vectors for ``normals``.
    """
    return {task: _decode(task, value.float().cpu()) for task, value in logits.items()}


def _decode(task: str, logits_BCHW: Tensor) -> Array:
    if task in ("semseg", "human_parts"):
        return logits_BCHW.argmax(1).to(torch.uint8).numpy()
    if task == "normals":
        return torch.nn.functional.normalize(logits_BCHW, dim=1).permute(0, 2, 3, 1).half().numpy()
    if task == "sal":
        return logits_BCHW.softmax(1)[:, 1].half().numpy()
    if task == "edge":
        return logits_BCHW[:, 0].sigmoid().half().numpy()
    if task in LABELS and LABELS[task].shown == "range":
        return logits_BCHW[:, 0].half().numpy()
    raise PipelineError(f"no way to show task {task!r}")


def _boundary(
    study: Study, view_set: ViewSet, student: Student | FrozenTeachers, ranks: Ranks
) -> AbstractContextManager[HeldOut | None]:
    """Where boundaries are counted, if the recipe asks for odsF and the network predicts any."""
    data, metric = study.data.eval, study.eval.boundary
    assert data is not None
    if metric == "pixel" or "edge" not in student.spec.tasks:
        return nullcontext()
    rules, own_size = rules_of(metric, view_set.spec.dataset), study.eval.resolution == "image"
    return HeldOut(view_set, data, rules=rules, own_size=own_size, ranks=ranks)


def _write_boundary(table: CountTable, folder: Path, *, metric: str) -> dict[str, float]:
    """Keep the counts; the scores, in per cent, under names that tell the protocol where it is not the default one."""
    write_counts(folder / "boundary.parquet", table)
    if not table.images:
        return {metric: math.nan}
    found, protocol = table.scores(), metric.removeprefix("odsF")
    percent = {metric: found.odsF, f"oisF{protocol}": found.oisF, f"AP{protocol}": found.AP}
    return {name: 100 * value for name, value in percent.items()} | {f"threshold{protocol}": found.threshold}


class _Scorer(NamedTuple):
    """A trained student over a view set, with targets where it is aligned to teachers still, or reads their maps."""

    student: Student | FrozenTeachers
    normalise: Normalise
    view_set: ViewSet
    targets: TargetSource | None
    standards: Standards
    loss: FeatureLossConfig | None

    @property
    def device(self) -> torch.device:
        """Of the student, where all else is brought."""
        return next(self.student.parameters()).device

    def score(
        self,
        batches: Sequence[Sequence[int]],
        sums: ScoreSums,
        /,
        *,
        label: str,
        boundary: HeldOut | None,
        own_size: OwnSize | None,
        saver: Saver | None,
    ) -> None:
        """Count batches of rows: metrics, the teachers' loss, what routers mixed with, and boundaries."""
        tasks = tuple(self.student.spec.tasks)
        with torch.inference_mode(), progress_bar("images") as bar:
            shown = bar.add_task(label, total=sum(map(len, batches)), note="")
            for chunk in batches:
                pixels, labels = to_tensors(load_samples(self.view_set, chunk, tasks=() if own_size else tasks))
                output, loss = self._forward(chunk, pixels.to(self.device))
                sums.count(len(chunk), loss=loss, gates=output.gates)
                if saver:
                    saver.add(chunk, output.tasks)
                parts = own_size.scored(chunk, output.tasks) if own_size else [Scored(chunk, output.tasks, labels)]
                for rows, logits, truth in parts:
                    if sums.metrics:
                        sums.metrics.update(logits, {task: value.to(self.device) for task, value in truth.items()})
                    if boundary:
                        bytes_B1HW = (logits["edge"].float().sigmoid() * 255).to(torch.uint8)
                        maps_BHW = bytes_B1HW[:, 0].cpu().numpy()
                        boundary.add(rows, prediction_BHW=maps_BHW, labels_BHW=truth["edge"][:, 0].numpy())
                bar.advance(shown, len(chunk))

    def gallery(self, rows: Sequence[int], /) -> dict[str, Array]:
        """Arrays of the report's pictures: ``image key label/<task> pred/<task> teacher|student/<teacher>/<level>``."""
        if not rows:
            return {}
        tasks = tuple(self.student.spec.tasks)
        samples = load_samples(self.view_set, rows, tasks=tasks)
        found: dict[str, Array] = {"image": np.stack([sample.image for sample in samples])}
        found["key"] = np.array([sample.key for sample in samples])
        found |= {f"label/{task}": np.stack([sample.labels[task] for sample in samples]) for task in tasks}
        pixels = to_tensors(samples).pixels.to(self.device)
        with torch.inference_mode():
            output, _ = self._forward(rows, pixels)
            found |= {f"pred/{task}": maps for task, maps in decode_predictions(output.tasks).items()}
            if self.targets is not None and output.aligned:
                wanted = self._wanted(self.targets, rows, pixels)
                found |= _named_maps("teacher", wanted) | _named_maps("student", output.aligned)
        return found

    def _forward(self, rows: Sequence[int], pixels: Tensor) -> tuple[StudentOutput, float]:
        if isinstance(self.student, FrozenTeachers):
            assert self.targets is not None
            return self.student(self._wanted(self.targets, rows, pixels)), 0.0
        output = self.student(self.normalise(pixels), with_aligned=self.targets is not None)
        if self.targets is None or self.loss is None:
            return output, 0.0
        wanted = self._wanted(self.targets, rows, pixels)
        loss, weights = self.loss, loss_weights(self.loss)
        return output, float(
            distill_loss(wanted, output.aligned, loss.loss, cosine=loss.cosine, weights=weights)["total"]
        )

    def _wanted(self, targets: TargetSource, rows: Sequence[int], pixels: Tensor) -> dict[str, list[Tensor]]:
        return self.standards(targets.targets(targets.read(np.asarray(rows)), pixels))


def _named_maps(side: str, maps: Mapping[str, Sequence[Tensor]]) -> dict[str, Array]:
    return {
        f"{side}/{name}/{index}": level.float().cpu().numpy()
        for name, levels in maps.items()
        for index, level in enumerate(levels)
    }
