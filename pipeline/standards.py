"""Targets brought to one scale, by statistics that are taken once, in float64, and kept with the run.

A student that was taught standardized maps answers in them: stage 2 and scoring read the statistics of stage 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.config import DistillConfig
from pipeline.errors import PipelineError
from pipeline.live_views import LiveViews
from pipeline.loader import load_samples
from pipeline.targets import TargetSource
from pipeline.tensors import to_tensors
from sak.errors import CheckpointError
from sak.standardize import Affine, Moments, apply_affine, standardization
from sak.weights import load_weights, save_weights
from store.viewset import ViewSet

__all__ = ["FILE", "Standards", "fit_standards", "keep_standards", "read_standards"]

FILE = "standards.safetensors"
"""In the folder of stage 1; for each teacher and level ``mean`` and ``scale`` or ``matrix``."""

_ROWS = 4  # at a time: the tokens of a large map in float64 are 25 MB a row


class Standards(NamedTuple):
    """Teacher to the map of each level; a teacher that is not named stays as it is."""

    levels: Mapping[str, Sequence[Affine]]

    def __call__(self, targets: Mapping[str, Sequence[Tensor]], /) -> dict[str, list[Tensor]]:
        """Targets as the student shall answer them."""
        return {name: self._apply(name, maps) for name, maps in targets.items()}

    def to(self, device: torch.device, /) -> Standards:
        """The same on a device."""
        return Standards({name: [level.to(device) for level in levels] for name, levels in self.levels.items()})

    def _apply(self, name: str, maps: Sequence[Tensor]) -> list[Tensor]:
        if name not in self.levels:
            return list(maps)
        return [apply_affine(level, feat) for level, feat in zip(self.levels[name], maps, strict=True)]


def keep_standards(
    config: DistillConfig, folder: Path, /, *, source: TargetSource, view_set: ViewSet | LiveViews, device: torch.device
) -> None:
    """Fit stage 1's standards to the first usable rows that are seen and keep them in its folder, if need be."""
    if config.standardize == "none" or (folder / FILE).exists():
        return
    bad = view_set.unusable_rows()
    first = np.arange(min(view_set.spec.rows, config.standardize_rows + len(bad)))
    rows = np.setdiff1d(first, bad, assume_unique=True)[: config.standardize_rows].tolist()
    standards = fit_standards(config.standardize, rows, source=source, view_set=view_set, device=device)
    _write(folder / FILE, standards, kind=config.standardize)


def read_standards(config: DistillConfig | None, folder: Path, /, *, device: torch.device) -> Standards:
    """What stage 1 of a study standardized its targets by.

    Args:
        config: Of stage 1; None where there is none.
        folder: Of stage 1.

    Raises:
        PipelineError: The file is absent or damaged.
    """
    if config is None or config.standardize == "none":
        return Standards({})
    try:
        tensors = load_weights(folder / FILE)
    except CheckpointError as error:
        raise PipelineError(f"{folder / FILE}: statistics of stage 1: {error}; delete {folder} and rerun") from error
    states: dict[str, dict[int, dict[str, Tensor]]] = {}
    for key, tensor in tensors.items():
        name, level, part = key.split("/")
        states.setdefault(name, {}).setdefault(int(level), {})[part] = tensor
    levels = {name: [Affine.of_state(found[level]) for level in sorted(found)] for name, found in states.items()}
    return Standards(levels).to(device)


def fit_standards(
    kind: str, rows: Sequence[int], /, *, source: TargetSource, view_set: ViewSet | LiveViews, device: torch.device
) -> Standards:
    """Standards from the targets of some rows, stored or live; arithmetic in float64 on the CPU, whatever the device.

    Raises:
        SakError: ``kind`` is not a choice, or there are no rows.
    """
    moments: dict[str, list[Moments]] = {}
    for start in range(0, len(rows), _ROWS):
        chunk = view_set.spec.require_rows(rows[start : start + _ROWS])
        pixels = to_tensors(load_samples(view_set, chunk.tolist(), tasks=())).pixels.to(device)
        for name, maps in source.targets(source.read(chunk), pixels).items():
            sums = moments.setdefault(name, [Moments() for _ in maps])
            for item, feat_BCHW in zip(sums, maps, strict=True):
                item.add(feat_BCHW)
    fitted = {name: [standardization(kind, item) for item in sums] for name, sums in moments.items()}
    return Standards({name: [level for level in levels if level is not None] for name, levels in fitted.items()})


def _write(path: Path, standards: Standards, *, kind: str) -> None:
    named = {
        f"{name}/{index}/{part}": tensor
        for name, levels in standards.levels.items()
        for index, level in enumerate(levels)
        for part, tensor in level.state().items()
    }
    save_weights(path, named, metadata={"standardize": kind})
