"""Tars and Parquet files as other programs write them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

__all__ = ["pack_tar", "picture", "pixels", "tar_bytes", "write_parquet", "write_tar"]


def picture(seed: int = 0, *, size: tuple[int, int] = (12, 16), kind: str = "png") -> bytes:
    """Bytes of an image file of noise."""
    buffer = io.BytesIO()
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    """What such a file holds."""
    return np.asarray(Image.open(io.BytesIO(data)))


def tar_bytes(files: Mapping[str, bytes], *, format: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of these files, in this order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def write_tar(path: Path, files: Mapping[str, bytes]) -> Path:
    """Write ``tar_bytes``."""
    path.write_bytes(tar_bytes(files))
    return path


def pack_tar(path: Path, folder: Path) -> Path:
    """Everything in a folder, as ``tar -C folder -cf path .`` packs it."""
    with tarfile.open(path, "w") as tar:
        tar.add(folder, arcname=".")
    return path


def write_parquet(path: Path, images: Mapping[str, bytes], *, rows: int = 2) -> Path:
    """Images as the hub gives them: structs of bytes and path."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    values = [{"bytes": data, "path": name} for name, data in images.items()]
    table = pa.table({"image": pa.array(values, kind), "label": list(range(len(values)))})
    pq.write_table(table, path, row_group_size=rows)
    return path
