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
from safetensors import SafetensorError
from torch import Tensor, nn

from sak.errors import CheckpointError
from sak.weights import compare_state, digest_state, load_metadata, load_weights, save_weights

__all__ = ["latest_checkpoint", "load_checkpoint", "save_checkpoint"]

_NAME = re.compile(r"step-(\d{9})\.safetensors")


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
    about = {"step": str(step), "scaler": json.dumps(scaler.state_dict()), "sha256": digest_state(tensors)}
    save_weights(path, tensors, metadata=about)
    for old in sorted(folder.glob("step-*.safetensors"))[:-keep]:
        old.unlink()
    return path


def latest_checkpoint(folder: Path, /) -> Path | None:
    """The newest checkpoint of a folder; temporary files of a killed run do not match."""
    found = [path for path in folder.glob("step-*.safetensors") if _NAME.fullmatch(path.name)]
    return max(found, default=None)


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, *, scaler: torch.amp.GradScaler
) -> int:
    """Restore everything that ``save_checkpoint`` wrote, or nothing; returns the optimiser steps done.

    Raises:
        CheckpointError: The file is damaged, or was written by a run with other parameters.
    """
    saved = _read(path)
    report = compare_state(model.state_dict(), saved.groups["model"])
    known = dict(model.named_parameters()).keys()
    strange = {name.rpartition("/")[0] for name in saved.groups["optim"]} - known
    if strange or not report.fits:
        raise CheckpointError(
            f"{path}: expected a checkpoint of this very network, got {report.summary()}, and optimiser state of"
            f" {len(strange)} other parameters; delete {path.parent.parent} to start over"
        )
    model.load_state_dict(saved.groups["model"])
    _load_optimizer(model, optimizer, saved.groups["optim"])
    torch.set_rng_state(saved.groups["rng"]["cpu"])
    if "cuda" in saved.groups["rng"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(saved.groups["rng"]["cuda"])
    scaler.load_state_dict(saved.scaler)
    return saved.step


class _Saved(NamedTuple):
    step: int
    scaler: dict[str, object]
    groups: dict[str, dict[str, Tensor]]


def _read(path: Path) -> _Saved:
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "optim": {}, "rng": {}}
    try:
        about = load_metadata(path)
        tensors = load_weights(path)
        for name, tensor in tensors.items():
            group, _, rest = name.partition("/")
            groups[group][rest] = tensor
        step, scaler = int(about["step"]), json.loads(about["scaler"])
        whole = path.name == f"step-{step:09d}{path.suffix}" and about["sha256"] == digest_state(tensors)
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise CheckpointError(
            f"{path}: damaged checkpoint ({error}); delete it to resume from the one before"
        ) from error
    if not whole or not isinstance(scaler, dict):
        raise CheckpointError(
            f"{path}: damaged checkpoint (its content is not what was saved); delete it to resume from the one before"
        )
    return _Saved(step, scaler, groups)


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
