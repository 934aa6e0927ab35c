"""Students that are trained already: what a finished stage left, or a file that a recipe names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from pipeline.config import Study
from pipeline.config_student import StudentConfig
from pipeline.errors import NotDoneError, PipelineError
from pipeline.identity import last_stage_dir
from pipeline.stagedir import StageDir
from sak.spec import StudentSpec
from sak.student.file import Origin, StudentFile, read_header, read_student
from sak.student.frozen import FrozenTeachers, build_frozen
from sak.student.model import Student, build_student
from sak.weights import load_strict, load_weights

__all__ = ["Trained", "check_trained", "read_trained", "spec_to_score", "trained_student", "trained_to_score"]


class Trained(NamedTuple):
    """A network to score.

    Attributes:
        dataset: The one of its tasks; empty without tasks.
        stage: Where it was trained; None for a recipe's file.
    """

    student: Student | FrozenTeachers
    dataset: str
    stage: StageDir | None


def trained_to_score(study: Study, out: Path, /, *, device: torch.device) -> Trained:
    """The network that a study is scored by, in eval mode.

    Raises:
        NotDoneError: Its last stage is not done.
        CheckpointError: Weights do not fit their own description, or the recipe's file cannot be read.
        PipelineError: The file holds another student than the recipe describes.
    """
    if not study.scores_file:
        stage = last_stage_dir(study, out)
        student, record = trained_student(stage, device=device)
        return Trained(student, str(record.get("dataset", "")), stage)
    file = read_trained(study.student)
    student = _built(file.spec)
    load_strict(student, file.state, where=str(study.student.trained))
    return Trained(student.to(device).eval(), file.origin.dataset, None)


def spec_to_score(study: Study, out: Path, /) -> StudentSpec:
    """What network a study is scored by; its weights are not read.

    Raises:
        NotDoneError, CheckpointError: As ``trained_to_score``.
    """
    if study.scores_file:
        assert study.student.trained is not None
        return read_header(Path(study.student.trained))[0]
    stage = last_stage_dir(study, out)
    if not stage.done():
        raise NotDoneError(f"{stage.path}: this stage is not done")
    spec = stage.record()["spec"]
    assert isinstance(spec, dict)
    return StudentSpec.from_dict(spec)


def trained_student(stage: StageDir, /, *, device: torch.device) -> tuple[Student | FrozenTeachers, dict[str, object]]:
    """The network of a finished stage, in eval mode, and the stage's record.

    Raises:
        NotDoneError: The stage is not done.
        CheckpointError: Its weights do not fit its own description.
    """
    if not stage.done():
        raise NotDoneError(f"{stage.path}: this stage is not done")
    record = stage.record()
    assert isinstance(record["spec"], dict)
    student = _built(StudentSpec.from_dict(record["spec"]))
    path = stage.path / "student.safetensors"
    load_strict(student, load_weights(path), where=str(path))
    return student.to(device).eval(), record


def _built(spec: StudentSpec) -> Student | FrozenTeachers:
    return build_frozen(spec) if spec.paths == "frozen" else build_student(spec)


def read_trained(config: StudentConfig, /) -> StudentFile:
    """The student that ``student.trained`` names.

    Raises:
        CheckpointError: The file cannot be read, or has no description.
        PipelineError: It was trained on pixels that are normalised otherwise.
    """
    assert config.trained is not None
    file = read_student(Path(config.trained))
    _check_statistics(config, file.origin)
    return file


def check_trained(study: Study, /) -> StudentSpec:
    """What ``student.trained`` describes, found to be what the recipe means; its weights are not read.

    Raises:
        CheckpointError: As ``read_trained``.
        PipelineError: It has other teachers than the recipe's student, in another order, no tasks to score, or another
            size than the images that are scored.
    """
    config = study.student
    assert config.trained is not None
    spec, origin = read_header(Path(config.trained))
    _check_statistics(config, origin)
    if spec.paths == "frozen":
        raise PipelineError(f"student.trained: {config.trained} has no student, but heads on teachers' maps")
    if study.finetune is not None:
        _check_teachers(config, [*spec.teacher_widths], [*study.student_teachers])
        return spec
    if not spec.tasks:
        raise PipelineError(
            f"student.trained: {config.trained} is of stage 1 and has no tasks to score; give the recipe finetune"
        )
    data = study.data.eval
    if data is not None and data.view.size != spec.image_size:
        wanted = "x".join(map(str, spec.image_size))
        raise PipelineError(
            f"data.eval.view.size: expected {wanted}, at which {config.trained} was trained, got {data.view.size}"
        )
    return spec


def _check_teachers(config: StudentConfig, there: Sequence[str], asked: Sequence[str]) -> None:
    # A router's experts have no names: with another order its weights would load and mean others.
    if there and config.paths == "adapters" and there != asked:
        raise PipelineError(
            f"student.trained: {config.trained} has adapter paths of {', '.join(there)}, expected {', '.join(asked)} as"
            " the recipe's teachers; name the recipe's like these, in their order"
        )


def _check_statistics(config: StudentConfig, origin: Origin) -> None:
    for key, here, there in (("mean", config.mean, origin.mean), ("std", config.std, origin.std)):
        if here != there:
            raise PipelineError(
                f"student.{key}: {config.trained} was trained with {list(there)}, got {list(here)}; set it so"
            )
