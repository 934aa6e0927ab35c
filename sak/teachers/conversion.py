"""Published weights under timm's names: all of them, or an error.

Every key of a file is read by a rule or dropped by one; ``load_strict`` then demands that every key of the network was
filled. Nothing is interpolated here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sak.errors import CheckpointError
from sak.teachers.layout import State
from sak.teachers.layouts import LAYOUTS

__all__ = ["Converted", "convert", "find_layout"]

_SHOWN = 6
_PARTS = ("q", "k", "v")


class Converted(NamedTuple):
    """A state dict in timm's names; ``layout`` is what it was in, ``absent`` prefixes it rightly lacks."""

    state: State
    layout: str
    absent: tuple[str, ...]


def find_layout(keys: Sequence[str], /) -> str:
    """The name of the layout that keys are in; ``timm`` where none is recognised."""
    for name, layout in LAYOUTS.items():
        marker = re.compile(layout.marker)
        if any(marker.fullmatch(key) for key in keys):
            return name
    return "timm"


def convert(state: Mapping[str, Tensor], /, *, where: str) -> Converted:
    """Give a published state dict timm's names.

    Args:
        where: Whose state it is, for errors.

    Raises:
        CheckpointError: A key is neither read nor dropped on purpose, or a part of a fused parameter is missing; the
            message names the first ones.
    """
    name = find_layout(list(state))
    if name == "timm":
        return Converted(dict(state), name, ())
    layout = LAYOUTS[name]
    rules = [(re.compile(pattern), target) for pattern, target in layout.rules]
    renamed: State = {}
    unknown = []
    for key, tensor in state.items():
        target = next((match.expand(to) for pattern, to in rules if (match := pattern.fullmatch(key))), None)
        if target is not None:
            _put(renamed, target, tensor, where=where)
        elif _matches(key, layout.zero):
            _require_zero(key, tensor, where=where)
        elif not _matches(key, layout.drop):
            unknown.append(key)
    if unknown:
        raise CheckpointError(
            f"{where}: expected only keys of the {name} layout, got {len(unknown)} others: {_shorten(unknown)};"
            " is it this teacher's checkpoint, whole and unmodified? If so, save its backbone in timm's names"
        )
    return Converted(layout.finish(_fuse(renamed, where=where)), name, layout.absent)


def _matches(key: str, patterns: Sequence[str]) -> bool:
    return any(re.fullmatch(pattern, key) for pattern in patterns)


def _require_zero(key: str, tensor: Tensor, /, *, where: str) -> None:
    if bool(tensor.any()):
        raise CheckpointError(
            f"{where}: expected zeros in {key}, which this network has no place for, got other values; take timm's"
            " network that has one (timm: MODEL), or another checkpoint"
        )


def _put(state: State, target: str, tensor: Tensor, /, *, where: str) -> None:
    if target in state:
        raise CheckpointError(
            f"{where}: expected one key for {target}, got two; it holds more than one network: save the one alone"
        )
    state[target] = tensor


def _fuse(state: State, /, *, where: str) -> State:
    """Concatenate ``name[q]``, ``name[k]`` and ``name[v]`` into ``name``."""
    fused: State = {}
    for key, tensor in state.items():
        stem, bracket, _ = key.partition("[")
        if not bracket:
            fused[key] = tensor
        elif stem not in fused:
            missing = [f"{stem}[{part}]" for part in _PARTS if f"{stem}[{part}]" not in state]
            if missing:
                raise CheckpointError(
                    f"{where}: expected query, key and value of {stem}, found no {_shorten(missing)};"
                    " fetch the file again"
                )
            fused[stem] = torch.cat([state[f"{stem}[{part}]"] for part in _PARTS])
    return fused


def _shorten(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
