"""Writes a codec's golden file once: ``python tests/store/make_golden.py int8``. Never overwrites one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from store.backends.zarr3 import encode_shard
from store.codecs.base import Codec, LevelSpec
from store.codecs.registry import is_fitted, make_codec, make_fitter

GOLDEN = Path(__file__).parent / "golden"
LEVELS = (LevelSpec(components=8, height=2, width=3), LevelSpec(components=6, height=2, width=3))


def golden_maps() -> list[np.ndarray]:
    """Three rows of two levels, the second one partly a function of the first; one row of zeros."""
    rng = np.random.default_rng(1)
    first = rng.normal(0, 3, (3, 8, 2, 3)).astype(np.float32)
    first[1] = 0
    second = (first[:, :6] * 2 + rng.normal(0, 1, (3, 6, 2, 3)) + 1).astype(np.float32)
    return [first, second]


def golden_codec(name: str) -> Codec:
    if not is_fitted(name):
        return make_codec(name)
    fitter = make_fitter({"name": name, "error": 0.05}, LEVELS)
    for _ in range(fitter.passes):
        fitter.add(golden_maps())
        fitter.end_pass()
    return fitter.codec()


def main(name: str) -> None:
    target = GOLDEN / f"codec_{name}.npz"
    if target.exists():
        sys.exit(f"{target} exists; stored bytes must decode for ever, so it is never rewritten")
    codec = golden_codec(name)
    arrays: dict[str, np.ndarray] = {"codec": np.frombuffer(json.dumps(codec.to_json()).encode(), np.uint8)}
    arrays |= {f"asset_{key}": values for key, values in codec.assets().items()}
    encoded = codec.encode_levels(golden_maps())
    for index, (level, parts) in enumerate(zip(LEVELS, encoded, strict=True)):
        for part, values in parts.items():
            cuts = codec.parts(level, index=index)[part].cuts
            shard = encode_shard(values, rows_per_shard=4, cuts=cuts)
            arrays[f"shard_{index}_{part}"] = np.frombuffer(shard, np.uint8)
    for index, values in enumerate(codec.decode_levels(dict(enumerate(encoded)), levels=range(len(LEVELS)))):
        arrays[f"decoded_{index}"] = values
    np.savez(target, **arrays)


if __name__ == "__main__":
    main(sys.argv[1])
