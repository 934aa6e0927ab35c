"""The part of a recipe that describes the student: its stem, its paths and routers, and what of it is trained."""

from __future__ import annotations

from dataclasses import field
from typing import Literal, TypeAlias

from pydantic.dataclasses import dataclass

from pipeline.config_checks import positive
from pipeline.config_teachers import STRICT
from sak.teachers.constants import HALF, IMAGENET_MEAN, IMAGENET_STD

__all__ = ["LoraConfig", "StudentConfig"]

Statistics: TypeAlias = tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class LoraConfig:
    """Low-rank updates of the stem; its own weights stay as they are until the stage ends.

    Attributes:
        rank: Of the update of each layer.
        alpha: The update counts ``alpha / rank``.
        layers: The linear layers of each block that have one.
    """

    rank: int = 8
    alpha: float = 8.0
    layers: tuple[Literal["qkv", "proj", "fc1", "fc2"], ...] = ("qkv", "proj")

    def __post_init__(self) -> None:
        positive("lora", {"rank": self.rank, "alpha": self.alpha})
        if not self.layers or len({*self.layers}) != len(self.layers):
            raise ValueError(f"lora.layers: expected one or more of qkv, proj, fc1, fc2, got {self.layers}")


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class StudentConfig:
    """The student: its stem (a plain timm ViT), adapter paths and routers.

    ``teachers`` picks a subset of the recipe's teachers; ``None`` takes all of them. ``paths: none`` is the plain
    single-path student. ``aligners: null`` adds linear aligners exactly when a teacher's width differs.
    ``paths: frozen`` is no student at all: stage 2 trains heads on the teachers' maps themselves, as they are stored,
    with the width of a student's heads; nothing else here then matters.

    ``checkpoint`` starts the stem alone; ``trained`` is a whole student, as ``sak import`` and ``sak export`` write it:
    stage 2 starts from it in place of a stage 1, or where there is no stage 2 it is scored as it is. With it,
    ``checkpoint`` and ``pretrained`` mean nothing.

    ``mean`` and ``std`` are what pixels are normalised with; ``normalization`` names them in their place: ``imagenet``
    (as published, whatever the stem was trained with), the stem's ``native`` ones, or ``half`` (to -1..1).

    ``head: light`` fuses levels at the token grid and not at a quarter of the image: a fourteenth of the arithmetic.

    ``freeze: stem`` keeps the stem's weights in both stages; ``distilled`` keeps in stage 2 all that stage 1 trained,
    so that routers and heads alone learn. ``lora`` trains low-rank updates of the stem in stage 1 in place of the stem,
    and adds them to its weights at the end; stage 2 trains the whole stem, as published, or ``finetune.lora``.
    ``checkpointing`` keeps no activations inside blocks and adapters and computes them again for the gradient: about a
    third more arithmetic, much less memory, the same result.
    """

    stem: str = "vit_small_patch16_384"
    overrides: dict[str, int] = field(default_factory=dict)
    checkpoint: str | None = None
    trained: str | None = None
    pretrained: bool = False
    levels: tuple[int, ...] = ()
    teachers: tuple[str, ...] | None = None
    paths: Literal["adapters", "none", "frozen"] = "adapters"
    down_ratio: int = 4
    aligners: bool | None = None
    router: Literal["mor", "none"] = "mor"
    noisy_gating: bool = True
    noise: Literal["image", "pixel"] = "image"
    head: Literal["published", "light"] = "published"
    normalization: Literal["imagenet", "native", "half"] | None = None
    mean: Statistics = IMAGENET_MEAN
    std: Statistics = IMAGENET_STD
    freeze: Literal["none", "stem", "distilled"] = "none"
    lora: LoraConfig | None = None
    checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.trained is not None:  # it has a stem of its own, wherever that was to come from
            object.__setattr__(self, "checkpoint", None)
            object.__setattr__(self, "pretrained", False)
        if self.lora is not None and self.freeze == "stem":
            raise ValueError("student.freeze: lora keeps the stem's own weights already; drop freeze: stem, or lora")
        named = self._named_statistics()
        if named is None:
            return
        for key, value in zip(("mean", "std"), named, strict=True):
            default = IMAGENET_MEAN if key == "mean" else IMAGENET_STD
            if getattr(self, key) not in (default, value):
                raise ValueError(f"student.{key}: normalization: {self.normalization} brings its own; drop one of them")
            # From here on there is one answer to what pixels are normalised with, however it was asked for.
            object.__setattr__(self, key, value)

    def check_start(self, *, distilled: bool) -> None:
        """Whether ``trained`` goes with there being a stage 1, and with the kind of student.

        Raises:
            ValueError: It does not.
        """
        if self.trained is not None and distilled:
            raise ValueError("student.trained: takes the place of stage 1; set distill to null, or drop it")
        if self.trained is not None and self.paths == "frozen":
            raise ValueError("student.trained: frozen teachers start from no student; drop it, or set another paths")

    def _named_statistics(self) -> tuple[Statistics, Statistics] | None:
        if self.normalization is None:
            return None
        if self.normalization == "native":
            from sak.student.stem import stem_statistics  # loads torch and timm, which most commands do without

            return stem_statistics(self.stem)
        return (HALF, HALF) if self.normalization == "half" else (IMAGENET_MEAN, IMAGENET_STD)
