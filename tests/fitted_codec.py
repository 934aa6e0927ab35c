"""A small codec that must be fitted: distances from the mean of each component, in steps."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from store.codecs import registry
from store.codecs.base import Array, LevelSpec, LevelwiseCodec, PartSpec

__all__ = ["Centred", "CentredFitter", "CentredSettings", "register"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CentredSettings:
    """``step``: how coarse; ``rows`` of the sample."""

    step: float = 0.0
    rows: int = 6

    def to_json(self) -> dict[str, Any]:
        return {"name": "centred", "step": self.step, "rows": self.rows}


@dataclass(frozen=True, slots=True, kw_only=True)
class Centred(LevelwiseCodec):
    """The fitted codec."""

    name: ClassVar[str] = "centred"
    step: float = 0.0
    rows: int = 6
    fitted: Mapping[str, NDArray[np.generic]]

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "step": self.step, "rows": self.rows}

    def assets(self) -> Mapping[str, NDArray[np.generic]]:
        return self.fitted

    def parts(self, level: LevelSpec, /, *, index: int = 0) -> Mapping[str, PartSpec]:
        return {"values": PartSpec(shape=level.shape, dtype="float32")}

    def encode(self, feat_NCHW: Array, /, *, level: int = 0) -> dict[str, Array]:
        import torch

        values_NCHW = torch.as_tensor(feat_NCHW) - torch.from_numpy(self.fitted[f"mean_{level}"])[:, None, None]
        if self.step:
            values_NCHW = torch.round(values_NCHW / self.step) * self.step
        return {"values": values_NCHW}

    def decode(self, parts: Mapping[str, Array], /, *, level: int = 0) -> Array:
        import torch

        return torch.as_tensor(parts["values"]) + torch.from_numpy(self.fitted[f"mean_{level}"])[:, None, None]


class CentredFitter:
    """Two passes: the second must show the rows of the first."""

    passes = 2
    made: ClassVar[list[CentredFitter]] = []

    def __init__(self, settings: CentredSettings, levels: tuple[LevelSpec, ...]) -> None:
        self.settings, self.levels = settings, levels
        self.rows = settings.rows
        self.seen: list[list[tuple[NDArray[np.float32], ...]]] = [[]]
        self.made.append(self)

    @property
    def sums(self) -> dict[str, NDArray[np.float64]]:
        """The rows themselves: what is merged in another order shows."""
        return {f"{level}": self.sample(-1, level).astype(np.float64) for level in range(len(self.levels))}

    def add(self, feats: Sequence[Array], /) -> None:
        assert [tuple(feat.shape[1:]) for feat in feats] == [level.shape for level in self.levels]
        self.seen[-1].append(tuple(np.asarray(feat.cpu()).copy() for feat in feats))

    def part(self) -> CentredFitter:
        found = copy.copy(self)
        found.seen = [[]]
        return found

    def merge(self, sums: Mapping[str, NDArray[np.float64]], /) -> None:
        self.seen[-1].append(tuple(sums[f"{level}"].astype(np.float32) for level in range(len(self.levels))))

    def end_pass(self) -> None:
        self.seen.append([])

    def sample(self, number: int, level: int) -> NDArray[np.float32]:
        return np.concatenate([batch[level] for batch in self.seen[number]])

    def codec(self) -> Centred:
        assert len(self.seen) == self.passes + 1
        means = {f"mean_{level}": self.sample(0, level).mean((0, 2, 3)) for level in range(len(self.levels))}
        return Centred(step=self.settings.step, rows=self.rows, fitted=means)


def register(monkeypatch: pytest.MonkeyPatch) -> type[CentredFitter]:
    """Add ``centred`` to the codecs for one test, and forget the fitters made before."""
    monkeypatch.setattr(registry, "CODECS", {**registry.CODECS, "centred": Centred})
    monkeypatch.setattr(registry, "FITTERS", {**registry.FITTERS, "centred": (CentredSettings, CentredFitter)})
    monkeypatch.setattr(CentredFitter, "made", [])
    return CentredFitter
