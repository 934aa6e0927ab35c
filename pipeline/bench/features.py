"""Made features that compress as real ones do: a decaying spectrum, neighbouring tokens alike, a few loud components.

N is rows, C components, H and W the token grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from store.codecs.base import LevelSpec

__all__ = ["FeatureMaker"]

_DECAY = 1.0
_REACH = 3.0
_LOUD = 4
_LOUDNESS = 12.0
_SMOOTH = 0.8


class _Level(NamedTuple):
    basis_CC: NDArray[np.float32]
    mean_C: NDArray[np.float32]
    rows_HH: NDArray[np.float32]
    columns_WW: NDArray[np.float32]


class FeatureMaker:
    """Features of any row, a pure function of (seed, teacher, level, row).

    Components of an orthonormal basis have standard deviations that fall as ``1 / (1 + k / 4)``; most of each
    one's variance is correlated over the grid as ``exp(-distance / 3)`` along each axis; a few channels have a large
    mean, as pretrained transformers have. Under int8 with zstd that takes about 6.4 bits a value, which is what real
    SAM2-Hiera maps take.
    """

    def __init__(self, levels: Sequence[LevelSpec], *, seed: int, teacher: int) -> None:
        self.levels = tuple(levels)
        self._key = (seed, teacher)
        self._made = [_make_level(spec, [seed, teacher, index]) for index, spec in enumerate(self.levels)]

    def rows(self, rows: Sequence[int], /) -> list[NDArray[np.float32]]:
        """For each level float32 ``(N, C, H, W)``."""
        return [np.stack([self._row(level, row) for row in rows]) for level in range(len(self.levels))]

    def _row(self, level: int, row: int) -> NDArray[np.float32]:
        made, spec = self._made[level], self.levels[level]
        draws = np.random.default_rng([*self._key, level, 1, row])
        noise_CHW = draws.standard_normal(spec.shape, dtype=np.float32)
        smooth_CHW = made.rows_HH @ noise_CHW @ made.columns_WW.T
        rough = draws.standard_normal(spec.shape, dtype=np.float32)
        field_CHW = np.sqrt(np.float32(_SMOOTH)) * smooth_CHW + np.sqrt(np.float32(1 - _SMOOTH)) * rough
        feat_CHW: NDArray[np.float32] = (made.basis_CC @ field_CHW.reshape(spec.components, -1)).reshape(spec.shape)
        feat_CHW += made.mean_C[:, None, None]
        return feat_CHW


def _make_level(spec: LevelSpec, key: list[int]) -> _Level:
    draws = np.random.default_rng([*key, 0])
    count = spec.components
    basis_CC, _ = np.linalg.qr(draws.standard_normal((count, count)))
    spread_C = (1 + np.arange(count) / 4) ** -_DECAY
    mean_C = draws.standard_normal(count) * spread_C.mean()
    loud = draws.choice(count, min(_LOUD, count), replace=False)
    mean_C[loud] *= _LOUDNESS
    return _Level(
        basis_CC=np.ascontiguousarray(basis_CC * spread_C, dtype=np.float32),
        mean_C=mean_C.astype(np.float32),
        rows_HH=_correlation_root(spec.height),
        columns_WW=_correlation_root(spec.width),
    )


def _correlation_root(size: int) -> NDArray[np.float32]:
    """Cholesky factor of ``exp(-|i - j| / 3)``."""
    places = np.arange(size)
    root = np.linalg.cholesky(np.exp(-np.abs(places[:, None] - places) / _REACH))
    return np.asarray(root, dtype=np.float32)
