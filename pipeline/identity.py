"""Where work lives: a stage's folder is named by everything that its result depends on, and by nothing else.

What a stage reads goes into the inputs here; a key left out would take old results for those of a changed recipe.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from pipeline.boundary.counts import COUNTING
from pipeline.config import EvalConfig, StudentConfig, Study
from pipeline.errors import PipelineError
from pipeline.loop import TRAINING
from pipeline.needs import scores_tasks
from pipeline.stagedir import StageDir
from pipeline.students import student_identity
from pipeline.targets import study_columns, teacher_specs
from pipeline.viewsets import view_set_spec
from sak.student.stem import stem_width
from sak.teachers.identity import teacher_identity
from store.spec import ViewSetSpec

__all__ = ["SCORING", "distill_dir", "evaluate_dir", "finetune_dir", "last_stage_dir", "plain", "target_identity"]

# Raise it whenever the same network and views would get other metrics, router weights or gallery arrays.
SCORING = 2
# Routers come with the tasks: runs that differ only in them share stage 1.
_STAGE2_ONLY = ("router", "noisy_gating", "noise", "head")
# Keys that came later count only where they are not at their default: results from before them keep their folders.
_LATER = frozenset(
    {
        *("cosine_weight", "l1_weight", "beta", "teacher_weights", "level_weights"),
        *("drop_last", "warmup_epochs", "reference_schedule", "standardize", "standardize_rows", "teachers_per_step"),
        *("compile", "fused", "crops", "freeze", "lora", "ema", "head"),
        *("task_weights", "weighting", "weighting_lr", "gradnorm_alpha", "lr_scales"),
    }
)
_SCORED_LATER = {"boundary": "pixel", "absent_classes": "zero", "held_out_loss": "auto", "resolution": "view"}
# What a result does not depend on: the names of statistics that are there themselves, how gradients are had, and how a
# batch is gone through, which as the number of ranks changes it by no more than rounding: a run goes on where there
# are fewer or smaller GPUs.
# A trained student counts by its bytes, wherever they lie.
_NO_RESULT = frozenset({"normalization", "checkpointing", "accumulate", "trained"})


def distill_dir(study: Study, out: Path, /) -> StageDir:
    """Where stage 1 of a study lives.

    Raises:
        MissingColumnError: It learns from stored targets, and a column is absent or incomplete.
    """
    config, data = study.distill, study.data.distill
    assert config is not None
    assert data is not None
    view_set = view_set_spec(data, labels=False)
    about = _shaping(study.student) | student_identity(study.student)
    if study.student.freeze == "distilled":
        about.pop("freeze")  # of stage 2
    inputs = {
        "training": TRAINING,
        "seed": study.seed,
        "views": _views(view_set),
        "teachers": list(study.student_teachers),
        "targets": target_identity(study, view_set, kind=config.targets),
        "student": {key: value for key, value in about.items() if key not in _STAGE2_ONLY},
        "distill": _shaping(config),
    }
    return StageDir.of(out, "distill", inputs=inputs)


def finetune_dir(study: Study, out: Path, /) -> StageDir:
    """Where stage 2 of a study lives; depends on stage 1 where there is one.

    Raises:
        MissingColumnError: As ``distill_dir``.
    """
    config, data = study.finetune, study.data.finetune
    assert config is not None
    assert data is not None
    view_set = view_set_spec(data, labels=True)
    # Adapter paths stand for teachers, in their order, even where nothing of a teacher is read.
    has_teachers = study.student.paths == "adapters" or study.final_targets is not None
    inputs = {
        "training": TRAINING,
        "seed": study.seed,
        "views": _views(view_set),
        "teachers": list(study.student_teachers) if has_teachers else [],
        "targets": target_identity(study, view_set, kind=config.targets) if study.final_targets else None,
        "stage1": distill_dir(study, out).fingerprint if study.distill else None,
        "student": _network(study.student),
        "finetune": _shaping(config),
    }
    return StageDir.of(out, "finetune", inputs=inputs)


def evaluate_dir(study: Study, out: Path, /) -> StageDir:
    """Where a score lives: a function of the trained network and of what it is scored on.

    Raises:
        PipelineError: The study trains nothing, or has no ``data.eval``.
        MissingColumnError: As ``distill_dir``.
    """
    if study.data.eval is None:
        raise PipelineError("eval needs data.eval: images (with labels, to score tasks) and their views")
    if study.finetune is None and study.distill is None and not study.scores_file:
        raise PipelineError("eval needs a trained student: give the recipe distill, finetune or both")
    inputs = {
        "scoring": SCORING,
        "trained": student_identity(study.student) if study.scores_file else last_stage_dir(study, out).path.name,
        "views": _views(view_set_spec(study.data.eval, labels=scores_tasks(study))),
        "eval": _scored_by(study.eval),
    }
    return StageDir.of(out, "eval", inputs=inputs)


def _network(config: StudentConfig) -> dict[str, object]:
    """What stage 2 trains; heads on frozen maps depend on no more of a student than on its heads' kind and width."""
    about = _shaping(config)
    if config.paths == "frozen":
        width = stem_width(config.stem, overrides=config.overrides)
        return {"width": width} | {key: about[key] for key in ("paths", "head") if key in about}
    return about | student_identity(config)


def _scored_by(config: EvalConfig) -> dict[str, object]:
    """What decides a score; what came later counts only where it is not at its default, as in training."""
    found = {
        key: value for key, value in plain(config).items() if key not in _SCORED_LATER or value != _SCORED_LATER[key]
    }
    del found["save"]
    return found | ({"counting": COUNTING} if "boundary" in found else {})


def last_stage_dir(study: Study, out: Path, /) -> StageDir:
    """Where the trained network of a study lives.

    Raises:
        MissingColumnError: As ``distill_dir``.
    """
    return finetune_dir(study, out) if study.finetune else distill_dir(study, out)


def target_identity(study: Study, view_set: ViewSetSpec, /, *, kind: str) -> object:
    """What the targets are; builds no teacher."""
    if kind == "online":
        return {name: teacher_identity(spec) for name, spec in teacher_specs(study).items()}
    return {name: column.name for name, column in study_columns(study, view_set=view_set).items()}


def _views(spec: ViewSetSpec) -> str:
    """Which rows are read: the name of a view set does not say how many views of it."""
    return spec.name if spec.views == 1 else f"{spec.name}, {spec.views} views"


def _shaping(config: object, /) -> dict[str, object]:
    """The keys of a configuration that shape a result, as JSON-ready data."""
    assert dataclasses.is_dataclass(config)
    found = plain(config)
    for item in dataclasses.fields(config):
        made = item.default_factory() if callable(item.default_factory) else item.default
        if item.name in _NO_RESULT or (item.name in _LATER and getattr(config, item.name) == made):
            del found[item.name]
    return found


def plain(config: object, /) -> dict[str, object]:
    """A configuration object as JSON-ready data, for fingerprints and records."""
    assert dataclasses.is_dataclass(config)
    assert not isinstance(config, type)
    found = {item.name: _plain_value(getattr(config, item.name)) for item in dataclasses.fields(config)}
    # As views were named before there was a choice of their padding.
    return {name: value for name, value in found.items() if name != "fill" or value not in (None, "black")}


def _plain_value(value: object) -> object:
    if dataclasses.is_dataclass(value):
        return plain(value)
    if isinstance(value, Mapping):
        return {str(key): _plain_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_value(item) for item in value]
    return value
