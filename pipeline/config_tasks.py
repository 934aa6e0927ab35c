"""The part of a recipe that describes how stage 2 learns its tasks: their weights, rates by part, low-rank updates."""

from __future__ import annotations

from dataclasses import field
from typing import Literal, TypeAlias

from pydantic.dataclasses import dataclass

from pipeline.config_checks import fresh_views, not_negative, positive
from pipeline.config_losses import CompileMode, FeatureLossConfig
from pipeline.config_student import LoraConfig, StudentConfig
from pipeline.config_teachers import STRICT, Precision

__all__ = ["PARTS", "Part", "TaskTrainingConfig"]

Part: TypeAlias = Literal["stem", "paths", "routers", "heads"]
"""Parts of a student with a learning rate of their own; ``paths`` has the paths' norms and aligners too."""
PARTS: tuple[Part, ...] = ("stem", "paths", "routers", "heads")

_WEIGHTING_LR = 0.025
_GRADNORM_ALPHA = 1.5  # its paper's, on NYUv2


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class TaskTrainingConfig(FeatureLossConfig):
    """How tasks are learnt together; the defaults are the paper's.

    Attributes:
        crops: ``fresh`` draws ``data.finetune.view`` anew of every image in every epoch and stores none, labels and
            all; cached teachers do not know such views, so it takes ``alpha: 0`` or live ones.
        task_weights: Task to the weight of its loss, in place of the data set's published one.
        weighting: Whether these weights stay as they are (``fixed``, as published), or are multiplied by ones that are
            learnt: from each task's uncertainty, or so that all tasks pull the shared weights equally (``gradnorm``).
        weighting_lr: Learning rate of such weights, constant.
        gradnorm_alpha: How much more a task pulls whose loss has fallen less than others'; 0 for all the same.
        lora: Trains low-rank updates of the stem in place of the stem, which are added to its weights at the end.
        lr_scales: Part to a factor on the rate; of parts that are not named, ``stem_lr_scale`` for the stem and paths.
    """

    crops: Literal["fresh"] | None = None
    task_weights: dict[str, float] = field(default_factory=dict)
    weighting: Literal["fixed", "uncertainty", "gradnorm"] = "fixed"
    weighting_lr: float = _WEIGHTING_LR
    gradnorm_alpha: float = _GRADNORM_ALPHA
    lora: LoraConfig | None = None
    lr_scales: dict[Part, float] = field(default_factory=dict)

    def check_tasks(self, *, compile_: CompileMode, precision: Precision) -> None:
        """Refuse options that mean nothing, or that do not go together.

        Raises:
            ValueError: Names the key.
        """
        positive("finetune", {f"task_weights.{name}": value for name, value in self.task_weights.items()})
        positive("finetune", {f"lr_scales.{part}": value for part, value in self.lr_scales.items()})
        positive("finetune", {"weighting_lr": self.weighting_lr})
        not_negative("finetune", {"gradnorm_alpha": self.gradnorm_alpha})
        if self.weighting == "fixed" and self.weighting_lr != _WEIGHTING_LR:
            raise ValueError("finetune.weighting_lr: fixed weights are not learnt; drop it or set weighting")
        if self.weighting != "gradnorm":
            if self.gradnorm_alpha != _GRADNORM_ALPHA:
                raise ValueError("finetune.gradnorm_alpha: it is of weighting: gradnorm; drop it or set that")
            return
        if compile_ is not False:
            raise ValueError("finetune.compile: gradnorm takes a gradient for each task, which a compiled step has not")
        if precision == "fp16":
            raise ValueError("finetune.precision: gradnorm's gradients vanish in fp16; take bf16 or fp32")

    def check_stage(self, student: StudentConfig, *, cached: bool, views: int, on_error: str) -> None:
        """Refuse what the rest of a study rules out.

        Args:
            cached: Whether targets of stored teachers are asked for.
            views, on_error: Of ``data.finetune``.

        Raises:
            ValueError: Names the key.
        """
        if self.lora is not None and student.freeze != "none":
            raise ValueError(
                f"finetune.lora: student.freeze: {student.freeze} trains nothing of the stem; drop one of them"
            )
        alone = student.freeze == "distilled" or (student.freeze == "stem" and student.paths == "none")
        if self.weighting == "gradnorm" and alone:
            raise ValueError(
                f"finetune.weighting: gradnorm looks at weights that tasks share, and student.freeze: {student.freeze}"
                " trains none of them; drop one of them"
            )
        if self.crops == "fresh":
            fresh_views("finetune", views=views, on_error=on_error)
            if cached:
                raise ValueError(
                    "finetune.crops: no stored map knows fresh views; set finetune.alpha to 0, targets to online, or"
                    " store as many views as there are epochs (data.finetune.views)"
                )
