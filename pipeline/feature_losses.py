"""The loss of stage 1 as training computes it: student, targets, loss, and what is watched beside it.

Legend: B batch, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.config_losses import FeatureLossConfig
from pipeline.loader import Batch
from pipeline.sampling import TeacherDraw
from pipeline.standards import Standards
from pipeline.students import Normalise
from pipeline.targets import TargetSource
from sak.losses.distill import PUBLISHED, LossWeights, distill_loss, distill_measures
from sak.student.adapters import AdapterPath
from sak.student.frozen import FrozenTeachers
from sak.student.model import Student, StudentOutput

__all__ = ["FeatureLosses", "adapter_scales", "gate_weights"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureLosses:
    """Losses of a batch against the teachers' maps; on watched steps their parts, cosines and the adapters' scales.

    Attributes:
        forward: The student's call, compiled or not.
        draw: The teachers of each step; None for all.
    """

    student: Student
    forward: Callable[..., StudentOutput]
    normalise: Normalise
    config: FeatureLossConfig
    targets: TargetSource
    weights: LossWeights = PUBLISHED
    standards: Standards
    draw: TeacherDraw | None = None

    def __call__(self, batch: Batch, /) -> Mapping[str, Tensor]:
        """Losses of one batch."""
        asked = self.draw(batch.step) if self.draw else None
        aligned = self.forward(self.normalise(batch.pixels), teachers=asked, share=batch.share).aligned
        wanted = self.standards(self.targets.targets(batch.encoded, batch.pixels))
        config = self.config
        named = distill_loss(wanted, aligned, config.loss, cosine=config.cosine, weights=self.weights)
        if not batch.watched:
            return named
        measures = distill_measures(wanted, aligned, config.loss, cosine=config.cosine, beta=config.beta)
        return {**named, **measures, **adapter_scales(self.student)}


def adapter_scales(student: Student | FrozenTeachers, /) -> dict[str, Tensor]:
    """``scale/<teacher>_<index>``: how much each adapter adds; index 0 is before the first block."""
    scales = {}
    for name, path in student.paths.items():
        assert isinstance(path, AdapterPath)
        for index, scale in enumerate(path.scales()):
            scales[f"scale/{name}_{index}"] = scale.detach().squeeze()
    return scales


def gate_weights(gates: Mapping[str, list[Tensor]], /, *, teachers: tuple[str, ...]) -> dict[str, Tensor]:
    """``gate/<task>_level<i>_<expert>``: what routers mixed with, mean over the images; experts are stem and teachers.

    Shapes: task to one ``(B, E)`` a level.
    """
    means = {}
    for task, levels in gates.items():
        for level, weights_BE in enumerate(levels, start=1):
            with torch.no_grad():
                mean_E = weights_BE.mean(dim=0)
            for expert, weight in zip(("stem", *teachers), mean_E, strict=True):
                means[f"gate/{task}_level{level}_{expert}"] = weight
    return means
