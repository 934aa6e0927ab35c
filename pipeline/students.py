"""Students of a study: from configuration to module, for either stage."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.config import LoraConfig, StudentConfig
from pipeline.tracking import CONSOLE
from sak.spec import StudentSpec
from sak.student.frozen import FrozenTeachers, build_frozen
from sak.student.lora import add_lora
from sak.student.model import Student, build_student
from sak.student.stem import stem_width
from sak.weights import sha256_file

__all__ = [
    "STAGE1_PARTS",
    "Normalise",
    "limit_training",
    "make_frozen",
    "make_student",
    "student_identity",
    "student_spec",
]

STAGE1_PARTS = ("stem.", "paths.", "norms.", "aligners.")
"""What stage 1 trains and stage 2 goes on with."""


class Normalise(nn.Module):
    """Pixels as the stem expects them.

    Shapes: ``(B, 3, H, W)`` uint8 to the same in float32, ``(x / 255 - mean) / std``.
    """

    def __init__(self, *, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Normalise a batch."""
        return (pixels_BCHW.float() - self.get_buffer("mean")) / self.get_buffer("std")


def student_spec(
    config: StudentConfig,
    /,
    *,
    image_size: tuple[int, int],
    widths: Mapping[str, tuple[int, ...]],
    tasks: Mapping[str, int],
) -> StudentSpec:
    """The network that a configuration means for these teachers and tasks.

    Args:
        widths: Teacher to the channels of its levels; teachers whose features are not used still have an adapter path
            and are given with an empty tuple.
        tasks: Task to the channels of its output; empty in stage 1.
    """
    own = stem_width(config.stem, overrides=config.overrides)
    full = {name: levels or (own,) * 4 for name, levels in widths.items()}
    aligned = any(widths.values()) and config.paths != "frozen"
    needed = any(width != own for levels in full.values() for width in levels)
    return StudentSpec(
        stem=config.stem,
        image_size=image_size,
        stem_overrides=config.overrides,
        levels=config.levels,
        teacher_widths={name: levels[0] if len({*levels}) == 1 else levels for name, levels in full.items()},
        down_ratio=config.down_ratio,
        aligners=aligned and (needed if config.aligners is None else config.aligners),
        tasks=tasks,
        paths=config.paths,
        router=config.router if config.paths == "adapters" else "none",
        noisy_gating=config.noisy_gating,
        noise=config.noise,
        head=config.head,
    )


def make_student(config: StudentConfig, spec: StudentSpec, /, *, seed: int, load_stem: bool) -> Student:
    """Build with weights that are a function of the seed; ``load_stem`` starts the stem from its configured weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        checkpoint = Path(config.checkpoint) if config.checkpoint and load_stem else None
        student = build_student(spec, pretrained=config.pretrained and load_stem, checkpoint=checkpoint)
    if student.start is not None:
        CONSOLE.print(f"student: stem from {checkpoint}: {student.start.summary()}")
    student.checkpointing = config.checkpointing
    return student


def make_frozen(spec: StudentSpec, /, *, seed: int) -> FrozenTeachers:
    """Heads on frozen maps, with weights that are a function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_frozen(spec)


def limit_training(
    student: Student, config: StudentConfig, /, *, stage: Literal[1, 2], seed: int, lora: LoraConfig | None = None
) -> None:
    """Freeze what a stage shall not train, and add the stem's low-rank updates.

    A frozen parameter gets no gradient and no state of the optimiser.

    Args:
        lora: The updates of stage 2; those of stage 1 are the student's own.

    Raises:
        SakError: The stem cannot take the low-rank updates.
    """
    if config.freeze == "stem":
        student.stem.requires_grad_(False)
    elif config.freeze == "distilled" and stage == 2:
        for name, parameter in student.named_parameters():
            parameter.requires_grad_(not name.startswith(STAGE1_PARTS))
    lora = config.lora if stage == 1 else lora
    if lora is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            add_lora(student.stem, rank=lora.rank, alpha=lora.alpha, layers=lora.layers)


def student_identity(config: StudentConfig, /) -> dict[str, object]:
    """What a result depends on beyond the configuration itself: the bytes of the weights it starts from."""
    about: dict[str, object] = {"checkpoint_sha256": _sha256(config.checkpoint) if config.checkpoint else None}
    return about if config.trained is None else about | {"trained_sha256": _sha256(config.trained)}


def _sha256(name: str) -> str:
    path = Path(name)
    changed = path.stat() if path.is_file() else None
    return _sha256_of(path, changed.st_mtime_ns if changed else 0, changed.st_size if changed else 0)


@lru_cache(maxsize=8)
def _sha256_of(path: Path, mtime_ns: int, size: int) -> str:
    """Read once for many identities; time and size are there to notice another file under the name."""
    return sha256_file(path)
