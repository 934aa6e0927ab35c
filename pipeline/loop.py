"""The one training loop: both stages, and the recipes that train the built-in teachers.

A step is: rates, losses, backward, clip, optimiser, record, checkpoint. All resume state is in one file
(``pipeline.checkpoint``); data order and rates are functions of the step alone.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Protocol

import torch
from rich.progress import TaskID
from torch import Tensor, nn

from pipeline.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from pipeline.config import TrackConfig
from pipeline.errors import Interrupted, PipelineError
from pipeline.live_views import LiveViews
from pipeline.loader import Batch, Loader
from pipeline.runtime import autocast
from pipeline.tracking import CONSOLE, MetricsLog, ProgressBar, progress_bar
from store.viewset import ViewSet

__all__ = ["TRAINING", "Interrupted", "TrainPlan", "length_line", "steps_of", "train"]

# Raise it whenever the same configuration, views and targets would train to other weights: a change of the networks,
# their start, the losses, the schedules, the order of rows or the optimiser. Stages that older code finished are then
# made anew, not taken for results of this code.
TRAINING = 2


class LossFunction(Protocol):
    """A batch to named scalars, one of them ``total``."""

    def __call__(self, batch: Batch, /) -> Mapping[str, Tensor]:
        """Losses of one batch."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainPlan:
    """How to optimise.

    Attributes:
        steps: Optimiser steps in all.
        rate: Step to learning rate.
        groups: Parameter groups as (parameters, factor on the rate).
        clip: Largest L2 norm of the gradient; 0 for no clipping.
        fused: AdamW in one kernel; its rounding is another.
    """

    steps: int
    rate: Callable[[int], float]
    groups: Sequence[tuple[Sequence[nn.Parameter], float]]
    weight_decay: float
    clip: float
    precision: str
    track: TrackConfig
    fused: bool = False


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


def length_line(view_set: ViewSet | LiveViews, /, *, steps: int, batch: int) -> str:
    """The batch arithmetic of a stage, for a person to check."""
    spec, rows = view_set.spec, steps * batch
    epochs = f"{rows / spec.images:.1f} epochs of {spec.images} images x {spec.views} views"
    return f"{steps} steps x {batch} = {rows} images = {epochs}"


@dataclass(slots=True)
class _StopFlag:
    """Set by the first SIGINT or SIGTERM; a second SIGINT interrupts at once."""

    raised: bool = False

    @contextmanager
    def listen(self) -> Iterator[None]:
        def note(number: int, frame: FrameType | None) -> None:
            if self.raised and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.raised = True

        try:
            before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # signals belong to the main thread; elsewhere there is nothing to listen to
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def train(model: nn.Module, losses: LossFunction, loader: Loader, *, plan: TrainPlan, folder: Path, label: str) -> None:
    """Train to ``plan.steps``, resuming from the newest checkpoint of ``folder``.

    Raises:
        Interrupted: SIGINT or SIGTERM arrived; state is saved.
        PipelineError: A loss is not finite; the message names the step and the loss.
    """
    run = _Run(model=model, plan=plan, folder=folder, device=next(model.parameters()).device)
    start = run.resume()
    if start:
        CONSOLE.print(f"{label}: resuming at step {start} of {plan.steps}")
    stop = _StopFlag()
    model.train()
    with (
        stop.listen(),
        MetricsLog(folder, start=start, tensorboard=plan.track.tensorboard) as log,
        progress_bar("steps") as bar,
        closing(loader.batches(start, plan.steps)) as batches,
    ):
        shown = bar.add_task(label, total=plan.steps, completed=start, note="")
        meter = _Meter(bar, shown)
        for batch in meter.timed(batches):
            named = run.step(batch, losses)
            done = batch.step + 1
            meter.count(len(batch.rows))
            if done % plan.track.log_every == 0 or done == plan.steps or done == 1:
                log.write(done, run.record(batch.step, named), speeds=meter.read())
            if stop.raised or done % plan.track.checkpoint_every == 0 or done == plan.steps:
                run.record(batch.step, named)  # refuses to keep a state whose loss is no number
                run.save(done)
            if stop.raised and done < plan.steps:
                raise Interrupted(f"{label}: stopped at step {done} of {plan.steps} as asked; rerun to continue")


@dataclass(slots=True, kw_only=True)
class _Run:
    """The mutable state of one training run."""

    model: nn.Module
    plan: TrainPlan
    folder: Path
    device: torch.device
    optimizer: torch.optim.AdamW = field(init=False)
    scaler: torch.amp.GradScaler = field(init=False)
    grad_norm: Tensor | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        groups = [{"params": list(parameters), "factor": factor} for parameters, factor in self.plan.groups]
        self.optimizer = torch.optim.AdamW(
            groups, lr=0.0, weight_decay=self.plan.weight_decay, fused=self.plan.fused or None
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.plan.precision == "fp16")

    def resume(self) -> int:
        """Load the newest checkpoint if there is one; the step to go on from."""
        path = latest_checkpoint(self.folder / "checkpoints")
        if path is None:
            return 0
        return load_checkpoint(path, self.model, self.optimizer, scaler=self.scaler)

    def save(self, done: int) -> None:
        """Checkpoint after ``done`` steps."""
        folder = self.folder / "checkpoints"
        save_checkpoint(folder, self.model, self.optimizer, step=done, scaler=self.scaler, keep=self.plan.track.keep)

    def step(self, batch: Batch, losses: LossFunction) -> Mapping[str, Tensor]:
        """One optimiser step; returns the named losses, still on the device."""
        rate = self.plan.rate(batch.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        with autocast(self.device, precision=self.plan.precision):
            named = losses(batch)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(self.scaler.scale(named["total"]))
        if self.plan.clip > 0:
            self.scaler.unscale_(self.optimizer)
            # Kept on the device: reading it here would make every step wait for the device.
            self.grad_norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.plan.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return named

    def record(self, step: int, named: Mapping[str, Tensor]) -> dict[str, float]:
        """Losses as floats, with the rate; read only on logged steps, since each read waits for the device."""
        values = {name: float(value.detach()) for name, value in named.items()}
        wrong = [name for name, value in values.items() if not math.isfinite(value)]
        if wrong:
            raise PipelineError(
                f"step {step + 1}: loss {', '.join(wrong)} is not finite; lower the learning rate or set clip,"
                f" then delete {self.folder} to start over"
            )
        extra = {} if self.grad_norm is None else {"grad_norm": float(self.grad_norm)}
        return {**values, "lr": self.plan.rate(step), **extra}


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
