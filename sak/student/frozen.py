"""Frozen teachers as feature extractors: one head a task on the maps that the teachers gave, and no network below them.

Legend: B batch, N tokens of a map, W teacher width, C width of the heads, h w grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sak.errors import SakError
from sak.grids import map_to_tokens, resize_map
from sak.spec import StudentSpec
from sak.student.heads import HEADS
from sak.student.model import StudentOutput
from sak.student.stem import stem_width

__all__ = ["FrozenReader", "FrozenTeachers", "build_frozen"]

Maps = Mapping[str, Sequence[Tensor]]


class FrozenReader(nn.Module):
    """What stands between frozen maps and a head: a norm of each map, and a linear layer where widths differ."""

    def __init__(self, widths: Mapping[str, Sequence[int]], *, width: int) -> None:
        """Make it for these teachers.

        Args:
            widths: Teacher to the channels of its levels; all have equally many levels.
            width: Of the head.
        """
        super().__init__()
        self.norms = nn.ModuleDict(
            {name: nn.ModuleList(nn.LayerNorm(channels) for channels in levels) for name, levels in widths.items()}
        )
        joined = [sum(levels) for levels in zip(*widths.values(), strict=True)]
        same = all(channels == width for channels in joined)
        self.joins = nn.ModuleList(nn.Identity() if same else nn.Linear(channels, width) for channels in joined)

    def forward(self, tokens_BNW: Mapping[str, Sequence[Tensor]]) -> list[Tensor]:
        """The tokens that a head reads, level by level, all teachers side by side.

        Shapes: teacher to levels of ``(B, N, W)`` → levels of ``(B, N, C)``.
        """
        found = []
        for level, join in enumerate(self.joins):
            normed = [layers[level](tokens_BNW[name][level]) for name, layers in self.norms.items()]  # type: ignore[index]
            found.append(join(torch.cat(normed, dim=-1)))
        return found


class FrozenTeachers(nn.Module):
    """A head for each task on teachers' maps, which come from outside: from a store, or from live teachers.

    Nothing is shared between tasks, so one network of several tasks is as many of one task each. What distillation and
    routing would need is there and empty, as in a student without it.

    Source: the paper's per-teacher results, of which the best for each task is its oracle. Its text that was at hand
    does not say what joins maps and heads; here that is a norm (as SAK has one of each path), and a linear layer where
    several teachers, or a pyramid, do not have the width of the heads.
    """

    def __init__(self, spec: StudentSpec, *, width: int) -> None:
        """Make readers and heads of ``width`` channels.

        Raises:
            SakError: The spec is of another kind of network, or four levels do not divide the width.
        """
        super().__init__()
        if spec.paths != "frozen":
            raise SakError(f"frozen teachers: expected a spec with paths 'frozen', got {spec.paths!r}")
        self.spec = spec
        self.paths, self.norms, self.aligners, self.routers = (nn.ModuleDict() for _ in range(4))
        widths = {name: spec.level_widths(name) for name in spec.teacher_widths}
        self.readers = nn.ModuleDict({task: FrozenReader(widths, width=width) for task in spec.tasks})
        make_head = HEADS[spec.head]
        self.heads = nn.ModuleDict({task: make_head(width, channels=channels) for task, channels in spec.tasks.items()})

    def forward(self, maps: Maps) -> StudentOutput:
        """Predict every task from maps, which are brought to the finest grid among them.

        Shapes: teacher to levels of ``(B, W, h, w)`` → logits ``(B, K, H, W)`` at the spec's image size.

        Raises:
            SakError: Maps of other teachers than the spec's.
        """
        if maps.keys() != self.spec.teacher_widths.keys():
            wanted = ", ".join(self.spec.teacher_widths)
            raise SakError(f"frozen teachers: expected the maps of {wanted}, got those of {', '.join(maps) or 'none'}")
        shapes = [level_BWhw.shape[-2:] for levels in maps.values() for level_BWhw in levels]
        grid = (max(rows for rows, _ in shapes), max(columns for _, columns in shapes))
        tokens = {name: [map_to_tokens(resize_map(level, grid)) for level in levels] for name, levels in maps.items()}
        tasks = {
            task: head(self.readers[task](tokens), grid, self.spec.image_size) for task, head in self.heads.items()
        }
        return StudentOutput({}, tasks, {})


def build_frozen(spec: StudentSpec, /) -> FrozenTeachers:
    """The network that a spec with ``paths="frozen"`` means; its heads are as wide as those of a student of that stem.

    Raises:
        SakError: As ``FrozenTeachers``, or the stem is no plain vision transformer.
    """
    return FrozenTeachers(spec, width=stem_width(spec.stem, overrides=spec.stem_overrides))
