"""Boundary predictions and their labels in two folders: which belong together, and what they hold.

A prediction is ``NAME.png``, 8 bits of grey. Its label is ``NAME.mat`` with PASCAL-Context's ``LabelMap`` or NYUD's
``groundTruth``, or ``NAME.png`` with a label map or a boundary map.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BadImageError, DataError
from pipeline.images.files import decode_map, decode_mat, read_list
from sak.boundary import MAX_DIST

__all__ = ["KINDS", "Pair", "Truth", "decode_prediction", "decode_truth", "find_pairs", "some"]

KINDS: Mapping[str, float] = MappingProxyType(
    {"LabelMap": MAX_DIST["pascalcontext"], "groundTruth": MAX_DIST["nyud"], "PNG": MAX_DIST["pascalcontext"]}
)
"""Kinds of label files, and the tolerance that goes with each where none is given."""

_LABELS = (".mat", ".png")
_MOST_PIXELS = 1 << 26  # a damaged header may claim anything


class Pair(NamedTuple):
    """A prediction and its label."""

    key: str
    prediction: Path
    label: Path


class Truth(NamedTuple):
    """A label map, or a 0/1 boundary map, and the kind of file that it came from.

    Shapes:
        ``(H, W)``.
    """

    labels_HW: NDArray[np.generic]
    kind: str


def find_pairs(predictions: Path, labels: Path, *, ids: Path | None = None) -> list[Pair]:
    """Predictions and labels of one name each, in the order of names.

    Args:
        ids: A text file with the names of the images that count, one a line; without one, all of both folders.

    Raises:
        DataError: A folder or the list cannot be read, one side of a pair is missing, or there is none.
    """
    found = _by_name(predictions, suffixes=(".png",), what="predictions")
    true = _by_name(labels, suffixes=_LABELS, what="labels")
    wanted = read_list(ids, root=labels, layout="one image id per line") if ids else sorted({*found, *true})
    lone = {
        f"no prediction NAME.png in {predictions}": [name for name in wanted if name not in found],
        f"no label NAME.mat or NAME.png in {labels}": [name for name in wanted if name not in true],
    }
    faults = [f"{some(names)}: {fault}" for fault, names in lone.items() if names]
    if faults:
        raise DataError(f"{'; '.join(faults)}; add the files, or list the images that count with --ids FILE")
    return [Pair(name, found[name], true[name]) for name in sorted(wanted)]


def some(names: Sequence[str], /, *, most: int = 5) -> str:
    """The first of many names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def decode_prediction(data: bytes, *, where: str) -> NDArray[np.uint8]:
    """A predicted map ``(H, W)``.

    Raises:
        BadImageError: Damaged, or not 8 bits of grey; the message begins with ``where``.
    """
    return np.asarray(_bounded(data, where=where, modes=("L",)), dtype=np.uint8)


def decode_truth(data: bytes, *, where: str) -> Truth:
    """A label file.

    Raises:
        BadImageError: Damaged, or of another content; the message begins with ``where``.
    """
    if not where.endswith(".mat"):
        return Truth(_bounded(data, where=where, modes=("L", "P", "1", "I;16", "I")), "PNG")
    variables = decode_mat(data, names=("LabelMap", "groundTruth"), where=where)
    if "LabelMap" in variables:
        return Truth(_numbers(variables["LabelMap"], name="LabelMap", where=where), "LabelMap")
    boundaries = _only_annotator(variables["groundTruth"], where=where)
    return Truth(_numbers(boundaries, name="groundTruth{1}.Boundaries", where=where) != 0, "groundTruth")


def _by_name(folder: Path, *, suffixes: Iterable[str], what: str) -> dict[str, Path]:
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix in suffixes and not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: cannot list {what} ({error.strerror}); name a folder of files") from error
    if not paths:
        raise DataError(f"{folder}: no {what} NAME{' or NAME'.join(suffixes)} in it; name the folder that holds them")
    found = {path.stem: path for path in paths}
    if len(found) != len(paths):
        twice = next(path for path in paths if found[path.stem] != path)
        raise DataError(f"{twice}: there is a {found[twice.stem].name} too; remove one of the two")
    return found


def _bounded(data: bytes, *, where: str, modes: Sequence[str]) -> NDArray[np.generic]:
    # Pillow has its own bound, but warns before it refuses.
    if data[12:16] == b"IHDR" and int.from_bytes(data[16:20]) * int.from_bytes(data[20:24]) > _MOST_PIXELS:
        raise BadImageError(f"{where}: its header claims more than {_MOST_PIXELS} pixels; replace the file")
    return decode_map(data, where=where, modes=modes)


def _only_annotator(truth: NDArray[np.generic], *, where: str) -> object:
    """``groundTruth{1}.Boundaries``."""
    if truth.size != 1:
        raise BadImageError(
            f"{where}: expected one annotator in groundTruth, as NYUD has, got {truth.size}; keep one of them"
        )
    cell = truth.ravel()[0]
    names = getattr(getattr(cell, "dtype", None), "names", None) or ()
    if "Boundaries" not in names or np.size(cell) != 1:
        raise BadImageError(f"{where}: groundTruth{{1}} has no field Boundaries; is it from another data set?")
    return np.ravel(cell)[0]["Boundaries"]


def _numbers(value: object, *, name: str, where: str) -> NDArray[np.generic]:
    # MATLAB stores a sparse logical map as well as a plain one.
    array = np.asarray(value.toarray() if hasattr(value, "toarray") else value)
    if array.ndim != 2 or array.dtype.kind not in "biuf" or not array.size:
        raise BadImageError(
            f"{where}: expected {name} to be a map of numbers (H, W), got {array.dtype} {array.shape}; replace the file"
        )
    return array
