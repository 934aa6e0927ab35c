"""What a study must find in the store before it trains or scores."""

from __future__ import annotations

from typing import NamedTuple

from pipeline.config import DataConfig, Study

__all__ = ["Need", "needs"]


class Need(NamedTuple):
    """A view set that a study reads, and the teachers whose columns it reads over it."""

    purpose: str
    data: DataConfig
    labels: bool
    teachers: tuple[str, ...]


def needs(study: Study, /) -> tuple[Need, ...]:
    """What a study must find in the store; teachers that run online are not among it."""
    found, teachers = [], study.student_teachers
    if study.distill and study.data.distill:
        stored = teachers if study.distill.targets == "cached" else ()
        found.append(Need("distill", study.data.distill, False, stored))
    if study.finetune and study.data.finetune:
        stored = teachers if study.final_targets == "cached" else ()
        found.append(Need("finetune", study.data.finetune, True, stored))
    if study.data.eval:
        # Teachers over held-out images give the held-out distillation loss and the report's feature pictures.
        stored = teachers if study.final_targets == "cached" else ()
        found.append(Need("eval", study.data.eval, study.finetune is not None, stored))
    return tuple(found)
