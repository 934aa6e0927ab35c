"""Views as files of the store and back, and as tensors: PNG for pixels and class maps, npy for normals and depth.

Nothing read here is trusted: sizes are checked before anything is allocated, and no pickle is ever opened.
Shape suffixes: B batch, C channel, H row, W column.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import BadImageError, DataError
from pipeline.images.sample import ImageSample
from pipeline.transforms import Array
from sak.dense.registry import LABELS

__all__ = ["IMAGE_FILE", "LABEL_FILES", "MAX_PIXELS", "decode_sample", "encode_sample", "pick_labels"]

IMAGE_FILE = "png"
LABEL_FILES: Mapping[str, str] = MappingProxyType({name: label.file for name, label in LABELS.items()})
"""Task name to the file's extension in an image shard."""

MAX_PIXELS = 64 * 1024 * 1024
"""Largest image that is decoded; a view is far smaller, and a damaged header may claim anything."""

_NPY: dict[str, np.dtype[Any]] = {
    name: np.dtype(label.stored).newbyteorder("<") for name, label in LABELS.items() if label.stored != "uint8"
}
_PNG_HEAD = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
_RLE = 3  # zlib's run-length strategy: on PNG's filtered rows smaller and faster than level 1's default
_REMEDY = "restore the shard from a copy or extract it again"


def encode_sample(sample: ImageSample) -> dict[str, bytes]:
    """Files of one view by extension; lossless but for normals, which become float16 (0.03 degrees at most).

    Raises:
        DataError: A label without a file format, or an array of the wrong type or shape.
    """
    size = sample.image.shape[:2]
    files = {IMAGE_FILE: _encode_png(sample.image, shape=(*size, 3), where=f"{sample.key}, image")}
    for task, array in sample.labels.items():
        where = f"{sample.key}, label {task!r}"
        if task not in LABEL_FILES:
            raise DataError(f"{where}: expected one of {', '.join(LABEL_FILES)}; add its file format")
        if task in _NPY:
            files[LABEL_FILES[task]] = _encode_npy(array, task=task, shape=LABELS[task].shape(size), where=where)
        else:
            files[LABEL_FILES[task]] = _encode_png(array, shape=LABELS[task].shape(size), where=where)
    return files


def decode_sample(files: Mapping[str, bytes], *, key: str, tasks: Sequence[str]) -> ImageSample:
    """The view that ``encode_sample`` wrote, with the asked labels; normals come back at unit length.

    Raises:
        BadImageError: A file is missing, damaged, or of another size than the image; the message names key and file.
        DataError: A task without a file format.
    """
    image = _decode_png(_file(files, IMAGE_FILE, key=key), mode="RGB", where=f"{key}.{IMAGE_FILE}")
    size = image.shape[:2]
    labels: dict[str, Array] = {}
    for task in tasks:
        if task not in LABEL_FILES:
            raise DataError(f"{key}: expected a label of {', '.join(LABEL_FILES)}, got {task!r}; ask for one of these")
        name, where = LABEL_FILES[task], f"{key}.{LABEL_FILES[task]}"
        data = _file(files, name, key=key)
        if task in _NPY:
            labels[task] = _decode_npy(data, task=task, shape=LABELS[task].shape(size), where=where)
        else:
            labels[task] = _decode_png(data, mode="L", where=where)
        if labels[task].shape[:2] != size:
            raise BadImageError(f"{where}: expected {size} as the image, got {labels[task].shape[:2]}; {_REMEDY}")
    return ImageSample(key=key, image=image, labels=labels)


def pick_labels(sample: ImageSample, *, tasks: Sequence[str]) -> ImageSample:
    """A view with the asked labels as ``decode_sample`` would give them of its files, without making any."""
    labels = {task: sample.labels[task] for task in tasks}
    if "normals" in labels:
        labels["normals"] = _unit(labels["normals"].astype(_NPY["normals"]).astype(np.float32))
    return ImageSample(key=sample.key, image=sample.image, labels=labels)


def _file(files: Mapping[str, bytes], name: str, *, key: str) -> bytes:
    if name not in files:
        raise BadImageError(f"{key}: expected a file {name!r}, got {', '.join(sorted(files)) or 'none'}; {_REMEDY}")
    return files[name]


def _encode_png(array: Array, *, shape: tuple[int, ...], where: str) -> bytes:
    if array.dtype != np.uint8 or array.shape != shape:
        raise DataError(f"{where}: expected uint8 {shape}, got {array.dtype} {array.shape}; mend the image source")
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(buffer, "PNG", compress_level=1, compress_type=_RLE)
    return buffer.getvalue()


def _decode_png(data: bytes, *, mode: str, where: str) -> NDArray[np.uint8]:
    if not data.startswith(_PNG_HEAD) or len(data) < len(_PNG_HEAD) + 8:
        raise BadImageError(f"{where}: expected a PNG, got {data[:8]!r} ({len(data)} bytes); {_REMEDY}")
    width, height = struct.unpack_from(">II", data, len(_PNG_HEAD))
    if not 0 < width * height <= MAX_PIXELS:
        raise BadImageError(f"{where}: expected 1 to {MAX_PIXELS} pixels, got {height}x{width}; {_REMEDY}")
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.size != (width, height):  # a second header overrides the first
                raise ValueError(f"another header says {image.size[1]}x{image.size[0]}")
            found, pixels = image.mode, np.array(image)
    except (OSError, SyntaxError, ValueError, struct.error, Warning, Image.DecompressionBombError) as error:
        raise BadImageError(f"{where}: cannot be decoded ({error}); {_REMEDY}") from error
    if found != mode:
        raise BadImageError(f"{where}: expected mode {mode}, got {found}; {_REMEDY}")
    return pixels


def _encode_npy(array: Array, *, task: str, shape: tuple[int, ...], where: str) -> bytes:
    if array.dtype != np.float32 or array.shape != shape:
        raise DataError(f"{where}: expected float32 {shape}, got {array.dtype} {array.shape}; mend the image source")
    return _npy_header(task, shape) + array.astype(_NPY[task]).tobytes()


def _decode_npy(data: bytes, *, task: str, shape: tuple[int, ...], where: str) -> NDArray[np.float32]:
    # The one header that we write is compared as bytes: nothing is parsed, so nothing in it can mislead us.
    header = _npy_header(task, shape)
    values = data[len(header) :]
    if not data.startswith(header) or len(values) != int(np.prod(shape)) * _NPY[task].itemsize:
        raise BadImageError(f"{where}: expected {_NPY[task].name} {shape} as the image, got other data; {_REMEDY}")
    array = np.frombuffer(values, _NPY[task]).reshape(shape).astype(np.float32)
    if not np.isfinite(array).all():
        raise BadImageError(f"{where}: expected finite values; {_REMEDY}")
    return _unit(array) if LABELS[task].shown == "directions" else array


def _npy_header(task: str, shape: tuple[int, ...]) -> bytes:
    # Written here because NumPy's own padding differs between its versions, and bytes in the store must not.
    text = f"{{'descr': '{_NPY[task].str}', 'fortran_order': False, 'shape': {shape}, }}"
    length = -(10 + len(text) + 1) % 64 + len(text) + 1
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", length) + text.ljust(length - 1).encode() + b"\n"


def _unit(normals: NDArray[np.float32]) -> NDArray[np.float32]:
    x, y, z = normals[..., 0], normals[..., 1], normals[..., 2]
    length: NDArray[np.float32] = np.sqrt(x * x + y * y + z * z)[..., None]
    return (normals / np.maximum(length, np.float32(1e-30))).astype(np.float32, copy=False)
