"""Students from checkpoints of the published implementation.

Its names are mapped to ours by one table each; a key that the described student does not have, or lacks, is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sak.errors import SakError
from sak.spec import StudentSpec
from sak.student.model import Student, build_student
from sak.tasks import dataset_spec
from sak.weights import Fitted, fit_state, load_strict, rename_keys, unwrap_state

__all__ = ["fit_reference", "reference_renames", "reference_state", "student_from_reference"]


def student_from_reference(
    state_dict: Mapping[str, object],
    *,
    stem: str,
    image_size: int | tuple[int, int],
    teacher_widths: Mapping[str, int],
    down_ratio: int = 4,
    aligners: bool = False,
    tasks: Sequence[str] = (),
    dataset: str | None = None,
    router: str = "mor",
    noisy_gating: bool = True,
) -> Student:
    """Build the student that a published checkpoint holds and load it strictly.

    Args:
        state_dict: As the published code saves it: bare or under ``model``, with or without a DDP prefix; stage 1
            (``vit. tsap. …``) or stage 2 (``backbone. heads.``).
        stem: timm name of the student's vision transformer.
        image_size: Side, or rows and columns, that the checkpoint was trained at.
        teacher_widths: Teacher → channels of its maps, in the order of the published configuration.
        tasks: Tasks of a stage-2 checkpoint; empty for stage 1.
        dataset: Data set that tells the tasks' channels; needed with tasks.

    Returns:
        The student in eval mode; its call gives ``.aligned``, ``.tasks`` and ``.gates``.

    Raises:
        CheckpointError: a key is wrong, missing or extra; the message lists them.
        SakError: the description itself is impossible.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    spec = StudentSpec(
        stem=stem,
        image_size=(size[0], size[1]),
        teacher_widths=dict(teacher_widths),
        down_ratio=down_ratio,
        aligners=aligners,
        tasks=_channels(tasks, dataset),
        router=router,
        noisy_gating=noisy_gating,
    )
    student = build_student(spec)
    state = unwrap_state(state_dict)
    renames = reference_renames(student.levels, inner=_inner(state, spec))
    load_strict(student, state, where="published checkpoint", renames=renames)
    return student.eval()


def fit_reference(state: Mapping[str, Tensor], spec: StudentSpec, /, *, where: str) -> Fitted:
    """A published checkpoint by our names, every tensor of it; no network is held in memory for that.

    Raises:
        CheckpointError: As ``student_from_reference``.
        SakError: The description itself is impossible.
    """
    with torch.device("meta"):
        student = build_student(spec)
    renames = reference_renames(student.levels, inner=_inner(state, spec))
    return fit_state(student.state_dict(), state, where=where, renames=renames)


def reference_state(student: Student, /) -> dict[str, Tensor]:
    """A student's weights by the published names: what ``student_from_reference`` reads."""
    inner = "backbone." if student.spec.tasks else ""
    return rename_keys(student.state_dict(), reference_renames(student.levels, inner=inner))


def reference_renames(levels: Sequence[int], /, *, inner: str) -> list[tuple[str, str]]:
    """Table (pattern of our key, published key) for a student with those levels.

    Args:
        inner: Prefix of everything but the heads: ``backbone.`` in stage 2, empty in stage 1.
    """
    renames = [
        (r"stem\.(.+)", rf"{inner}vit.\1"),
        (r"paths\.(.+)", rf"{inner}tsap.\1"),
        (r"heads\.(.+)\.reduce\.(.+)", r"heads.\1.linears.\2"),
        (r"heads\.(.+)\.fuse\.(.+)", r"heads.\1.linear_fuse.0.\2"),
        (r"heads\.(.+)\.norm\.(.+)", r"heads.\1.linear_fuse.1.\2"),
        (r"heads\.(.+)\.classify\.(.+)", r"heads.\1.last_conv.\2"),
    ]
    for index, level in enumerate(levels):
        gate = rf"{inner}mor.{level}_\1.router.module"
        renames += [
            (rf"norms\.(.+)\.{index}\.(.+)", rf"{inner}out_norms.{level}_\1.\2"),
            (rf"aligners\.(.+)\.{index}\.(.+)", rf"{inner}ts_aligners.{level}_\1.\2"),
            (rf"routers\.(.+)\.{index}\.hidden\.(.+)", rf"{gate}.0.\2"),
            (rf"routers\.(.+)\.{index}\.norm\.(.+)", rf"{gate}.1.\2"),
            (rf"routers\.(.+)\.{index}\.gate\.(.+)", rf"{gate}.3.\2"),
        ]
    return renames


def _inner(state: Mapping[str, Tensor], spec: StudentSpec) -> str:
    # Stage 2 wraps the stage-1 network; without tasks it may have been saved either way.
    return "backbone." if spec.tasks or any(name.startswith("backbone.") for name in state) else ""


def _channels(tasks: Sequence[str], dataset: str | None) -> dict[str, int]:
    if not tasks:
        return {}
    if dataset is None:
        raise SakError(f"published checkpoint: expected the data set of tasks {list(tasks)}, got none; pass dataset=")
    spec = dataset_spec(dataset)
    return {task: spec.task(task).channels for task in tasks}
