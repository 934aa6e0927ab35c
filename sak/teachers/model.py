"""A teacher as a frozen module: pixels of a view in, four float32 maps out.

Legend: B batch, C channels, H W input rows and columns, h w grid rows and columns.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from sak.errors import TeacherError
from sak.grids import pool_map
from sak.hub import impatient_hub
from sak.preprocess import Prepared, crop_to_content, fit_size, long_side_size, normalise, pad_to, resize_image
from sak.teachers.conversion import convert
from sak.teachers.families import Family, default_levels, family_of, statistics
from sak.teachers.packaged import weights_file
from sak.teachers.spec import TeacherSpec
from sak.weights import load_strict, load_weights

__all__ = ["Teacher", "load_teacher", "meta_teacher"]


class Teacher(nn.Module):
    """A frozen timm network with its own preprocessing.

    Attributes:
        spec: What it was built from.
        levels: The four blocks or stages its maps come from.
        widths: Channels of the four maps.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: TeacherSpec, network: nn.Module) -> None:
        """Wrap a built network.

        Raises:
            TeacherError: The network does not have the spec's levels.
        """
        super().__init__()
        self.spec, self.network = spec, network
        self._family = family_of(spec.timm)
        extract: Callable[..., Any] = network.forward_intermediates  # type: ignore[assignment]
        # One compilation for each size of batch: a network compiled for all sizes depends on which it saw first.
        self._extract = torch.compile(extract, dynamic=False) if spec.compiled else extract
        stages: Sequence[Mapping[str, Any]] = list(network.feature_info)  # type: ignore[arg-type]
        self._unit = 1 if self._family.any_size else max(int(stage["reduction"]) for stage in stages)
        self.levels = _levels(spec, family=self._family, network=network, stages=len(stages))
        self.widths = tuple(_width(stages, level, blocks=self._family.blocks) for level in self.levels)
        found = statistics(spec)
        self.register_buffer("mean", torch.tensor(found.mean), persistent=False)
        self.register_buffer("std", torch.tensor(found.std), persistent=False)
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Teacher:
        """Stay in evaluation mode, also when a parent module is set to training."""
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, pixels_BCHW: Tensor) -> list[Tensor]:
        """Preprocess the pixels of a view and extract its maps.

        Shapes: ``(B, 3, H, W)`` uint8 → four maps ``(B, C, h, w)`` float32 that cover the view, without padding
        (unless the spec's alignment is ``reference``), pooled to the spec's grid where it has one.

        Raises:
            SakError: The pixels have another shape or type.
            TeacherError: The network takes no input of this size, or the grid is larger than its maps.
        """
        prepared = self.prepare(pixels_BCHW)
        rows, columns = prepared.image_BCHW.shape[-2:]
        maps = self.features(prepared.image_BCHW)
        if self.spec.alignment == "reference":
            return maps
        return self._pooled(
            [crop_to_content(feat_BCHW, content=prepared.content, size=(rows, columns)) for feat_BCHW in maps]
        )

    def _pooled(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps on the spec's grid. Levels of a pyramid that are smaller already stay: enlarged, they only cost bytes.

        Raises:
            TeacherError: The grid is larger than the largest map.
        """
        if self.spec.grid is None:
            return maps
        largest = tuple(max(feat_BCHW.shape[axis] for feat_BCHW in maps) for axis in (-2, -1))
        if self.spec.grid[0] > largest[0] or self.spec.grid[1] > largest[1]:
            raise TeacherError(
                f"teacher {self.spec.name!r}: grid: expected at most {largest}, its largest map here, got"
                f" {self.spec.grid}; take grid: native, for the loss enlarges maps by itself"
            )
        return [pool_map(feat_BCHW, self.spec.grid) for feat_BCHW in maps]

    def prepare(self, pixels_BCHW: Tensor, /) -> Prepared:
        """Normalise, resize and pad the pixels of a view to the network's input.

        Shapes: ``(B, 3, H, W)`` uint8 → ``(B, 3, H', W')`` float32.

        Raises:
            SakError: The pixels have another shape or type.
        """
        # Padding comes last, in normalised units: the padded area is 0 there, as SAM was trained.
        return self.fit(normalise(pixels_BCHW, mean=self.mean, std=self.std))

    def fit(self, image_BCHW: Tensor, /) -> Prepared:
        """Resize and pad a normalised image to the network's input.

        Shapes: ``(B, 3, H, W)`` → ``(B, 3, H', W')``.
        """
        rows, columns = image_BCHW.shape[-2:]
        size, exact = self.spec.input_size or (rows, columns), self.spec.alignment == "exact"
        if self.spec.resize == "long_side_pad":
            content = long_side_size((rows, columns), max(size))
            return Prepared(pad_to(resize_image(image_BCHW, content, antialias=exact), size), content)
        target = fit_size(size, self._unit)
        if exact:
            return Prepared(resize_image(image_BCHW, target, antialias=True), target)
        # What a patch embedding does to a remainder when nobody checks, written out: it never sees it.
        resized_BCHW = resize_image(image_BCHW, size, antialias=False)
        return Prepared(resized_BCHW[..., : target[0], : target[1]], target)

    @torch.no_grad()
    def features(self, image_BCHW: Tensor, /) -> list[Tensor]:
        """Extract the maps of a normalised input: the raw residual stream before any final norm, spatial tokens only.

        Shapes: ``(B, 3, H, W)`` float → four maps ``(B, C, h, w)`` float32.

        Raises:
            TeacherError: The network takes no input of this size, or its precision is none of this device.
        """
        if self.spec.channels_last:
            image_BCHW = image_BCHW.contiguous(memory_format=torch.channels_last)
        try:
            with self._autocast(image_BCHW.device):
                maps: list[Tensor] = self._extract(
                    image_BCHW,
                    indices=list(self.levels),
                    norm=False,
                    stop_early=True,
                    output_fmt="NCHW",
                    intermediates_only=True,
                    **self._family.extract,
                )
        except AssertionError as error:  # how timm's patch embeddings refuse a size
            raise TeacherError(
                f"teacher {self.spec.name!r}: {self.spec.timm} takes no input of"
                f" {tuple(image_BCHW.shape[-2:])}: {error}; set input_size, or overrides such as img_size"
            ) from error
        return [feat_BCHW.float().contiguous() for feat_BCHW in maps]

    def _autocast(self, device: torch.device) -> AbstractContextManager[object]:
        precision = self.spec.precision
        if precision == "fp32" or device.type == "meta":
            return nullcontext()
        if precision == "fp16" and device.type == "cpu":
            raise TeacherError(
                f"teacher {self.spec.name!r}: precision: fp16 needs a GPU, a CPU takes many times as long in it; use"
                " bf16 or fp32 here"
            )
        dtype = torch.float16 if precision == "fp16" else torch.bfloat16
        return torch.autocast(device.type, dtype=dtype)


def load_teacher(spec: TeacherSpec, *, device: str | torch.device = "cpu") -> Teacher:
    """Build a teacher with its weights, frozen, in evaluation mode.

    Raises:
        UnknownNameError: timm has no such model.
        TeacherError: timm refuses the overrides, the levels do not exist, or the weights cannot be had.
        CheckpointError: The weights are unreadable or not this network's.
    """
    network = _build(spec)
    if spec.random is not None:
        _randomise(network, seed=spec.random)
    elif not spec.pretrained:
        _load_file(network, spec)
    teacher = Teacher(spec, network).to(device)
    return teacher.to(memory_format=torch.channels_last) if spec.channels_last else teacher


def meta_teacher(spec: TeacherSpec) -> Teacher:
    """Build a teacher without weights or memory, whatever its size: its shapes and its arithmetic can be counted.

    Raises:
        UnknownNameError: timm has no such model.
        TeacherError: timm refuses the overrides, or the levels do not exist.
    """
    with torch.device("meta"):
        bare = replace(spec, pretrained=False, checkpoint=None, builtin=None, random=0, compiled=False)
        return Teacher(replace(spec, compiled=False), _build(bare))


def _load_file(network: nn.Module, spec: TeacherSpec) -> None:
    """Load a file in timm's names or a publisher's, every key accounted for."""
    path = weights_file(spec)
    where = f"teacher {spec.name!r}, {path}"
    found = convert(load_weights(path), where=where)
    # Classifier and pooling play no part in the maps, so checkpoints with any, or none, are this network's.
    heads = timm.get_pretrained_cfg_value(spec.timm, "classifier") or ()
    prefixes = tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads))
    where = where if found.layout == "timm" else f"{where}, read as {found.layout}"
    load_strict(network, found.state, where=where, drop=(*prefixes, "attn_pool."), keep=(*prefixes, *found.absent))


def _build(spec: TeacherSpec) -> nn.Module:
    family = family_of(spec.timm)
    arguments: dict[str, Any] = {"num_classes": 0, **family.build, **spec.overrides}
    try:
        with impatient_hub() if spec.pretrained else nullcontext():
            network: nn.Module = timm.create_model(spec.timm, pretrained=spec.pretrained, **arguments)
    except Exception as error:
        # Hub, proxy and TLS layers raise classes of their own and share no base; overrides fail inside any constructor.
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        remedy = (
            "without a network, give the weights as checkpoint: PATH (safetensors or weights-only .pth)"
            if spec.pretrained
            else "check the overrides"
        )
        raise TeacherError(f"teacher {spec.name!r}: timm cannot build {spec.timm} ({reason}); {remedy}") from error
    if family.unchecked:
        network.patch_embed.strict_img_size = False  # type: ignore[union-attr]
    return network


def _randomise(network: nn.Module, *, seed: int) -> None:
    """Fill every tensor from its name and the seed, so that the weights do not depend on versions or build order."""
    for name, tensor in network.state_dict().items():
        if not tensor.is_floating_point():
            tensor.zero_()
            continue
        draws = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(tensor.shape, dtype=np.float32)
        filled = torch.from_numpy(np.asarray(draws))
        if name.endswith("running_var"):
            filled = 1 + 0.1 * filled.abs()
        elif tensor.ndim <= 1:
            filled = 0.1 * filled + float(name.endswith("weight"))
        else:
            filled = filled / max(1, filled[0].numel()) ** 0.5
        tensor.copy_(filled)


def _levels(spec: TeacherSpec, *, family: Family, network: nn.Module, stages: int) -> tuple[int, ...]:
    count, what = (len(network.blocks), "blocks") if family.blocks else (stages, "stages")  # type: ignore[arg-type]
    levels = spec.levels or default_levels(count, blocks=family.blocks)
    if min(levels) < 0 or max(levels) >= count or len(set(levels)) != 4:
        raise TeacherError(
            f"teacher {spec.name!r}: expected 4 of the {count} {what} of {spec.timm} (0 to {count - 1}), got"
            f" {tuple(levels)}; correct its levels"
        )
    return tuple(levels)


def _width(stages: Sequence[Mapping[str, Any]], level: int, *, blocks: bool) -> int:
    """Channels of a level: those of the stage that the block belongs to."""
    if not blocks:
        return int(stages[level]["num_chs"])
    ends = [int(str(stage["module"]).rsplit(".", 1)[1]) for stage in stages]
    return int(next(stage["num_chs"] for stage, end in zip(stages, ends, strict=True) if level <= end))
