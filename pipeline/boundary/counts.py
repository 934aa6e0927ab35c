"""Boundary counts of many images as one Parquet file: scores and curves of any subset of them need nothing else.

One row an image: ``key``, ``prediction_sha256`` and ``label_sha256`` of what was counted, ``height``, ``width``, and
``cntR``, ``sumR``, ``cntP``, ``sumP``, a list each with one number a threshold. The schema's metadata hold protocol,
tolerance and thresholds.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.whole_file import write_whole
from sak.boundary import COUNTS, PROTOCOLS, Scores, pr_curve, scores
from sak.odsf.score import Curve

__all__ = ["COUNTING", "CountTable", "Counted", "Rules", "parse_counts", "read_counts", "render_counts", "write_counts"]

# Raise it whenever the same files would give other counts.
COUNTING = 1
_METADATA = b"sak.boundary"
_TEXTS, _SIZES = ("key", "prediction_sha256", "label_sha256"), ("height", "width")


class Rules(NamedTuple):
    """What counts depend on besides the files.

    Attributes:
        max_dist: Longest distance of a matched pair, as a share of the diagonal.
    """

    protocol: str
    max_dist: float

    @property
    def text(self) -> str:
        """Both, as results name them."""
        return f"protocol {self.protocol}, tolerance {self.max_dist:g}"


class Counted(NamedTuple):
    """One image's counts, and digests of what they were made from.

    Shapes:
        counts_T4: ``(T, 4)``.
    """

    key: str
    prediction_sha256: str
    label_sha256: str
    height: int
    width: int
    counts_T4: NDArray[np.int64]

    def of(self, prediction_sha256: str, label_sha256: str, /) -> bool:
        """Whether it was made from these bytes."""
        return (self.prediction_sha256, self.label_sha256) == (prediction_sha256, label_sha256)


@dataclass(frozen=True, slots=True)
class CountTable:
    """Counts of images by one protocol and tolerance."""

    rules: Rules
    images: Mapping[str, Counted]

    def of(self, keys: Sequence[str], /, *, where: str) -> CountTable:
        """These images alone.

        Raises:
            DataError: One is not counted.
        """
        absent = [key for key in keys if key not in self.images]
        if absent:
            raise DataError(f"{where}: {absent[0]} is not among its {len(self.images)} images; count it first")
        return CountTable(self.rules, {key: self.images[key] for key in keys})

    def scores(self) -> Scores:
        """Of all its images."""
        return scores(self.counts_NT4(), protocol=self.rules.protocol)

    def curve(self) -> Curve:
        """Precision, recall and F of all its images at each threshold."""
        return pr_curve(self.counts_NT4(), protocol=self.rules.protocol)

    def counts_NT4(self) -> NDArray[np.int64]:
        """All its images' counts ``(N, T, 4)``."""
        wanted = len(PROTOCOLS[self.rules.protocol].thresholds)
        rows = [image.counts_T4 for image in self.images.values()]
        return np.stack(rows) if rows else np.zeros((0, wanted, len(COUNTS)), dtype=np.int64)


def write_counts(path: Path, table: CountTable, /) -> None:
    """Write a table, replacing an older one in one step."""
    write_whole(path, render_counts(table))


def render_counts(table: CountTable, /) -> bytes:
    """A table as a Parquet file, in the order of keys: equal tables give equal bytes."""
    table = CountTable(table.rules, {key: table.images[key] for key in sorted(table.images)})
    images, counts_NT4 = table.images.values(), table.counts_NT4()
    columns: dict[str, pa.Array] = {
        name: pa.array([getattr(one, name) for one in images], pa.string()) for name in _TEXTS
    }
    columns |= {name: pa.array([getattr(one, name) for one in images], pa.int32()) for name in _SIZES}
    for index, name in enumerate(COUNTS):
        columns[name] = pa.array(counts_NT4[..., index].astype(np.int32).tolist(), pa.list_(pa.int32()))
    about = {**table.rules._asdict(), "thresholds": _thresholds(table.rules.protocol), "counting": COUNTING}
    made = pa.table(columns).replace_schema_metadata({_METADATA: json.dumps(about)})
    buffer = io.BytesIO()
    pq.write_table(made, buffer, compression="zstd")
    return buffer.getvalue()


def read_counts(path: Path, /) -> CountTable:
    """Read what ``write_counts`` wrote.

    Raises:
        DataError: The file is absent, damaged, no table of counts, or made by another version of the counting.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; sak eval boundary --predictions DIR --labels DIR makes one") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    return parse_counts(data, where=str(path))


def parse_counts(data: bytes, /, *, where: str) -> CountTable:
    """Read what ``render_counts`` gave.

    Raises:
        DataError: As ``read_counts``, with ``where`` for a name.
    """
    try:
        read = pq.read_table(pa.BufferReader(data))
        about = json.loads((read.schema.metadata or {})[_METADATA])
        rules = Rules(str(about["protocol"]), float(about["max_dist"]))
        if about["counting"] != COUNTING or about["thresholds"] != _thresholds(rules.protocol):
            raise ValueError(f"it was made by counting {about['counting']}, this is {COUNTING}")
        images = _images(read, len(about["thresholds"]))
    # Arrow's own errors are none of one family.
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RuntimeError,
        MemoryError,
        pa.ArrowException,
    ) as error:
        raise DataError(f"{where}: no table of boundary counts ({error}); delete it and count again") from error
    return CountTable(rules, images)


def _thresholds(protocol: str) -> list[float]:
    return list(PROTOCOLS[protocol].thresholds)


def _images(read: pa.Table, thresholds: int) -> dict[str, Counted]:
    texts = [[str(value) for value in read[name].to_pylist()] for name in _TEXTS]
    sizes = [[int(value) for value in read[name].to_pylist()] for name in _SIZES]
    counts_4NT = np.array([read[name].to_pylist() for name in COUNTS], dtype=np.int64)
    if counts_4NT.shape != (len(COUNTS), read.num_rows, thresholds) and read.num_rows:
        raise ValueError(f"its counts have shape {counts_4NT.shape}")
    rows = np.moveaxis(counts_4NT.reshape(len(COUNTS), read.num_rows, thresholds), 0, -1)
    images = {values[0]: Counted(*values) for values in zip(*texts, *sizes, rows, strict=True)}
    if len(images) != read.num_rows:
        raise ValueError("it has an image twice")
    return images
