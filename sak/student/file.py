"""A student as one file: its weights as safetensors, its description and origin in the header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from sak.errors import CheckpointError
from sak.spec import StudentSpec
from sak.weights import load_metadata, load_weights, save_weights

__all__ = ["Origin", "StudentFile", "read_header", "read_student", "save_student"]

Statistics = tuple[float, float, float]


class Origin(NamedTuple):
    """What a network's description does not tell.

    Attributes:
        dataset: The one that its tasks are of; empty without tasks.
        mean, std: What pixels in 0..1 are normalised with.
        made_by: The command or code it comes from.
    """

    dataset: str
    mean: Statistics
    std: Statistics
    made_by: str


class StudentFile(NamedTuple):
    """A student's weights with what is needed to build and feed it."""

    spec: StudentSpec
    origin: Origin
    state: dict[str, Tensor]


def save_student(path: Path, state: Mapping[str, Tensor], /, *, spec: StudentSpec, origin: Origin) -> None:
    """Write a student atomically.

    Raises:
        CheckpointError: ``path`` does not end in .safetensors, or cannot be written.
    """
    about = {
        "what": "student",
        "stem": spec.stem,
        "overrides": str(dict(spec.stem_overrides)),
        "spec": json.dumps(spec.to_dict()),
        "origin": json.dumps(origin._asdict()),
    }
    save_weights(path, state, metadata=about)


def read_student(path: Path, /) -> StudentFile:
    """Read what ``save_student`` wrote; whether weights and description fit is seen when they are loaded.

    Raises:
        CheckpointError: No such file, no safetensors file, or one without a description.
    """
    spec, origin = read_header(path)
    return StudentFile(spec, origin, load_weights(path))


def read_header(path: Path, /) -> tuple[StudentSpec, Origin]:
    """A student's description and origin; its weights are not read.

    Raises:
        CheckpointError: As ``read_student``.
    """
    if not path.is_file():
        raise CheckpointError(f"student: expected a file, found none at {path}; check the path")
    about = load_metadata(path)
    if not {"spec", "origin"} <= about.keys():
        raise CheckpointError(
            f"{path}: expected a student with its description, got weights alone; make it with sak export (--what"
            " student), or with sak import from a published checkpoint"
        )
    try:
        spec = StudentSpec.from_dict(json.loads(about["spec"]))
        origin = json.loads(about["origin"])
        mean, std = ((float(r), float(g), float(b)) for r, g, b in (origin["mean"], origin["std"]))
        return spec, Origin(str(origin["dataset"]), mean, std, str(origin["made_by"]))
    # A header is text that anyone may have written: whatever is wrong with it, it is no description.
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its description cannot be read ({error}); write it again") from error
