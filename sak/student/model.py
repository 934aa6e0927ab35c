"""The student: stem, one adapter path per teacher, routers, heads.

Legend: B batch, N patch tokens, C stem width, W teacher width, K output channels, E experts, h w grid, H W image.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sak.draws import Share
from sak.errors import CheckpointError, SakError
from sak.grids import resize_pos_embed, tokens_to_map
from sak.spec import StudentSpec
from sak.student.adapters import AdapterPath
from sak.student.heads import HEADS
from sak.student.router import Router
from sak.student.stem import StemWeights, build_stem, default_levels, load_stem, run_stem, stem_grid
from sak.weights import LoadReport, load_strict

__all__ = ["Student", "StudentOutput", "build_student", "last_shared", "load_stage1", "parameter_counts"]

LEVELS = 4
_OF_TASKS = ("routers.", "heads.")


class StudentOutput(NamedTuple):
    """What a student gives for one batch.

    Attributes:
        aligned: Teacher → four maps ``(B, W, h, w)`` to compare with the teacher's; empty when not asked for.
        tasks: Task → logits ``(B, K, H, W)`` at image size.
        gates: Task → four weights ``(B, E)`` over the stem and the teachers, in that order; empty without routers.
    """

    aligned: dict[str, list[Tensor]]
    tasks: dict[str, Tensor]
    gates: dict[str, list[Tensor]]


class Student(nn.Module):
    """A stem with adapter paths, output norms, aligners, routers and heads, as its spec says.

    Attributes:
        checkpointing: In training, compute activations inside blocks and adapters again in the backward pass instead of
            keeping them: less memory, about a third more arithmetic, the same result.
        start: What the file gave that its stem started from; None without one.

    Source: published student; ``paths="none"`` is the plain many-to-one student the paper compares with.
    """

    def __init__(self, stem: nn.Module, spec: StudentSpec) -> None:
        """Assemble the student around a stem from ``build_stem``; blocks beyond the last level are cut off.

        Raises:
            SakError: the stem does not suit the spec.
        """
        super().__init__()
        width, depth = int(stem.embed_dim), len(stem.blocks)  # type: ignore[arg-type]
        self.spec = spec
        self.checkpointing = False
        self.start: StemWeights | None = None
        self.levels = spec.levels or default_levels(depth)
        _check(spec, width=width, depth=depth, levels=self.levels)
        self.stem = stem
        del stem.blocks[self.levels[-1] + 1 :]  # type: ignore[union-attr, operator]
        self.grid = stem_grid(stem)
        blocks = self.levels[-1] + 1
        has_paths = spec.paths == "adapters"
        teachers = spec.teacher_widths
        self.paths = nn.ModuleDict(
            {name: AdapterPath(width, blocks=blocks, down_ratio=spec.down_ratio) for name in teachers if has_paths}
        )
        self.norms = nn.ModuleDict({name: _per_level(partial(nn.LayerNorm, width)) for name in teachers})
        aligned = teachers if spec.aligners or not has_paths else {}
        self.aligners = nn.ModuleDict(
            {name: nn.ModuleList(nn.Linear(width, out) for out in spec.level_widths(name)) for name in aligned}
        )
        routed = spec.tasks if spec.router == "mor" else {}
        self.routers = nn.ModuleDict({task: _routers(width, spec) for task in routed})
        make_head = HEADS[spec.head]
        self.heads = nn.ModuleDict({task: make_head(width, channels=channels) for task, channels in spec.tasks.items()})

    def forward(
        self,
        images_BCHW: Tensor,
        *,
        with_aligned: bool = True,
        teachers: Collection[str] | None = None,
        share: Share | None = None,
    ) -> StudentOutput:
        """Run the student.

        Args:
            images_BCHW: Normalised images of the spec's size.
            with_aligned: Also give the maps that distillation compares; inference has no use for them.
            teachers: Give those of these teachers alone; None for all. Paths that nothing needs are not computed.
            share: The images' place in a batch that is split; routers draw their noise by it.

        Raises:
            SakError: the images have another size.
        """
        size = (images_BCHW.shape[-2], images_BCHW.shape[-1])
        if size != self.spec.image_size:
            raise SakError(
                f"student: expected images of {self.spec.image_size}, got {size}; resize or rebuild the student"
            )
        recompute = self.checkpointing and self.training and torch.is_grad_enabled()
        stages_BNC = run_stem(self.stem, images_BCHW, recompute=recompute)
        # The level tokens feed many linear layers: one copy off the CLS token here instead of one in each of them.
        stem_BNC = [stages_BNC[level + 1].contiguous() for level in self.levels]
        asked = [name for name in self.norms if teachers is None or name in teachers] if with_aligned else []
        needed = list(self.norms) if self.paths and self.heads else asked
        states = {name: self._states(name, stages_BNC, stem_BNC, recompute=recompute) for name in needed}
        normed_BNC = {name: self._normed(name, states_BNC) for name, states_BNC in states.items()}
        aligned = {name: self._align(name, normed_BNC[name]) for name in asked}
        tasks: dict[str, Tensor] = {}
        gates: dict[str, list[Tensor]] = {}
        experts_BNC = self._experts(stem_BNC, normed_BNC)
        mixed_BNC = [] if self.routers else [_total(level) for level in experts_BNC]
        for task, head in self.heads.items():
            if self.routers:
                mixed_BNC, gates[task] = self._route(task, experts_BNC, share)
            tasks[task] = head(mixed_BNC, self.grid, size)
        return StudentOutput(aligned, tasks, gates)

    def _states(self, name: str, stages_BNC: list[Tensor], stem_BNC: list[Tensor], *, recompute: bool) -> list[Tensor]:
        if not self.paths:
            return stem_BNC
        states_BNC: list[Tensor] = self.paths[name](stages_BNC, self.levels, recompute=recompute)
        return states_BNC

    def _normed(self, name: str, states_BNC: list[Tensor]) -> list[Tensor]:
        return [norm(state) for norm, state in zip(_layers(self.norms, name), states_BNC, strict=True)]

    def _align(self, name: str, tokens_BNC: list[Tensor]) -> list[Tensor]:
        if name in self.aligners:
            layers = _layers(self.aligners, name)
            tokens_BNC = [layer(tokens) for layer, tokens in zip(layers, tokens_BNC, strict=True)]
        return [tokens_to_map(tokens, self.grid) for tokens in tokens_BNC]

    def _experts(self, stem_BNC: list[Tensor], normed_BNC: dict[str, list[Tensor]]) -> list[list[Tensor]]:
        # A plain student's norms serve its aligners only; its heads read the stem itself.
        paths = list(normed_BNC.values()) if self.paths else []
        return [[tokens, *(path[level] for path in paths)] for level, tokens in enumerate(stem_BNC)]

    def _route(
        self, task: str, experts_BNC: list[list[Tensor]], share: Share | None
    ) -> tuple[list[Tensor], list[Tensor]]:
        mixed, gates = [], []
        for router, experts in zip(_layers(self.routers, task), experts_BNC, strict=True):
            routed = router(experts[0], experts, share)
            mixed.append(routed.tokens_BNC)
            gates.append(routed.weights_BE)
        return mixed, gates


def build_student(spec: StudentSpec, /, *, pretrained: bool = False, checkpoint: Path | None = None) -> Student:
    """Build the stem that the spec names, with weights if asked for, and the student around it.

    Args:
        pretrained: The stem starts from timm's weights, from its hub.
        checkpoint: It starts from a file instead, see ``load_stem``.

    Raises:
        SakError: the spec does not fit the stem.
        CheckpointError: the stem's weights cannot be had, do not fit, or are asked for in two ways.
    """
    if pretrained and checkpoint is not None:
        raise CheckpointError(
            f"stem {spec.stem}: expected either pretrained or a checkpoint, got both; drop one of them"
        )
    stem = build_stem(spec.stem, image_size=spec.image_size, overrides=spec.stem_overrides, pretrained=pretrained)
    start = load_stem(stem, checkpoint) if checkpoint else None
    student = Student(stem, spec)
    student.start = start
    return student


def load_stage1(
    student: Student,
    state: Mapping[str, Tensor],
    /,
    *,
    where: str = "stage-1 weights",
    source_grid: tuple[int, int] | None = None,
    drop: tuple[str, ...] = (),
) -> LoadReport:
    """Load a distilled student into one with tasks: everything must match, but for routers and heads that it lacks.

    Args:
        state: State dict of a ``Student`` of the same stem, levels and teachers.
        where: Path or description for the error.
        source_grid: Token grid of the stage-1 student; None takes a square one. Needed only when it differs.
        drop: Key prefixes that the student may lack, such as ``norms. aligners.`` for one no longer distilled.

    Raises:
        CheckpointError: keys or shapes do not match; the message lists them and nothing is loaded.
        SakError: the position embedding has neither the student's grid nor ``source_grid``.
    """
    adapted = dict(state)
    key = "stem.pos_embed"
    resized: tuple[str, ...] = ()
    own = student.state_dict()
    if key in own and key in adapted and (source_grid or adapted[key].shape != own[key].shape):
        prefix = own[key].shape[1] - student.grid[0] * student.grid[1]
        adapted[key] = resize_pos_embed(adapted[key], student.grid, prefix=prefix, source=source_grid)
        resized = () if torch.equal(adapted[key], state[key]) else (key,)
    # A router or head is either there, whole, or new: half of one is a damaged file.
    ours = {".".join(name.split(".")[:2]) + "." for name in own if name.startswith(_OF_TASKS)}
    new = tuple(part for part in sorted(ours) if not any(name.startswith(part) for name in adapted))
    report = load_strict(student, adapted, where=where, drop=drop, keep=new)
    return report._replace(resized=resized)


def last_shared(student: Student, /) -> list[nn.Parameter]:
    """The last trained weights on the way to all heads: of the stem's last block, or of each path's last adapter.

    Raises:
        SakError: nothing that the tasks share is trained.
    """
    blocks = student.stem.blocks
    assert isinstance(blocks, nn.Sequential | nn.ModuleList)
    ends = [blocks[-1], *(path[-1] for path in student.paths.values() if isinstance(path, AdapterPath))]
    trained = [[item for item in end.parameters() if item.requires_grad and item.ndim > 1] for end in ends]
    last = [weights[-1] for weights in trained if weights]
    if not last:
        raise SakError("shared weights: expected some that are trained, got a frozen stem and no paths; unfreeze one")
    return last[:1] if trained[0] else last


def parameter_counts(student: nn.Module, /) -> dict[str, int]:
    """Parameters per part (a student's are ``stem paths norms aligners routers heads``) and ``total``."""
    parts: dict[str, nn.Module] = dict(student.named_children())
    counts = {name: sum(parameter.numel() for parameter in part.parameters()) for name, part in parts.items()}
    return counts | {"total": sum(counts.values())}


def _check(spec: StudentSpec, *, width: int, depth: int, levels: tuple[int, ...]) -> None:
    if spec.paths == "frozen":
        raise SakError("paths: expected a student with a stem, got 'frozen'; sak.student.frozen builds it")
    if levels[-1] >= depth:
        raise SakError(f"levels: expected blocks below {depth}, the depth of {spec.stem}, got {levels}; lower them")
    wrong = {name: got for name, got in spec.teacher_widths.items() if set(spec.level_widths(name)) != {width}}
    if spec.paths == "adapters" and not spec.aligners and wrong:
        raise SakError(
            f"teacher_widths: without aligners expected the stem's {width}, got {wrong}; set aligners to true"
        )


def _layers(parts: nn.ModuleDict, name: str) -> Iterator[nn.Module]:
    layers = parts[name]
    assert isinstance(layers, nn.ModuleList)
    return iter(layers)


def _per_level(make: Callable[[], nn.Module]) -> nn.ModuleList:
    return nn.ModuleList(make() for _ in range(LEVELS))


def _routers(width: int, spec: StudentSpec) -> nn.ModuleList:
    experts = 1 + len(spec.teacher_widths)
    return nn.ModuleList(
        Router(width, experts=experts, noisy=spec.noisy_gating, noise=spec.noise) for _ in range(LEVELS)
    )


def _total(experts_BNC: list[Tensor]) -> Tensor:
    total_BNC = experts_BNC[0]
    for expert_BNC in experts_BNC[1:]:
        total_BNC = total_BNC + expert_BNC
    return total_BNC
