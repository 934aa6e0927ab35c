"""Why a stored column is not the one that a recipe asks for, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sak.teachers.constants import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["Identity", "difference", "nearest"]

Identity = Mapping[str, Any]
"""A teacher's identity (``sak.teachers.identity``), as columns record it."""

_STATISTICS = ("mean", "std")


def nearest(wanted: Identity, held: Mapping[str, Identity], /) -> str:
    """The name among ``held`` whose identity differs from ``wanted`` in the fewest keys; the first of several."""
    return min(held, key=lambda name: sum(wanted.get(key) != held[name].get(key) for key in {*wanted, *held[name]}))


def difference(wanted: Identity, held: Identity, /) -> str:
    """What a column holds and a recipe asks for instead, key by key; empty where they agree."""
    differing = [key for key in dict.fromkeys([*wanted, *held]) if wanted.get(key) != held.get(key)]
    found = [
        f"{key} {_text(held.get(key))} where the recipe asks for {_text(wanted.get(key))}"
        for key in differing
        if key not in _STATISTICS
    ]
    if {*_STATISTICS} & {*differing}:
        found.append(f"normalization {_normalization(held)} where the recipe asks for {_normalization(wanted)}")
    return ", ".join(found)


def _normalization(identity: Identity) -> str:
    mean, std = (list(identity.get(key) or ()) for key in _STATISTICS)
    # What the published code gives every teacher, and what some were trained with.
    imagenet = (mean, std) == (list(IMAGENET_MEAN), list(IMAGENET_STD))
    return f"mean {_text(mean)} std {_text(std)}{' (ImageNet, as reference)' if imagenet else ' (native)'}"


def _text(value: object) -> str:
    if value is None or value == {}:
        return "none"
    if isinstance(value, Mapping):
        return " ".join(f"{key} {_text(item)[:16]}" for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " ".join(f"{item:.4g}" if isinstance(item, float) else str(item) for item in value)
    return str(value)
