"""One training run's state, and its step: rates, losses, backward, clip, optimiser, average.

``pipeline.loop.train`` drives it; whatever measures or watches a step (telemetry, a benchmark) can do so as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from pipeline.average import WeightAverage
from pipeline.checkpoint import TrainState, checkpoint_path, latest_step, load_checkpoint, save_checkpoint
from pipeline.config import LoaderConfig, TrackConfig
from pipeline.distributed import Replica
from pipeline.errors import PipelineError
from pipeline.loader import Batch
from pipeline.runtime import RandomState, autocast
from pipeline.split import Split

__all__ = ["LossFunction", "TrainPlan", "Trainer"]


class LossFunction(Protocol):
    """A batch to named scalars, one of them ``total``: means over the rows given.

    Names with a slash are no losses, but what is recorded beside them on steps that are watched.
    """

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
        split: The batch, and this process's part of it.
        ema: Decay of an average of the weights, which the run then leaves in their place; ``None`` for none.
        loading: How much is read before it is needed.
        inputs: What the result depends on, ready for JSON; told to trackers.
        fused: AdamW in one kernel; its rounding is another.
        balance: What else a step changes, in place, for checkpoints to keep: learnt weights of tasks.
    """

    steps: int
    rate: Callable[[int], float]
    groups: Sequence[tuple[Sequence[nn.Parameter], float]]
    weight_decay: float
    clip: float
    precision: str
    track: TrackConfig
    split: Split
    ema: float | None = None
    loading: LoaderConfig = field(default_factory=LoaderConfig)
    inputs: Mapping[str, object] = field(default_factory=dict)
    fused: bool = False
    balance: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Trainer:
    """The mutable state of one training run."""

    model: nn.Module
    losses: LossFunction
    plan: TrainPlan
    folder: Path
    device: torch.device = field(init=False)
    state: TrainState = field(init=False)
    average: WeightAverage | None = field(init=False, default=None)
    replica: Replica = field(init=False)
    grad_norm: Tensor | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.device = next(self.model.parameters()).device
        # First of all, because it may put other layers around the same parameters.
        self.replica = self.plan.split.ranks.replica(self.losses, model=self.model)
        groups = [{"params": list(parameters), "factor": factor} for parameters, factor in self.plan.groups]
        optimizer = torch.optim.AdamW(
            groups, lr=0.0, weight_decay=self.plan.weight_decay, fused=self.plan.fused or None
        )
        scaler = torch.amp.GradScaler(self.device.type, enabled=self.plan.precision == "fp16")
        if self.plan.ema is not None:
            self.average = WeightAverage(self.model, decay=self.plan.ema)
        averages = self.average.state if self.average else {}
        self.state = TrainState(self.model, optimizer, scaler, averages, self.plan.balance)

    def resume(self) -> int:
        """Load the newest checkpoint if there is one; the step to go on from."""
        folder = self.folder / "checkpoints"
        step = self.plan.split.ranks.agreed(latest_step(folder))
        return load_checkpoint(checkpoint_path(folder, step), self.state) if step else 0

    def save(self, done: int) -> None:
        """Checkpoint after ``done`` steps; the same on every rank, so rank 0 writes it."""
        if self.plan.split.ranks.first:
            save_checkpoint(self.folder / "checkpoints", self.state, step=done, keep=self.plan.track.keep)

    def step(self, step: int, batches: Iterable[Batch], *, watched: bool = False) -> dict[str, Tensor]:
        """One optimiser step from this rank's micro-batches; its named losses, still on the device.

        They are means over this rank's rows; ``record`` makes them those of the batch.

        Args:
            watched: The step will be recorded: losses measure what else is wanted of it, and the gradient's norm is
                taken also where nothing is clipped. It changes no result.
        """
        rate, optimizer, scaler = self.plan.rate(step), self.state.optimizer, self.state.scaler
        for group in optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        optimizer.zero_grad(set_to_none=True)
        named = (
            self._accumulate(batch._replace(watched=True) for batch in batches)
            if watched
            else (self._accumulate(batches))
        )
        # Kept on the device: reading it here would make every step wait for the device.
        self.grad_norm = self._clipped_norm(watched)
        scaler.step(optimizer)
        scaler.update()
        if self.average is not None:
            self.average.update(self.model, step=step)
        return named

    def _clipped_norm(self, watched: bool) -> Tensor | None:
        """Clip the gradient if the plan says so; its norm before that, where that or a record needs it."""
        if not (watched or self.plan.clip > 0):
            return None
        self.state.scaler.unscale_(self.state.optimizer)
        if self.plan.clip > 0:
            return nn.utils.clip_grad_norm_(self.model.parameters(), self.plan.clip)
        return nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])

    def _accumulate(self, batches: Iterable[Batch]) -> dict[str, Tensor]:
        """Forward and backward of every micro-batch; the mean of their losses."""
        count = self.plan.split.accumulate
        start = RandomState.now() if count > 1 else None
        means: dict[str, Tensor] = {}
        for index, batch in enumerate(batches):
            if start is not None:
                start.restore()  # each draws the numbers of the whole batch, and takes its own: see sak.draws
            with self.replica.keeping(index == count - 1):
                with autocast(self.device, precision=self.plan.precision):
                    named = self.replica.forward(batch)
                torch.autograd.backward(self.state.scaler.scale(named["total"] / count))
            _part_gradients(self.model)
            for name, value in named.items():
                part = value.detach() / count
                means[name] = means[name] + part if name in means else part
        return means

    def record(self, step: int, named: Mapping[str, Tensor]) -> dict[str, float]:
        """Losses of the whole batch as floats, with the rate; on logged steps only, since reading waits for the device.

        Raises:
            PipelineError: A loss is not finite; the message names the step and the loss.
        """
        together = torch.stack([value.detach().double() for value in named.values()])
        read = self.plan.split.ranks.mean(together).tolist()
        values = dict(zip(named, read, strict=True))
        wrong = [name for name, value in values.items() if "/" not in name and not math.isfinite(value)]
        if wrong:
            raise PipelineError(
                f"step {step + 1}: loss {', '.join(wrong)} is not finite; lower the learning rate or set clip,"
                f" then delete {self.folder} to start over"
            )
        extra = {} if self.grad_norm is None else {"grad_norm": float(self.grad_norm)}
        return {**values, "lr": self.plan.rate(step), **extra}

    def finish(self) -> None:
        """Leave in the model what is to be used of it: the average, where there is one."""
        if self.average is not None:
            self.average.give(self.model)


def _part_gradients(model: nn.Module) -> None:
    """Give each gradient memory of its own: adding to one, or clipping it, shall change no other.

    torch.compile hands out views of one tensor where gradients are equal, as those of a class token and of its position
    are for a single image.
    """
    seen: set[int] = set()
    for parameter in model.parameters():
        if parameter.grad is not None:
            address = parameter.grad.untyped_storage().data_ptr()
            if address in seen:
                parameter.grad = parameter.grad.clone()
            seen.add(address)
