"""The feature distillation loss between a teacher's maps and a student's.

Legend: B batch, C channels, H W grid rows and columns, N grid cells.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from sak.errors import SakError, UnknownNameError
from sak.grids import resize_map

__all__ = ["COSINES", "KINDS", "PUBLISHED", "LossWeights", "distill_loss", "distill_measures"]

KINDS = ("cos+l1", "cos", "l2")
"""``cos+l1`` is 0.9 cosine distance + 0.1 smooth L1 (beta 1) unless weighed otherwise, the paper's; ``l2`` is the mean
squared error."""

COSINES = ("image", "token")
"""``image`` is one cosine per flattened map, as published; ``token`` one per grid cell, then averaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossWeights:
    """What each part of the loss counts; the defaults are the paper's.

    Attributes:
        cosine, l1: Of the two terms of ``cos+l1``.
        beta: Where the smooth L1 turns from a square into a line; 0 for plain L1.
        teachers: Teacher to the weight of its levels; 1 where not named.
        levels: Weight of each level, first level first; empty for 1 each.
    """

    cosine: float = 0.9
    l1: float = 0.1
    beta: float = 1.0
    teachers: Mapping[str, float] = field(default_factory=dict)
    levels: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuse weights that no loss can have.

        Raises:
            SakError: A weight is negative or no number; the message names it.
        """
        named = {"cosine_weight": self.cosine, "l1_weight": self.l1, "beta": self.beta}
        named |= {f"teacher_weights.{name}": weight for name, weight in self.teachers.items()}
        named |= {f"level_weights[{index}]": weight for index, weight in enumerate(self.levels)}
        wrong = [f"{name} {weight}" for name, weight in named.items() if not 0 <= weight < math.inf]
        if wrong:
            raise SakError(f"loss weights: expected numbers of 0 or more, got {', '.join(wrong)}; correct them")

    def of(self, teacher: str, /, *, level: int, levels: int) -> float:
        """Weight of one level (from 0) of a teacher.

        Raises:
            SakError: There are weights for another number of levels.
        """
        if self.levels and len(self.levels) != levels:
            raise SakError(
                f"level_weights: expected {levels}, one a level, got {len(self.levels)}; give as many as levels"
            )
        return self.teachers.get(teacher, 1.0) * (self.levels[level] if self.levels else 1.0)


PUBLISHED = LossWeights()
"""The paper's weights."""


def distill_loss(
    teacher: Mapping[str, Sequence[Tensor]],
    student: Mapping[str, Sequence[Tensor]],
    kind: str,
    *,
    cosine: str = "image",
    weights: LossWeights = PUBLISHED,
) -> dict[str, Tensor]:
    """Sum the loss of every teacher and level; nothing is averaged, so more teachers weigh more.

    Where two maps differ in size, the smaller one is enlarged bilinearly. The arithmetic is float32 whatever the maps
    are.

    Args:
        teacher: Teacher name → target maps, one per level. Only their names and values matter, not their order.
        student: The same names → predicted maps.
        kind: One of ``KINDS``.
        cosine: One of ``COSINES``; ``l2`` has none and ignores it.
        weights: Of terms, teachers and levels.

    Returns:
        Scalars ``<teacher>_level<i>`` (i from 1) in the teachers' order, not weighed by teacher or level, and their
        weighed sum as ``total``.

    Shapes:
        Every map ``(B, C, H, W)``; a pair agrees in B and C.

    Raises:
        UnknownNameError: ``kind`` or ``cosine`` is not a choice.
        SakError: Teacher and student differ in teachers, levels, batch or channels; or there is nothing to compare.

    Source:
        The published loss. Its cosine over the whole flattened map lets a few large tokens dominate; ``cosine="token"``
        is our alternative.
    """
    if kind not in KINDS:
        raise UnknownNameError(f"unknown distillation loss {kind!r}: expected one of {', '.join(KINDS)}")
    if cosine not in COSINES:
        raise UnknownNameError(f"unknown cosine {cosine!r}: expected one of {', '.join(COSINES)}")
    _check_names(teacher, student)
    losses, terms = {}, []
    for name, target_maps in teacher.items():
        for level, (target_BCHW, feat_BCHW) in enumerate(zip(target_maps, student[name], strict=True)):
            where = f"{name}_level{level + 1}"
            pair = _match(target_BCHW, feat_BCHW, where=where)
            losses[where] = _pair_loss(*pair, kind=kind, cosine=cosine, weights=weights)
            terms.append(losses[where] * weights.of(name, level=level, levels=len(target_maps)))
    return losses | {"total": torch.stack(terms).sum()}


@torch.no_grad()
def distill_measures(
    teacher: Mapping[str, Sequence[Tensor]],
    student: Mapping[str, Sequence[Tensor]],
    kind: str,
    *,
    cosine: str = "image",
    beta: float = 1.0,
) -> dict[str, Tensor]:
    """How near every map is, for people to watch; no gradient passes.

    Args:
        teacher, student, kind, cosine: As ``distill_loss`` has taken them.
        beta: Of its weights.

    Returns:
        For each ``<teacher>_level<i>``: ``cosine/...``, the mean over tokens of the cosine between the two; and of the
        loss ``cos+l1`` its two terms before they are weighed, ``loss_cosine/...`` and ``loss_l1/...``.
    """
    found = {}
    for name, target_maps in teacher.items():
        for level, (target_BCHW, feat_BCHW) in enumerate(zip(target_maps, student[name], strict=True)):
            where = f"{name}_level{level + 1}"
            target_BCHW, feat_BCHW = _match(target_BCHW, feat_BCHW, where=where)
            found[f"cosine/{where}"] = functional.cosine_similarity(target_BCHW, feat_BCHW, dim=1).mean()
            if kind == "cos+l1":
                found[f"loss_cosine/{where}"] = _cosine_distance(target_BCHW, feat_BCHW, cosine=cosine)
                found[f"loss_l1/{where}"] = functional.smooth_l1_loss(feat_BCHW, target_BCHW, beta=beta)
    return found


def _check_names(teacher: Mapping[str, Sequence[Tensor]], student: Mapping[str, Sequence[Tensor]]) -> None:
    if not teacher:
        raise SakError("distillation: expected at least one teacher, got none; give targets or leave out the loss")
    if set(teacher) != set(student):
        missing, extra = sorted(set(teacher) - set(student)), sorted(set(student) - set(teacher))
        raise SakError(
            f"distillation: expected one student path per teacher, got none for {missing} and too many {extra};"
            " build the student with the teachers of the targets"
        )
    for name, maps in teacher.items():
        if len(maps) != len(student[name]) or not maps:
            raise SakError(
                f"distillation: teacher {name!r} has {len(maps)} levels, the student's path {len(student[name])};"
                " expected the same number, at least 1; use the same levels on both sides"
            )


def _match(target_BCHW: Tensor, feat_BCHW: Tensor, *, where: str) -> tuple[Tensor, Tensor]:
    """Bring two maps to float32 and to the larger size of each axis."""
    if target_BCHW.ndim != 4 or feat_BCHW.ndim != 4 or target_BCHW.shape[:2] != feat_BCHW.shape[:2]:
        raise SakError(
            f"distillation: {where}: expected maps (B, C, H, W) of one batch and width, got teacher"
            f" {tuple(target_BCHW.shape)} and student {tuple(feat_BCHW.shape)}; another width needs aligners"
        )
    rows, columns = (max(target_BCHW.shape[axis], feat_BCHW.shape[axis]) for axis in (-2, -1))
    return resize_map(target_BCHW.float(), (rows, columns)), resize_map(feat_BCHW.float(), (rows, columns))


def _pair_loss(target_BCHW: Tensor, feat_BCHW: Tensor, *, kind: str, cosine: str, weights: LossWeights) -> Tensor:
    if kind == "l2":
        return functional.mse_loss(feat_BCHW, target_BCHW)
    distance = _cosine_distance(target_BCHW, feat_BCHW, cosine=cosine)
    if kind == "cos":
        return distance
    return weights.cosine * distance + weights.l1 * functional.smooth_l1_loss(feat_BCHW, target_BCHW, beta=weights.beta)


def _cosine_distance(target_BCHW: Tensor, feat_BCHW: Tensor, *, cosine: str) -> Tensor:
    if cosine == "token":
        return 1 - functional.cosine_similarity(target_BCHW, feat_BCHW, dim=1).mean()
    return 1 - functional.cosine_similarity(target_BCHW.flatten(1), feat_BCHW.flatten(1), dim=1).mean()
