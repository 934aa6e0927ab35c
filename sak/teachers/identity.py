"""Everything a teacher's maps depend on, as JSON values, known without building its network."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from sak.grids import POOLING
from sak.teachers.families import family_of, pretrained_tag, statistics
from sak.teachers.packaged import weights_file
from sak.teachers.spec import TeacherSpec
from sak.weights import sha256_file

__all__ = ["EXTRACTION", "teacher_identity"]

EXTRACTION = 1
"""Version of preprocessing and extraction; to be raised when a change of code changes the maps."""


def teacher_identity(spec: TeacherSpec) -> dict[str, Any]:
    """Describe a teacher so that two equal descriptions mean equal maps.

    Its name and the place of its weights are left out. Levels that the spec leaves open stay ``"default"``. The
    normalisation is recorded as its numbers: a teacher trained with ImageNet's is the same under ``reference``.

    Raises:
        UnknownNameError: timm has no such model.
        TeacherError: The file with the weights is missing, or timm has none.
    """
    family_of(spec.timm)
    found = statistics(spec)
    about = {
        "extraction": EXTRACTION,
        "timm": spec.timm,
        "overrides": {key: _plain(spec.overrides[key]) for key in sorted(spec.overrides)},
        "weights": _weights(spec),
        "levels": list(spec.levels) or "default",
        "input_size": None if spec.input_size is None else list(spec.input_size),
        "resize": spec.resize,
        "alignment": spec.alignment,
        "mean": list(found.mean),
        "std": list(found.std),
    }
    # Keys of their own only where there is something to say, so that other columns keep the names they always had.
    grid = {} if spec.grid is None else {"grid": {"size": list(spec.grid), "resampling": POOLING}}
    return about | grid | _arithmetic(spec)


def _arithmetic(spec: TeacherSpec) -> dict[str, Any]:
    """How the network is computed, where not plainly.

    Another memory format or a compiled network differs by float noise alone (3e-7 of a map's largest value), but bytes
    are to be a function of what a column says of itself, and what compiling gives varies with the compiler.
    """
    asked = {"channels_last": spec.channels_last, "compiled": spec.compiled}
    found: dict[str, Any] = {key: True for key, value in asked.items() if value}
    found |= {} if spec.precision == "fp32" else {"precision": spec.precision}
    return {"arithmetic": found} if found else {}


def _weights(spec: TeacherSpec) -> dict[str, Any]:
    if spec.pretrained:
        return {"pretrained": pretrained_tag(spec.timm)}
    if spec.random is not None:
        return {"random": spec.random}
    path = weights_file(spec).resolve()
    status = path.stat()
    return {"sha256": _digest(path, status.st_size, status.st_mtime_ns)}


@lru_cache(maxsize=64)
def _digest(path: Path, _size: int, _mtime_ns: int) -> str:
    """Digest a file once per process; size and time are part of the key, so that a replaced file is read again."""
    return sha256_file(path)


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
