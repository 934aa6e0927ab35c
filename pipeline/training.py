"""What training derives from its configuration: rates, a warm-up, weights of the loss, a compiled step."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pipeline.config import DistillConfig, FinetuneConfig
from pipeline.config_losses import CompileMode, FeatureLossConfig
from pipeline.errors import PipelineError
from sak.losses.distill import LossWeights
from sak.schedules import poly, reference_step, warmup_cosine

__all__ = ["compiled", "distill_rate", "finetune_rate", "loss_weights", "warmup_steps"]

Rate = Callable[[int], float]


def loss_weights(config: FeatureLossConfig, /, *, teachers: tuple[str, ...] = (), scale: float = 1.0) -> LossWeights:
    """Weights of the loss against teachers.

    Args:
        teachers: All of the student's, where ``scale`` multiplies the loss of each.
    """
    own = dict(config.teacher_weights)
    if scale != 1.0:
        own |= {name: scale * own.get(name, 1.0) for name in teachers}
    return LossWeights(
        cosine=config.cosine_weight,
        l1=config.l1_weight,
        beta=config.beta,
        teachers=own,
        levels=config.level_weights,
    )


def warmup_steps(config: DistillConfig, /, *, steps: int, images: int) -> int:
    """Steps of stage 1's warm-up; with ``drop_last`` an epoch is as many steps as it has whole batches.

    Raises:
        PipelineError: It is no shorter than the whole.
    """
    if config.warmup_epochs is None:
        return round(config.warmup * steps)
    epoch = images // config.batch if config.drop_last else images / config.batch
    found = round(config.warmup_epochs * epoch)
    if found >= steps:
        raise PipelineError(
            f"distill.warmup_epochs: {config.warmup_epochs:g} epochs are {found} of {steps} steps; lower it"
        )
    return found


def distill_rate(config: DistillConfig, /, *, steps: int, images: int) -> Rate:
    """Step to learning rate of stage 1.

    Raises:
        PipelineError: As ``warmup_steps``.
    """
    warmup = warmup_steps(config, steps=steps, images=images)

    def rate(step: int) -> float:
        at = reference_step(step) if config.reference_schedule else step
        return warmup_cosine(at, total=steps, warmup=warmup, peak=config.lr, start=config.start_lr, end=config.end_lr)

    return rate


def finetune_rate(config: FinetuneConfig, /, *, steps: int) -> Rate:
    """Step to learning rate of stage 2."""
    warmup = round(config.warmup * steps)

    def rate(step: int) -> float:
        if config.schedule == "poly":
            return poly(step, total=steps, peak=config.lr, power=config.power)
        return warmup_cosine(step, total=steps, warmup=warmup, peak=config.lr, start=config.start_lr, end=config.end_lr)

    return rate


def compiled(module: nn.Module, mode: CompileMode, /, *, device: torch.device) -> Callable[..., Any]:
    """A module's call through torch.compile, or the module where ``mode`` is false; parameters are the module's own.

    Raises:
        PipelineError: What torch.compile needs on this device is absent.
    """
    if mode is False:
        return module
    needed = {"cuda": ("triton", "pip install triton"), "cpu": ("a C++ compiler", "install g++")}
    if device.type == "cuda":
        present = importlib.util.find_spec("triton") is not None
    else:
        present = any(shutil.which(name) for name in ("c++", "g++", "clang++"))
    if not present:
        what, remedy = needed["cuda" if device.type == "cuda" else "cpu"]
        raise PipelineError(f"compile: torch.compile needs {what} here, found none; {remedy}, or set compile to false")
    return torch.compile(module, mode="default" if mode is True else mode)
