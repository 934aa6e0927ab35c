"""Writes a codec's golden file once: ``python tests/store/make_golden.py int8``. Never overwrites one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from store.codecs.registry import make_codec
from store.shard import encode_shard

GOLDEN = Path(__file__).parent / "golden"


def main(name: str) -> None:
    target = GOLDEN / f"codec_{name}.npz"
    if target.exists():
        sys.exit(f"{target} exists; stored bytes must decode for ever, so it is never rewritten")
    feat_NCHW = np.random.default_rng(1).normal(0, 3, (3, 8, 2, 3)).astype(np.float32)
    feat_NCHW[1] = 0
    codec = make_codec(name)
    parts = codec.encode(feat_NCHW)
    arrays = {f"shard_{part}": encode_shard(values, rows_per_shard=4) for part, values in parts.items()}
    np.savez(
        target,
        codec=np.frombuffer(json.dumps(codec.to_json()).encode(), np.uint8),
        decoded=codec.decode(parts),
        **{part: np.frombuffer(data, np.uint8) for part, data in arrays.items()},
    )


if __name__ == "__main__":
    main(sys.argv[1])
