"""Exact-resume checkpoints: one safetensors file with all that training changes, random state and position included.

It depends on no number of ranks or micro-batches: between two steps all ranks hold the same.
Written to a temporary name, flushed and renamed, so that a kill at any moment leaves the previous checkpoint intact.
Teachers are never part of the model, hence never in a checkpoint.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from pipeline.runtime import RandomState
from sak.errors import CheckpointError
from sak.weights import compare_state, digest_state, load_metadata, load_weights, save_weights

__all__ = ["TrainState", "checkpoint_path", "latest_step", "load_checkpoint", "save_checkpoint"]

_NAME = re.compile(r"step-(\d{9})\.safetensors")


class TrainState(NamedTuple):
    """What training changes.

    Attributes:
        average: That of the weights, by their names; empty without one.
        balance: What learnt weights of tasks consist of; empty where they are fixed.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: Mapping[str, Tensor]
    balance: Mapping[str, Tensor] = MappingProxyType({})


def save_checkpoint(folder: Path, state: TrainState, /, *, step: int, keep: int) -> Path:
    """Write ``step-000000123.safetensors`` and delete all but the newest ``keep``."""
    tensors: dict[str, Tensor] = {f"model/{name}": tensor for name, tensor in state.model.state_dict().items()}
    tensors |= {f"average/{name}": tensor for name, tensor in state.average.items()}
    tensors |= {f"balance/{name}": tensor for name, tensor in state.balance.items()}
    for name, values in _named_state(state.model, state.optimizer).items():
        tensors |= {f"optim/{name}/{key}": value for key, value in values.items() if isinstance(value, Tensor)}
    tensors |= {f"rng/{kind}": tensor for kind, tensor in RandomState.now().items()}
    folder.mkdir(parents=True, exist_ok=True)
    path = checkpoint_path(folder, step)
    about = {"step": str(step), "scaler": json.dumps(state.scaler.state_dict()), "sha256": digest_state(tensors)}
    save_weights(path, tensors, metadata=about)
    for old in sorted(folder.glob("step-*.safetensors"))[:-keep]:
        old.unlink()
    return path


def checkpoint_path(folder: Path, step: int, /) -> Path:
    """Where the state after so many steps is kept."""
    return folder / f"step-{step:09d}.safetensors"


def latest_step(folder: Path, /) -> int:
    """Steps done at the newest checkpoint of a folder, 0 without one; temporary files of a killed run do not match."""
    names = (_NAME.fullmatch(path.name) for path in folder.glob("step-*.safetensors"))
    return max((int(name[1]) for name in names if name), default=0)


def load_checkpoint(path: Path, state: TrainState, /) -> int:
    """Restore everything that ``save_checkpoint`` wrote, or nothing; returns the optimiser steps done.

    Raises:
        CheckpointError: The file is damaged, or was written by a run with other parameters.
    """
    saved = _read(path)
    report = compare_state(state.model.state_dict(), saved.groups["model"])
    averages = compare_state(state.average, saved.groups["average"])
    balance = compare_state(state.balance, saved.groups["balance"])
    known = dict(state.model.named_parameters()).keys()
    strange = {name.rpartition("/")[0] for name in saved.groups["optim"]} - known
    if strange or not (report.fits and averages.fits and balance.fits):
        raise CheckpointError(
            f"{path}: expected a checkpoint of this very network, got {report.summary()} (of averages:"
            f" {averages.summary()}; of tasks' weights: {balance.summary()}), and optimiser state of"
            f" {len(strange)} other parameters; delete {path.parent.parent} to start over"
        )
    state.model.load_state_dict(saved.groups["model"])
    for group, tensors in (("average", state.average), ("balance", state.balance)):
        for name, tensor in tensors.items():
            tensor.copy_(saved.groups[group][name])
    _load_optimizer(state.model, state.optimizer, saved.groups["optim"])
    RandomState(saved.groups["rng"]).restore()
    state.scaler.load_state_dict(saved.scaler)
    return saved.step


class _Saved(NamedTuple):
    step: int
    scaler: dict[str, object]
    groups: dict[str, dict[str, Tensor]]


def _read(path: Path) -> _Saved:
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "balance": {}, "optim": {}, "rng": {}}
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
    counted_there = _counted_there(optimizer)
    optimizer.state.clear()
    for key, value in tensors.items():
        name, _, field = key.rpartition("/")
        parameter = parameters[name]
        placed = field != "step" or parameter in counted_there
        optimizer.state[parameter][field] = value.to(parameter.device) if placed else value


def _counted_there(optimizer: torch.optim.Optimizer) -> set[Tensor]:
    """Parameters whose step counter torch keeps beside them, as one kernel for all wants it; others are on the CPU."""
    groups = [group for group in optimizer.param_groups if group.get("fused") or group.get("capturable")]
    return {parameter for group in groups for parameter in group["params"]}
