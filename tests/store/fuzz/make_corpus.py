"""Writes the seeds, small sound inputs of each target: ``python tests/store/fuzz/make_corpus.py``; twice is once."""

from __future__ import annotations

import io
import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "store")]

import numpy as np  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import tiny_store  # noqa: E402

from store.backends.base import ShardArray  # noqa: E402
from store.backends.frames import compress  # noqa: E402
from store.backends.tar import WebDataset, npy_header  # noqa: E402
from store.backends.zarr3 import encode_shard  # noqa: E402
from store.tarball import build_tar  # noqa: E402
from tests.store.fuzz.targets import ARRAYS, CORPUS, ROWS  # noqa: E402


def seeds() -> dict[str, bytes]:
    """Contents by path inside the corpus."""
    found: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "store"
        tiny_store.fill(root)
        for name, pattern in {
            "store": "store.json",
            "view_set": "views/t/view_set.json",
            "column": "columns/t/*/column.json",
            "view_commit": "views/t/commits/part-00000.json",
            "commit": "columns/t/*/commits/part-00000.json",
        }.items():
            (path,) = root.glob(pattern)
            found[f"documents/{name}"] = path.read_bytes()
            body = json.loads(path.read_bytes())["body"]
            found[f"documents/{name}_body"] = json.dumps(body, separators=(",", ":")).encode()
        found["index/tiny"] = (root / "views/t/index/part-00000.parquet").read_bytes()
        found["tar/images"] = (root / "views/t/images/part-00000.tar").read_bytes()
    use = {"experiment": "e", "folder": "/f", "host": "h", "commits": {"views/t": {"0": "0" * 64}}}
    found["documents/use_body"] = json.dumps(use).encode()
    codec = {"name": "klt", "error": 0.1, "rows": 1, "block": 1, "chain": False}
    level = {"components": 1, "height": 1, "width": 1}
    spec = {"view_set": "a", "teacher": "b", "identity": {}, "levels": [level], "codec": codec}
    assets = {"basis_0": {"shape": [4], "dtype": "float32"}}
    found["documents/klt_body"] = json.dumps(
        {"spec": spec, "backend": "zarr", "assets": assets, "objects": {}}
    ).encode()
    found |= _arrays()
    table = pq.read_table(io.BytesIO(found["index/tiny"]))
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="none", use_dictionary=False, data_page_version="2.0")
    found["index/plain"] = sink.getvalue()
    found["klt/sound"] = bytes([0, *range(60)])
    found["klt/edits"] = bytes([3, 0, 0, 1, 9, 5, 0, 0, 255, 8, 0, 3, 127, *range(50)])
    return found


def _arrays() -> dict[str, bytes]:
    rows = range(ROWS)
    values = [np.zeros((ROWS, *one.spec.shape), one.spec.dtype) for one in ARRAYS]
    arrays = [ShardArray(one, some) for one, some in zip(ARRAYS, values, strict=True)]
    ((_, tar),) = WebDataset().pack(0, arrays, rows=rows, rows_per_shard=ROWS, threads=1)
    content = npy_header(ARRAYS[0].spec) + bytes(6)
    shard = encode_shard(np.arange(ROWS * 40, dtype=np.uint8).reshape(ROWS, 40), rows_per_shard=ROWS)
    return {
        "tar/column": tar,
        "tar/two": build_tar([(12, "png", b"abc"), (12, "normals.npy", b"x" * 512)]).data,
        "member/frame": compress(content, checksum=True),
        "member/content": content,
        "shard/sound": shard[:-4],
        "shard/zeros": encode_shard(np.zeros((2, 40), np.uint8), rows_per_shard=ROWS)[:-4],
    }


def main() -> None:
    for path, data in seeds().items():
        target = CORPUS / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    print(sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()), "bytes")


if __name__ == "__main__":
    main()
