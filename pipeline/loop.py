"""The one training loop: both stages, and the recipes that train the built-in teachers.

A step is ``Trainer.step``; around it are the data, the record, checkpoints and signals. All resume state is in one file
(``pipeline.checkpoint``); data order and rates are functions of the step alone.
"""

from __future__ import annotations

from contextlib import closing, nullcontext
from itertools import islice
from pathlib import Path

from torch import nn

from pipeline.live_views import LiveViews
from pipeline.loader import Loader
from pipeline.meter import Meter
from pipeline.split import Split
from pipeline.stopping import Stop
from pipeline.trackers import Told, open_trackers
from pipeline.tracking import CONSOLE, MetricsLog, progress_bar
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
        _log(plan, folder, start=start, label=label) if split.ranks.first else nullcontext() as log,
        progress_bar("steps") as bar,
        closing(loader.batches(start, plan.steps, split=split, loading=plan.loading)) as batches,
    ):
        shown = bar.add_task(label, total=plan.steps, completed=start, note="")
        meter = Meter(run.device, read_bytes=lambda: loader.read_bytes, ranks=split.ranks)
        timed = meter.timed(batches)
        done, signal = start, 0
        for step in range(start, plan.steps):
            done = step + 1
            watched = track.records(done, of=plan.steps)
            named = run.step(step, islice(timed, split.accumulate), watched=watched)
            signal = stop.asked()
            meter.count(split.batch)
            bar.advance(shown, note=meter.note())
            if watched:
                values, speeds = run.record(step, named), meter.read()
                if log is not None:
                    log.write(done, values, speeds=speeds)
            if signal or done % track.checkpoint_every == 0 or done == plan.steps:
                run.record(step, named)  # refuses to keep a state whose loss is no number
                run.save(done)
            if signal:
                break
        # Also after the last step: whoever asked to stop wants no other stage or run to begin.
        signal = signal or stop.asked(last=True)
        if signal:
            raise stop.error(signal, f"{label}: stopped at step {done} of {plan.steps} as asked; rerun to continue")
    run.finish()


def _log(plan: TrainPlan, folder: Path, *, start: int, label: str) -> MetricsLog:
    told = Told(label.replace(": ", " "), plan.inputs)
    return MetricsLog(folder, start=start, trackers=open_trackers(plan.track, folder, told=told, start=start))
