"""What a study must find in the store before it trains or scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from pipeline.config import DataConfig, Study
from pipeline.config_teachers import CodecValue

__all__ = ["Need", "needs", "scores_tasks"]


class Need(NamedTuple):
    """A view set that a study reads, and the teachers whose columns it reads over it, with their codecs."""

    purpose: str
    data: DataConfig
    labels: bool
    teachers: Mapping[str, CodecValue]


def scores_tasks(study: Study, /) -> bool:
    """Whether scoring reads labels."""
    return study.finetune is not None or study.scores_file


def needs(study: Study, /) -> tuple[Need, ...]:
    """What a study must find in the store; teachers that run online are not among it, nor views drawn afresh."""
    found, scored = [], study.scored
    teachers = {name: study.codec(name) for name in study.student_teachers}
    if study.distill and study.data.distill and study.distill.crops != "fresh":
        stored = teachers if study.distill.targets == "cached" else {}
        found.append(Need("distill", study.data.distill, False, stored))
    if study.finetune and study.data.finetune and study.finetune.crops != "fresh":
        stored = teachers if study.final_targets == "cached" else {}
        found.append(Need("finetune", study.data.finetune, True, stored))
    if study.data.eval:
        # Teachers over held-out images give the held-out distillation loss and the report's feature pictures.
        stored = {name: scored.codec(name) for name in teachers} if study.scored_targets == "cached" else {}
        found.append(Need("eval", study.data.eval, scores_tasks(study), stored))
    return tuple(found)
