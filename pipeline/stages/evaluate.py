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

from pipeline.boundary.counts import write_counts
from pipeline.boundary.held_out import HeldOut, rules_of
from pipeline.config import Study
from pipeline.config_losses import FeatureLossConfig
from pipeline.errors import PipelineError
from pipeline.identity import distill_dir, evaluate_dir
from pipeline.loader import load_samples
from pipeline.predictions.save import save_predictions, saving
from pipeline.predictions.saver import Saver
from pipeline.runtime import pick_device, seed_everything
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
from sak.losses.distill import distill_loss
from sak.metrics import TaskMetrics
from sak.student.model import Student, StudentOutput, parameter_counts
from store.viewset import ViewSet

__all__ = ["decode_predictions", "evaluate"]

Array = NDArray[np.generic]


def evaluate(study: Study, out: Path, /, *, label: str) -> StageDir:
    """Score a study's last stage, or find it scored.

    Writes ``metrics.json`` (task to metric to value; ``distill`` holds the held-out teacher loss where the network is
    still aligned to teachers), ``routers.json`` (task to mean mixing weights, level by expert), ``gallery.npz`` and,
    where ``eval.boundary`` asks for odsF, ``boundary.parquet`` with every image's counts.

    Raises:
        NotDoneError: The last stage is not done, or the views are incomplete.
        PipelineError: The study has no ``data.eval``, or one of another data set.
    """
    stage, data = evaluate_dir(study, out), study.data.eval
    assert data is not None
    if stage.done():
        CONSOLE.print(f"{label}: eval is done ({stage.path}), skipped")
        save_predictions(study, out, stage, label=label)
        return stage
    device = pick_device(study.device)
    seed_everything(study.seed, threads=study.threads)
    view_set = complete_views(study, data, labels=study.scores_tasks)
    student, dataset, before = trained_to_score(study, out, device=device)
    if view_set.spec.dataset != dataset:
        raise PipelineError(f"eval: trained on {dataset or 'no labels'}, but data.eval is {view_set.spec.dataset}")
    kind = study.final_targets
    targets = target_source(study.scored, view_set, kind=kind, device=device) if kind else None
    normalise = Normalise(mean=study.student.mean, std=study.student.std).to(device)
    standards = Standards({})
    if targets is not None and study.distill is not None:
        standards = read_standards(study.distill, distill_dir(study, out).path, device=device)
    scorer = _Scorer(student, normalise, view_set, targets, standards, study.finetune or study.distill)
    with stage.work(device=device) as extra:
        extra |= record_uses(study, stage, view_set=view_set, targets=targets, after=before)
        rows = view_set.usable_rows().tolist()
        with _boundary(study, view_set, student) as boundary, saving(study, out, stage, label=label) as saver:
            metrics, gates = scorer.score(
                rows, batch=study.eval.batch, label=f"{label}: eval", boundary=boundary, saver=saver
            )
            if boundary:
                metrics["edge"] |= _write_boundary(boundary, stage.path, metric=study.eval.boundary)
                extra["boundary"] = boundary.about
        write_json(stage.path / "metrics.json", metrics)
        write_json(stage.path / "routers.json", {task: value.tolist() for task, value in gates.items()})
        gallery = scorer.gallery(rows[: study.eval.gallery])
        np.savez_compressed(stage.path / "gallery.npz", **gallery)  # type: ignore[arg-type]
        extra |= {"images": len(rows), "experts": ["stem", *student.spec.teacher_widths]}
        if before is None:  # no stage before this one has it on record
            extra |= {"dataset": dataset, "parameters": parameter_counts(student), "spec": student.spec.to_dict()}
    save_predictions(study, out, stage, label=label)
    return stage


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
    if task == "depth":
        return logits_BCHW[:, 0].half().numpy()
    raise PipelineError(f"no way to show task {task!r}")


def _boundary(study: Study, view_set: ViewSet, student: Student) -> AbstractContextManager[HeldOut | None]:
    """Where boundaries are counted, if the recipe asks for odsF and the network predicts any."""
    data, metric = study.data.eval, study.eval.boundary
    assert data is not None
    if metric == "pixel" or "edge" not in student.spec.tasks:
        return nullcontext()
    return HeldOut(view_set, data, rules=rules_of(metric, view_set.spec.dataset))


def _write_boundary(boundary: HeldOut, folder: Path, *, metric: str) -> dict[str, float]:
    """Keep the counts; the scores, in per cent, under names that tell the protocol where it is not the default one."""
    table = boundary.table()
    write_counts(folder / "boundary.parquet", table)
    if not table.images:
        return {metric: math.nan}
    found, protocol = table.scores(), metric.removeprefix("odsF")
    percent = {metric: found.odsF, f"oisF{protocol}": found.oisF, f"AP{protocol}": found.AP}
    return {name: 100 * value for name, value in percent.items()} | {f"threshold{protocol}": found.threshold}


class _Score(NamedTuple):
    metrics: dict[str, dict[str, float]]
    gates: dict[str, NDArray[np.float64]]


class _Scorer(NamedTuple):
    """A trained student over a view set, with targets where it is still aligned to teachers."""

    student: Student
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
        self, rows: Sequence[int], /, *, batch: int, label: str, boundary: HeldOut | None, saver: Saver | None
    ) -> _Score:
        """Metrics over rows, and the mean mixing weights (level, expert) of each task."""
        tasks = tuple(self.student.spec.tasks)
        metrics = TaskMetrics(self.view_set.spec.dataset, tasks) if tasks else None
        feature = 0.0
        gates: dict[str, NDArray[np.float64]] = {}
        with torch.inference_mode(), progress_bar("images") as bar:
            shown = bar.add_task(label, total=len(rows), note="")
            for start in range(0, len(rows), batch):
                chunk = rows[start : start + batch]
                pixels, labels = to_tensors(load_samples(self.view_set, chunk, tasks=tasks))
                output, loss = self._forward(chunk, pixels.to(self.device))
                feature += loss * len(chunk)
                if metrics:
                    metrics.update(output.tasks, {task: value.to(self.device) for task, value in labels.items()})
                if saver:
                    saver.add(chunk, output.tasks)
                if boundary:
                    bytes_B1HW = (output.tasks["edge"].float().sigmoid() * 255).to(torch.uint8)
                    maps_BHW = bytes_B1HW[:, 0].cpu().numpy()
                    boundary.add(chunk, prediction_BHW=maps_BHW, labels_BHW=labels["edge"][:, 0].numpy())
                for task, levels in output.gates.items():
                    summed = torch.stack([level.double().sum(0) for level in levels]).cpu().numpy()
                    gates[task] = gates.get(task, 0.0) + summed
                bar.advance(shown, len(chunk))
        scored = metrics.compute() if metrics else {}
        if self.targets is not None:
            scored["distill"] = {"loss": feature / len(rows)}
        return _Score(scored, {task: total / len(rows) for task, total in gates.items()})

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
            if self.targets is not None:
                wanted = self._wanted(self.targets, rows, pixels)
                found |= _named_maps("teacher", wanted) | _named_maps("student", output.aligned)
        return found

    def _forward(self, rows: Sequence[int], pixels: Tensor) -> tuple[StudentOutput, float]:
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
