"""What student a published checkpoint holds, read off the names and shapes of its tensors.

Legend: C stem width, E experts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor

from sak.errors import CheckpointError
from sak.spec import StudentSpec
from sak.student.stem import stem_width
from sak.tasks import DATASETS, dataset_spec

__all__ = ["Known", "Recognised", "recognise"]

_STEMS: Mapping[tuple[int, int, int], str] = MappingProxyType(
    {
        (192, 12, 16): "vit_tiny_patch16_384",
        (384, 12, 16): "vit_small_patch16_384",
        (768, 12, 16): "vit_base_patch16_384",
        (1024, 24, 16): "vit_large_patch16_384",
    }
)
"""Width, blocks and patch size of the published configurations' stems."""

_NEEDED: Mapping[str, int] = MappingProxyType(
    {"vit.patch_embed.proj.weight": 4, "vit.pos_embed": 3, "vit.cls_token": 3}
)
"""Tensors without which nothing is recognised, and how many dimensions each has."""

_OBLONG: Mapping[tuple[str, int], tuple[int, int]] = MappingProxyType({("nyud", 28 * 36): (448, 576)})
"""Data set and tokens of the published sizes that are no square."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What a user tells of a checkpoint; None is read off it.

    Attributes:
        stem: timm name of the student's vision transformer.
        image_size: Rows and columns it was trained at.
        teachers: In the order of the published configuration, which is the order of a router's experts.
        dataset: The one whose tasks it has.
    """

    stem: str | None = None
    image_size: tuple[int, int] | None = None
    teachers: tuple[str, ...] = ()
    dataset: str | None = None


class Recognised(NamedTuple):
    """The student of a checkpoint, and the data set of its tasks; empty for stage 1."""

    spec: StudentSpec
    dataset: str


def recognise(
    state: Mapping[str, Tensor], /, *, known: Known, ordered: bool = True, where: str = "published checkpoint"
) -> Recognised:
    """Describe the student that a published checkpoint holds.

    Args:
        state: By the published names, of stage 1 (``vit. tsap. …``) or stage 2 (``backbone. heads.``).
        ordered: Whether the state's order is the one in which it was saved; a safetensors file does not keep it.
        where: Path or description for the error.

    Raises:
        CheckpointError: It is no such checkpoint, or what only the user can tell is not told; the message says how.
        SakError: What was told makes no student.
    """
    inner = "backbone." if any(name.startswith("backbone.") for name in state) else ""
    shapes = {name.removeprefix(inner): tuple(tensor.shape) for name, tensor in state.items()}
    missing = [inner + name for name, rank in _NEEDED.items() if len(shapes.get(name, ())) != rank]
    teachers = _named(shapes, r"tsap\.([^.]+)\.0\.scale")
    if missing or not teachers:
        lacks = ", ".join(missing) or f"{inner}tsap.TEACHER.0.scale"
        raise CheckpointError(
            f"{where}: expected a student of the published code, got {len(state)} tensors without {lacks}; for a stem"
            " alone give student.checkpoint"
        )
    named = _named(shapes, r"heads\.([^.]+)\.last_conv\.weight")
    tasks = {task: _outputs(shapes, f"heads.{task}.last_conv.weight") for task in named}
    dataset = _dataset(tasks, known.dataset, where=where)
    routed = any(name.startswith("mor.") for name in shapes)
    if routed and not ordered and len(teachers) > 1 and not known.teachers:
        raise CheckpointError(
            f"{where}: expected the order of its teachers, which is that of its routers' experts, but such a file keeps"
            f" none; tell it, as in --teachers {','.join(teachers)}"
        )
    order = _ordered(teachers, known.teachers, where=where)
    width, _, patch, _ = shapes["vit.patch_embed.proj.weight"]
    spec = StudentSpec(
        stem=_stem(shapes, known.stem, width=width, patch=patch, where=where),
        image_size=known.image_size or _size(shapes, dataset=dataset, patch=patch, where=where),
        teacher_widths={name: _widths(shapes, name, width=width) for name in order},
        down_ratio=width // max(1, _outputs(shapes, f"tsap.{teachers[0]}.0.down.weight")),
        aligners=any(name.startswith("ts_aligners.") for name in shapes),
        tasks=tasks,
        router="mor" if routed else "none",
        noisy_gating=not routed or _gate(shapes) == 2 * (1 + len(teachers)),
    )
    return Recognised(spec, dataset)


def _named(shapes: Mapping[str, tuple[int, ...]], pattern: str) -> list[str]:
    """What a pattern's group matches, in order of first appearance."""
    return list(dict.fromkeys(found[1] for name in shapes if (found := re.fullmatch(pattern, name))))


def _dataset(tasks: Mapping[str, int], told: str | None, *, where: str) -> str:
    if not tasks and told is not None:
        raise CheckpointError(f"{where}: expected no data set, because it is of stage 1 and has no tasks, got {told}")
    if not tasks:
        return ""
    fits = [
        name
        for name, spec in DATASETS.items()
        if all(task in spec.tasks and spec.tasks[task].channels == channels for task, channels in tasks.items())
    ]
    if told is not None and dataset_spec(told).name in fits:
        return told
    got = ", ".join(f"{task} ({channels})" for task, channels in tasks.items())
    if told is not None or not fits:
        raise CheckpointError(
            f"{where}: expected tasks (output channels) of {told or ' or '.join(DATASETS)}, got {got};"
            f" {'they fit ' + ' or '.join(fits) if fits else 'no data set here has these'}"
        )
    if len(fits) > 1:
        raise CheckpointError(
            f"{where}: its tasks {got} fit {' and '.join(fits)}; tell which, as in --dataset {fits[0]}"
        )
    return fits[0]


def _ordered(found: list[str], told: tuple[str, ...], *, where: str) -> list[str]:
    if told and sorted(told) != sorted(found):
        raise CheckpointError(
            f"{where}: expected teachers {', '.join(found)} in their order, was told {', '.join(told)}"
        )
    return list(told) or found


def _stem(shapes: Mapping[str, tuple[int, ...]], told: str | None, *, width: int, patch: int, where: str) -> str:
    if told is not None:
        if stem_width(told, overrides={}) != width:
            raise CheckpointError(f"{where}: expected a stem of width {width}, got {told} of another; name its own")
        return told
    depth = len(_named(shapes, r"vit\.blocks\.(\d+)\.norm1\.weight"))
    if (width, depth, patch) not in _STEMS:
        raise CheckpointError(
            f"{where}: expected a stem of the published sizes, got {depth} blocks of width {width} on patches of"
            f" {patch}; name it, as in --stem {_STEMS[768, 12, 16]}"
        )
    return _STEMS[width, depth, patch]


def _size(shapes: Mapping[str, tuple[int, ...]], *, dataset: str, patch: int, where: str) -> tuple[int, int]:
    tokens = shapes["vit.pos_embed"][1] - shapes["vit.cls_token"][1]
    side = math.isqrt(max(tokens, 0))
    if side * side == tokens:
        return side * patch, side * patch
    if (dataset, tokens) in _OBLONG:
        return _OBLONG[dataset, tokens]
    raise CheckpointError(
        f"{where}: expected the image size it was trained at, because its {tokens} tokens make no square; tell it in"
        " pixels, as in --size 448x576"
    )


def _widths(shapes: Mapping[str, tuple[int, ...]], teacher: str, *, width: int) -> int | tuple[int, ...]:
    """Channels of a teacher's maps, one number or one for each level, as its aligners give them."""
    pattern = rf"ts_aligners\.(\d+)_{re.escape(teacher)}\.weight"
    levels = sorted(_named(shapes, pattern), key=int)
    widths = tuple(_outputs(shapes, f"ts_aligners.{level}_{teacher}.weight") for level in levels) or (width,)
    return widths[0] if len({*widths}) == 1 else widths


def _gate(shapes: Mapping[str, tuple[int, ...]]) -> int:
    last = (name for name in shapes if name.startswith("mor.") and name.endswith(".router.module.3.weight"))
    return _outputs(shapes, next(last, ""))


def _outputs(shapes: Mapping[str, tuple[int, ...]], name: str) -> int:
    """Output channels of a layer; 0, which no student has, where there is none."""
    return (*shapes.get(name, ()), 0)[0]
