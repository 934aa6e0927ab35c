"""Images in tars: what the sources ``tar`` and ``webdataset`` share.

What a fingerprint knows of an image is its key, its size and the CRC-32 of its last bytes, which come with the
headers: reading 150 GB to be surer would take longer than some teachers do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from posixpath import basename
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from pipeline.errors import BadImageError
from pipeline.images.files import SUFFIXES, choose, decode_rgb
from pipeline.images.indices import Keys, indices, joined
from pipeline.images.ranges import RangeFile
from pipeline.images.sample import ImageSample
from pipeline.images.tarscan import Member, read_member, scan_tar

__all__ = ["MAX_IMAGE_BYTES", "NO_IMAGE", "Entry", "PackedImages", "index_tars"]

MAX_IMAGE_BYTES = 256 << 20
"""Largest file of an image that is read."""

NO_IMAGE = -1
"""Offset of a sample that has none."""

Entry: TypeAlias = tuple[str, str, int, int, int]
"""Key, suffix, offset, size, tail: a row of the index."""

_BATCH = 1 << 16
_SCHEMA = pa.schema(
    [
        ("key", pa.large_string()),
        ("suffix", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("tail", pa.uint32()),
    ]
)


class PackedImages:
    """Images of an index of tars; a source has one, and hands on to it.

    Args:
        files: The tars.
        rows: Their joined index, or part of it.
        skip: Characters at the beginning of each key that are left out.
    """

    def __init__(self, kind: str, /, *, files: Sequence[RangeFile], rows: pa.RecordBatch, skip: int = 0) -> None:
        self._kind, self._files, self._rows = kind, tuple(files), rows
        self.keys = Keys(rows["key"], skip=skip)
        self._suffixes = rows["suffix"]
        self._numbers = {name: rows[name].to_numpy() for name in ("file", "offset", "size", "tail")}

    def subset(self, *, images: int | None, seed: int, where: str) -> PackedImages:
        """As many of them as are asked for.

        Raises:
            DataError: There are none, or fewer.
        """
        chosen = choose(len(self.keys), images=images, seed=seed, where=where)
        if chosen is None:
            return self
        rows = self._rows.take(pa.array(chosen, pa.int64()))
        return PackedImages(self._kind, files=self._files, rows=rows, skip=self.keys.skip)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all keys, sizes and tails: the same however the images are divided into tars."""
        state = hashlib.sha256(f"{self._kind}\0".encode())
        for key in self.keys:
            state.update(f"{key}\n".encode())
        state.update(np.where(self._numbers["offset"] == NO_IMAGE, -1, self._numbers["size"]).astype("<i8").tobytes())
        state.update(self._numbers["tail"].astype("<u4").tobytes())
        return state.hexdigest()

    def read(self, index: int, /, *, label: int | None = None) -> ImageSample:
        """Decode one image.

        Raises:
            BadImageError: It cannot be decoded, or the sample has none.
            DataError: Its tar has changed, or cannot be read.
            UnreachableError: The network fails.
        """
        key = self.keys[index]
        file = self._files[int(self._numbers["file"][index])]
        offset, size = int(self._numbers["offset"][index]), int(self._numbers["size"][index])
        name = self._rows["key"][index].as_py() + self._suffixes[index].as_py()
        where = f"{basename(file.where)}/{name}"
        if offset == NO_IMAGE:
            raise BadImageError(f"{where}: the sample has no image; expected a file of {', '.join(SUFFIXES)}")
        if size > MAX_IMAGE_BYTES:
            raise BadImageError(f"{where}: refused, {size} bytes, at most {MAX_IMAGE_BYTES}; shrink the image first")
        image = decode_rgb(read_member(file, name=name, offset=offset, size=size), where=where)
        return ImageSample(key=key, image=image, label=label)


def index_tars(
    files: Sequence[RangeFile],
    /,
    *,
    kind: str,
    entries: Callable[[Iterable[Member]], Iterator[Entry]],
    nested: bool = False,
) -> pa.RecordBatch:
    """The joined index of tars.

    Args:
        entries: From the members of a tar, in order, to the images that are in it.
        nested: As in ``scan_tar``.

    Raises:
        DataError: A tar is damaged, or two images have one key.
        UnreachableError: The network fails.
    """

    def build(file: RangeFile, progress: Callable[[int], None]) -> pa.Table:
        found = entries(scan_tar(file, nested=nested, progress=progress))
        batches = []
        while some := list(islice(found, _BATCH)):
            columns = zip(zip(*some, strict=True), _SCHEMA, strict=True)
            batches.append(pa.record_batch([pa.array(values, item.type) for values, item in columns], schema=_SCHEMA))
        return pa.Table.from_batches(batches, schema=_SCHEMA)

    made = indices(files, kind=kind, schema=_SCHEMA, build=build)
    return joined(made, names=[file.where for file in files])
