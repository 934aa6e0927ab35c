"""Codecs of every kind, ready to encode given maps: fitted ones are fitted to the very maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from store.codecs.base import Codec, LevelSpec
from store.codecs.registry import CODECS, choose_codec, is_fitted, make_fitter

CHOICES: list[dict[str, Any]] = [
    *({"name": name} for name in CODECS),
    {"name": "fp16", "clip": True},
    {"name": "int8", "scale": "float16"},
    {"name": "int4", "rotate": False},
    {"name": "int4", "group": 2},
    {"name": "klt", "error": 0.01},
    {"name": "klt", "error": 0.4, "block": 1, "chain": False},
]
EXACT = ("fp32", "fp16", "bf16", "int8", "int4")


def describe(choice: Mapping[str, Any]) -> str:
    return "-".join(str(value) for value in choice.values())


def levels_of(feats: Sequence[NDArray[np.float32]]) -> list[LevelSpec]:
    return [LevelSpec(components=feat.shape[1], height=feat.shape[2], width=feat.shape[3]) for feat in feats]


def made(choice: Mapping[str, Any], feats: Sequence[NDArray[np.float32]]) -> Codec:
    if not is_fitted(choice):
        return choose_codec(choice)
    fitter = make_fitter(choice, levels_of(feats))
    for _ in range(fitter.passes):
        fitter.add(feats)
        fitter.end_pass()
    return fitter.codec()


@st.composite
def some_maps(draw: st.DrawFn, *, largest: float = 65504.0) -> list[NDArray[np.float32]]:
    """Two levels of a few rows, with the same grid or another; even widths, because int4 takes no others."""
    rows = draw(st.integers(1, 3))
    grids = draw(st.sampled_from([((2, 3), (2, 3)), ((1, 1), (2, 2)), ((4, 3), (4, 3))]))
    maps = []
    for grid in grids:
        shape = (rows, 2 * draw(st.integers(1, 3)), *grid)
        values = draw(hnp.arrays(np.float32, shape, elements=st.floats(-largest, largest, width=32)))
        values[0, 0, 0, 0] += 1.0  # a fit refuses maps that are zero everywhere
        maps.append(np.clip(values, -largest, largest))
    return maps
