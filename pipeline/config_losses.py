"""The part of a recipe that describes the loss against teachers, which both stages have."""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from pydantic.dataclasses import dataclass

from pipeline.config_checks import not_negative
from pipeline.config_teachers import STRICT

__all__ = ["CompileMode", "FeatureLossConfig"]

CompileMode = bool | Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
"""Whether torch.compile builds the student, and in which of its modes; true is ``default``."""
_GRAPHS = ("reduce-overhead", "max-autotune")

_COS_L1 = {"cosine_weight": 0.9, "l1_weight": 0.1, "beta": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class FeatureLossConfig:
    """The loss between the student's maps and the teachers'; the defaults are the paper's.

    Attributes:
        loss: ``cos+l1`` is cosine distance and smooth L1, weighed by ``cosine_weight`` and ``l1_weight``.
        cosine: One of a whole map (``image``, as published), or of each token, then averaged.
        beta: Where the smooth L1 turns from a square into a line.
        teacher_weights: Teacher to the weight of its part of the loss; 1 where not named.
        level_weights: Weight of each of the four levels, first level first; empty for 1 each.
    """

    loss: Literal["cos+l1", "cos", "l2"] = "cos+l1"
    cosine: Literal["image", "token"] = "image"
    cosine_weight: float = 0.9
    l1_weight: float = 0.1
    beta: float = 1.0
    teacher_weights: dict[str, float] = field(default_factory=dict)
    level_weights: tuple[float, ...] = ()

    def settle_compile(self, owner: str, compile_: CompileMode, /, *, accumulate: int = 1) -> None:
        """Bring one mode of two names to one, so that equal work shares a folder.

        Raises:
            ValueError: The mode replays CUDA graphs, whose gradients the next micro-batch would overwrite.
        """
        if accumulate > 1 and compile_ in _GRAPHS:
            raise ValueError(
                f"{owner}.compile: {compile_} replays CUDA graphs, which overwrite gradients of the micro-batch before;"
                f" set it to true or max-autotune-no-cudagraphs, or {owner}.accumulate to 1"
            )
        object.__setattr__(self, "compile", True if compile_ == "default" else compile_)

    def check_loss(self, owner: str) -> None:
        """Refuse weights that the loss does not have or that leave nothing of it.

        Raises:
            ValueError: Names the key.
        """
        terms = {name: float(getattr(self, name)) for name in _COS_L1}
        not_negative(owner, terms | {f"teacher_weights.{name}": value for name, value in self.teacher_weights.items()})
        not_negative(owner, {f"level_weights[{index}]": value for index, value in enumerate(self.level_weights)})
        for name in (name for name, value in terms.items() if self.loss != "cos+l1" and value != _COS_L1[name]):
            raise ValueError(f"{owner}.{name}: loss {self.loss} has no such term; drop it or set loss to cos+l1")
        if self.level_weights and len(self.level_weights) != 4:
            raise ValueError(f"{owner}.level_weights: expected four, one a level, got {len(self.level_weights)}")
        if self.cosine_weight == self.l1_weight == 0 or (self.level_weights and not any(self.level_weights)):
            raise ValueError(f"{owner}: all weights of the loss are 0, so it would teach nothing; raise one")
