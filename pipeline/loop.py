"""The one training loop: both stages, and the recipes that train the built-in teachers.

A step is ``Trainer.step``; around it are the data, the record, checkpoints and signals. All resume state is in one file
(``pipeline.checkpoint``); data order and rates are functions of the step alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from rich.progress import TaskID
from torch import nn

from pipeline.live_views import LiveViews
from pipeline.loader import Batch, Loader
from pipeline.split import Split
from pipeline.stopping import Stop
from pipeline.tracking import CONSOLE, MetricsLog, ProgressBar, progress_bar
from pipeline.trainer import LossFunction, Trainer, TrainPlan
from store.viewset import ViewSet

__all__ = ["TRAINING", "length_line", "steps_of", "train"]

# Raise it whenever the same configuration, views and targets would train to other weights: a change of the networks,
# their start, the losses, the schedules, the order of rows or the optimiser. Stages that older code finished are then
# made anew, not taken for results of this code.
TRAINING = 2


def steps_of(steps: int | None, epochs: float | None, /, *, images: int, batch: int, drop_last: bool = False) -> int:
    """Optimiser steps; an epoch is one pass over as many rows as there are images, whatever their number of views.

    Args:
        drop_last: An epoch ends with its last whole batch.
    """
    if steps is not None:
        return steps
    assert epochs is not None
    if drop_last:
        return max(1, int(epochs) * (images // batch))
    return max(1, round(epochs * images / batch))


def length_line(view_set: ViewSet | LiveViews, /, *, steps: int, split: Split) -> str:
    """The batch arithmetic of a stage, for a person to check."""
    spec, rows = view_set.spec, steps * split.batch
    epochs = f"{rows / spec.images:.1f} epochs of {spec.images} images x {spec.views} views"
    return f"{steps} steps x {split} = {rows} images = {epochs}, each view read {rows / spec.rows:.2g} times"


def train(model: nn.Module, losses: LossFunction, loader: Loader, *, plan: TrainPlan, folder: Path, label: str) -> None:
    """Train to ``plan.steps``, resuming from the newest checkpoint of ``folder``; the model then holds the result.

    Raises:
        Interrupted: SIGINT or (``Preempted``) SIGTERM arrived; state is saved.
        PipelineError: A loss is not finite; the message names the step and the loss.
    """
    split, track = plan.split, plan.track
    run = Trainer(model=model, losses=losses, plan=plan, folder=folder)
    start = run.resume()
    if start:
        CONSOLE.print(f"{label}: resuming at step {start} of {plan.steps}")
    model.train()
    with (
        Stop(split.ranks).listen() as stop,
        MetricsLog(folder, start=start, tensorboard=track.tensorboard) if split.ranks.first else nullcontext() as log,
        progress_bar("steps") as bar,
        closing(loader.batches(start, plan.steps, split=split, loading=plan.loading)) as batches,
    ):
        meter = _Meter(bar, bar.add_task(label, total=plan.steps, completed=start, note=""))
        timed = meter.timed(batches)
        for step in range(start, plan.steps):
            named = run.step(step, islice(timed, split.accumulate))
            done, signal = step + 1, stop.asked()
            meter.count(split.batch)
            if done % track.log_every == 0 or done == plan.steps or done == 1:
                values, speeds = run.record(step, named), meter.read()
                if log is not None:
                    log.write(done, values, speeds=speeds)
            if signal or done % track.checkpoint_every == 0 or done == plan.steps:
                run.record(step, named)  # refuses to keep a state whose loss is no number
                run.save(done)
            if signal and done < plan.steps:
                message = f"{label}: stopped at step {done} of {plan.steps} as asked; rerun to continue"
                raise stop.error(signal, message)
    run.finish()


@dataclass(slots=True)
class _Meter:
    """Images a second and the share of time spent waiting for data, since the last reading."""

    bar: ProgressBar
    shown: TaskID
    images: int = 0
    waited: float = 0.0
    since: float = field(default_factory=time.perf_counter)

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Pass batches through, timing the wait for each."""
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    def count(self, images: int) -> None:
        """A step is done."""
        self.images += images
        spent = max(time.perf_counter() - self.since, 1e-9)
        note = f"{self.images / spent:.0f} images/s, {100 * self.waited / spent:.0f} % waiting for data"
        self.bar.advance(self.shown, note=note)

    def read(self) -> dict[str, float]:
        """Speeds since the last reading."""
        spent = max(time.perf_counter() - self.since, 1e-9)
        speeds = {"speed/images_per_s": self.images / spent, "speed/data_wait": self.waited / spent}
        self.images, self.waited, self.since = 0, 0.0, time.perf_counter()
        return speeds
