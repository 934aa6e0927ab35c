"""Exact-resume checkpoints: one safetensors file with weights, optimiser state, random state and position.

Written to a temporary name, flushed and renamed, so that a kill at any moment leaves the previous checkpoint intact.
Teachers are never part of the model, hence never in a checkpoint.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sak.errors import CheckpointError
from sak.weights import save_weights

__all__ = ["Position", "latest_checkpoint", "load_checkpoint", "save_checkpoint"]

_NAME = re.compile(r"step-(\d{9})\.safetensors")


class Position(NamedTuple):
    """Where training stands: optimiser steps done, and whether any state came from a file."""

    step: int


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    step: int,
    scaler: torch.amp.GradScaler,
    keep: int,
) -> Path:
    """Write ``step-000000123.safetensors`` and delete all but the newest ``keep``."""
    tensors: dict[str, Tensor] = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    for name, state in _named_state(model, optimizer).items():
        tensors |= {f"optim/{name}/{key}": value for key, value in state.items() if isinstance(value, Tensor)}
    tensors["rng/cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["rng/cuda"] = torch.cuda.get_rng_state()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:09d}.safetensors"
    save_weights(path, tensors, metadata={"step": str(step), "scaler": json.dumps(scaler.state_dict())})
    for old in sorted(folder.glob("step-*.safetensors"))[:-keep]:
        old.unlink()
    return path


def latest_checkpoint(folder: Path, /) -> Path | None:
    """The newest checkpoint of a folder; temporary files of a killed run do not match."""
    found = [path for path in folder.glob("step-*.safetensors") if _NAME.fullmatch(path.name)]
    return max(found, default=None)


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, *, scaler: torch.amp.GradScaler
) -> Position:
    """Restore everything that ``save_checkpoint`` wrote.

    Raises:
        CheckpointError: The file is damaged, or was written by a run with other parameters.
    """
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "optim": {}, "rng": {}}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            for name in file.keys():  # noqa: SIM118 - not a mapping
                group, _, rest = name.partition("/")
                groups[group][rest] = file.get_tensor(name)
        step = int(metadata["step"])
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise CheckpointError(
            f"{path}: damaged checkpoint ({error}); delete it to resume from the one before"
        ) from error
    missing, unexpected = model.load_state_dict(groups["model"], strict=False)
    if missing or unexpected:
        raise CheckpointError(f"{path}: another model's checkpoint; missing {missing[:5]}, unexpected {unexpected[:5]}")
    _load_optimizer(model, optimizer, groups["optim"])
    torch.set_rng_state(groups["rng"]["cpu"])
    if "cuda" in groups["rng"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(groups["rng"]["cuda"])
    scaler.load_state_dict(json.loads(metadata["scaler"]))
    return Position(step)


def _named_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, object]]:
    """Optimiser state by parameter name, so that a file does not depend on the order of parameter groups."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {names[parameter]: state for parameter, state in optimizer.state.items()}


def _load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    for key, value in tensors.items():
        name, _, field = key.rpartition("/")
        parameter = parameters[name]
        # AdamW keeps its step counter on the CPU unless it is capturable.
        placed = value if field == "step" else value.to(parameter.device)
        optimizer.state[parameter][field] = placed
