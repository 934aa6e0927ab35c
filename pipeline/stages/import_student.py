"""Stage ``import``: a published checkpoint as a student's file that recipes take."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from rich.table import Table
from torch import Tensor

from pipeline.errors import PipelineError
from sak.errors import CheckpointError
from sak.reference import fit_reference
from sak.reference_spec import Known, recognise
from sak.spec import StudentSpec
from sak.student.file import Origin, save_student
from sak.teachers.constants import IMAGENET_MEAN, IMAGENET_STD
from sak.weights import load_metadata, read_checkpoint

__all__ = ["Imported", "import_student", "known_of", "parts_table", "student_lines"]

_PUBLISHED: Mapping[str, str] = MappingProxyType(
    {
        "stem": "vit",
        "paths": "tsap",
        "norms": "out_norms",
        "aligners": "ts_aligners",
        "routers": "mor",
        "heads": "heads",
    }
)
"""Our parts of a student, and what the published code calls them."""


class Imported(NamedTuple):
    """What a published checkpoint was found to hold.

    Attributes:
        tensors: Part of the student to its tensors and their values, counted.
        left_out: What the file holds beside the weights.
    """

    spec: StudentSpec
    dataset: str
    tensors: Mapping[str, tuple[int, int]]
    left_out: tuple[str, ...]


def known_of(
    stem: str | None = None, *, size: str | None = None, teachers: str | None = None, dataset: str | None = None
) -> Known:
    """What a user tells on the command line.

    Args:
        size: ``512`` or ``448x576``.
        teachers: Names with commas between them.

    Raises:
        PipelineError: A size that is none.
    """
    names = tuple(name.strip() for name in (teachers or "").split(",") if name.strip())
    return Known(stem=stem, image_size=None if size is None else _size(size), teachers=names, dataset=dataset)


def import_student(source: Path, out: Path | None, /, *, known: Known) -> Imported:
    """Read a published checkpoint, all of it or nothing, and write it as a student's file; without ``out`` only read.

    Raises:
        CheckpointError: The file cannot be read, is no published checkpoint or imported already, a tensor is missing,
            extra or of a wrong shape, or ``out`` is ``source`` or cannot be written.
        SakError: What the user told does not fit.
    """
    if out is not None and out.resolve() == source.resolve():
        raise CheckpointError(f"{out}: expected another file than the one that is imported; name another --out")
    checkpoint = read_checkpoint(source)
    ordered = source.suffix != ".safetensors"
    if not ordered and "spec" in load_metadata(source):
        raise CheckpointError(f"{source}: is a student of this project already; use it as student.trained={source}")
    spec, dataset = recognise(checkpoint.state, known=known, ordered=ordered, where=str(source))
    fitted = fit_reference(checkpoint.state, spec, where=str(source))
    if out is not None:
        origin = Origin(dataset, IMAGENET_MEAN, IMAGENET_STD, f"sak import {source.name}")
        save_student(out, fitted.state, spec=spec, origin=origin)
    return Imported(spec, dataset, _counted(fitted.state), checkpoint.beside)


def student_lines(found: Imported, /) -> list[str]:
    """What student it is, a line a fact."""
    spec = found.spec
    widths = ", ".join(
        f"{name} ({width if isinstance(width, int) else ', '.join(map(str, width))})"
        for name, width in spec.teacher_widths.items()
    )
    gating = "without noise" if not spec.noisy_gating else "with noise in training"
    lines = [
        f"stage: {2 if spec.tasks else 1}",
        f"stem: {spec.stem} at {spec.image_size[0]}x{spec.image_size[1]}",
        f"teachers (width), in the order of the routers' experts: {widths}",
        f"adapters: down ratio {spec.down_ratio}; aligners: {'yes' if spec.aligners else 'no'}",
    ]
    if spec.tasks:
        tasks = ", ".join(f"{task} ({channels})" for task, channels in spec.tasks.items())
        lines += [f"routers: {'none, sums' if spec.router == 'none' else gating}", f"tasks of {found.dataset}: {tasks}"]
    if found.left_out:
        lines.append(f"left out, beside the weights: {', '.join(found.left_out)}")
    return lines


def parts_table(found: Imported, /) -> Table:
    """How many tensors went into each part of the student; there are no others."""
    table = Table(header_style="bold")
    table.add_column("part")
    table.add_column("published as")
    for name in ("tensors", "values"):
        table.add_column(name, justify="right")
    for part, (tensors, values) in found.tensors.items():
        table.add_row(part, _PUBLISHED[part], str(tensors), f"{values / 1e6:.2f} M")
    total = [sum(count[index] for count in found.tensors.values()) for index in (0, 1)]
    table.add_row("all, none missing or extra", "", str(total[0]), f"{total[1] / 1e6:.2f} M", style="bold")
    return table


def _counted(state: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    counts: dict[str, tuple[int, int]] = {}
    for name, tensor in state.items():
        tensors, values = counts.get(name.partition(".")[0], (0, 0))
        counts[name.partition(".")[0]] = tensors + 1, values + tensor.numel()
    return counts


def _size(text: str) -> tuple[int, int]:
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise PipelineError(f"--size: expected pixels as 512 or 448x576 (rows x columns), got {text!r}")
    return int(sides[0]), int(sides[-1])
