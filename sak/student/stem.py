"""The shared stem (TAS): any plain timm vision transformer, cut back to its raw residual stream.

Legend: B batch, P prefix tokens (CLS, registers), N patch tokens, C stem width.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sak.errors import CheckpointError, SakError, UnknownNameError
from sak.hub import impatient_hub
from sak.teachers.conversion import convert
from sak.weights import load_strict, load_weights

__all__ = [
    "StemWeights",
    "build_stem",
    "default_levels",
    "load_stem",
    "run_stem",
    "stem_grid",
    "stem_statistics",
    "stem_width",
]

_PLAIN_MODULES = ("timm.models.vision_transformer", "timm.models.deit")
_SIZES = ("patch_size", "embed_dim", "depth", "num_heads")
_AFTER_BLOCKS = ("norm.", "fc_norm.", "head.", "head_dist.", "attn_pool.", "pre_logits.", "mask_token")
"""Parts of a timm checkpoint beyond the residual stream; a stem has none of them."""


class StemWeights(NamedTuple):
    """What a checkpoint gave a stem.

    Attributes:
        layout: Whose names it came in.
        matched: Tensors it filled, which are all that the stem has.
        keys: How many the file holds, final norm, classifier and text tower included.
        resized: Tokens of its position embedding where that had another grid than the stem's, else 0.
    """

    layout: str
    matched: int
    keys: int
    resized: int

    def summary(self) -> str:
        """One line for people."""
        grid = f"; position embedding resized from {self.resized} tokens" if self.resized else ""
        return f"all {self.matched} tensors matched, from {self.keys} keys in {self.layout} layout{grid}"


def default_levels(depth: int, /) -> tuple[int, int, int, int]:
    """The four evenly spaced blocks whose outputs are the levels: 2, 5, 8, 11 of 12 and 5, 11, 17, 23 of 24.

    Raises:
        SakError: fewer than four blocks.
    """
    if depth < 4:
        raise SakError(f"levels: expected a stem of at least 4 blocks, got depth {depth}; use a deeper stem")
    first, second, third, fourth = (depth * part // 4 - 1 for part in (1, 2, 3, 4))
    return first, second, third, fourth


def build_stem(
    name: str,
    /,
    *,
    image_size: tuple[int, int],
    overrides: Mapping[str, int] | None = None,
    pretrained: bool = False,
) -> nn.Module:
    """Build a plain vision transformer without final norm, pooling and classifier.

    Args:
        name: timm name, such as ``vit_small_patch16_384`` (with or without a weight tag).
        image_size: Input rows and columns, multiples of the patch size.
        overrides: Integers handed to timm, such as ``patch_size embed_dim depth num_heads``.
        pretrained: Fetch timm's weights from its hub; ``load_stem`` takes them from a file.

    Raises:
        UnknownNameError: timm has no such model.
        SakError: the model is no plain vision transformer, or an override or the image size does not fit it.
        CheckpointError: the weights cannot be fetched.
    """
    _check_plain(name)
    options: dict[str, Any] = {"img_size": image_size, "num_classes": 0, **(overrides or {})}
    stem = _create_pretrained(name, options) if pretrained else _create(name, options)
    if not isinstance(stem, VisionTransformer) or not isinstance(stem.patch_embed, PatchEmbed):
        raise SakError(
            f"stem {name}: expected a plain vision transformer, got {type(stem).__name__}; use a vit_* or deit*"
        )
    _check_size(name, stem, image_size)
    _strip(stem)
    return stem


def load_stem(stem: Any, path: Path, /) -> StemWeights:
    """Load weights from a file (safetensors, or weights-only .pth) into a stem, all of them or nothing.

    The file may have timm's names or those of any layout that teachers come in (``sak.teachers.layouts``): OpenCLIP's,
    transformers', DINOv2's own. A position embedding of another grid is resized.

    Raises:
        CheckpointError: the file cannot be read, or is not of this network; the message lists keys.
    """
    state = load_weights(path)
    converted = convert(state, where=f"stem: {path}")
    fitted = checkpoint_filter_fn(dict(converted.state), stem)
    report = load_strict(stem, fitted, where=str(path), drop=_AFTER_BLOCKS)
    before, after = (
        tokens["pos_embed"].shape[1] if "pos_embed" in tokens else 0 for tokens in (converted.state, fitted)
    )
    return StemWeights(converted.layout, len(report.matched), len(state), before if before != after else 0)


def stem_statistics(name: str, /) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of 0..1 pixels that timm's weights of this name were trained with.

    Raises:
        UnknownNameError: timm has no such model.
        SakError: timm does not say.
    """
    _check_plain(name)
    known = timm.get_pretrained_cfg(name)
    if known is None or len(known.mean) != 3 or len(known.std) != 3:
        raise SakError(f"stem {name}: expected timm to know its normalization, but it does not; give mean and std")
    (mean_r, mean_g, mean_b), (std_r, std_g, std_b) = known.mean, known.std
    return (mean_r, mean_g, mean_b), (std_r, std_g, std_b)


def stem_width(name: str, /, *, overrides: Mapping[str, int]) -> int:
    """Channels of a stem's tokens, found without allocating its weights.

    Raises:
        UnknownNameError: timm has no such model.
        SakError: the model is no plain vision transformer, or timm refuses the overrides.
    """
    _check_plain(name)
    if "embed_dim" in overrides:
        return int(overrides["embed_dim"])
    with torch.device("meta"):
        stem: Any = _create(name, dict(overrides))
    return int(stem.num_features)


def stem_grid(stem: nn.Module, /) -> tuple[int, int]:
    """Rows and columns of the stem's patch tokens."""
    rows, columns = stem.patch_embed.grid_size  # type: ignore[union-attr, misc]
    return int(rows), int(columns)


def run_stem(stem: nn.Module, images_BCHW: Tensor, /, *, recompute: bool = False) -> list[Tensor]:
    """Patch tokens of the residual stream: after the position embedding, then after each block.

    Args:
        recompute: Keep no activations inside blocks; the backward pass computes them again.

    Shapes: ``(B, 3, H, W)`` → ``depth + 1`` of ``(B, N, C)``.

    Source: published stem; the CLS token takes part in attention but is never handed on.
    """
    vit: Any = stem
    tokens_BNC = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(images_BCHW))))
    prefix = vit.num_prefix_tokens
    stages = [tokens_BNC[:, prefix:]]
    for block in vit.blocks:
        tokens_BNC = checkpoint(block, tokens_BNC, use_reentrant=False) if recompute else block(tokens_BNC)
        stages.append(tokens_BNC[:, prefix:])
    return stages


def _check_plain(name: str) -> None:
    if not timm.is_model(name):
        close = difflib.get_close_matches(
            name.split(".")[0], timm.list_models("*vit*") + timm.list_models("deit*"), n=5
        )
        raise UnknownNameError(
            f"stem: timm {timm.__version__} has no model {name!r}; close names: {', '.join(close) or 'none'}"
        )
    module = timm.model_entrypoint(name).__module__
    if module not in _PLAIN_MODULES:
        raise SakError(
            f"stem {name}: expected a plain vision transformer, got one of {module}; use a vit_* or deit* model"
        )


def _create(name: str, options: dict[str, Any]) -> nn.Module:
    wrong = {key: options[key] for key in _SIZES if key in options and options[key] < 1}
    if wrong:
        raise SakError(f"stem {name}: expected overrides of 1 or more, got {wrong}; correct the overrides")
    try:
        model: nn.Module = timm.create_model(name, pretrained=False, **options)
    # timm checks few of its arguments: the rest surface as whatever the arithmetic on them raises.
    except Exception as error:
        first_line = next(iter(str(error).splitlines()), "")  # torch's own go on with a trace of its C++
        reason = f"{type(error).__name__}: {first_line}"
        raise SakError(f"stem {name}: timm refuses {options} ({reason}); correct the overrides") from error
    return model


def _create_pretrained(name: str, options: dict[str, Any]) -> nn.Module:
    try:
        with impatient_hub():
            model: nn.Module = timm.create_model(name, pretrained=True, **options)
    # The hub client raises what its HTTP library of the day raises; every failure means the same to the user.
    except Exception as error:
        raise CheckpointError(
            f"stem {name}: expected pretrained weights from timm's hub, got {type(error).__name__}: {error};"
            " without a network give the weights as a file: checkpoint: PATH (.safetensors or weights-only .pth)"
        ) from error
    return model


def _check_size(name: str, stem: Any, image_size: tuple[int, int]) -> None:
    patch_size = stem.patch_embed.patch_size
    if any(side % patch for side, patch in zip(image_size, patch_size, strict=True)):
        raise SakError(
            f"stem {name}: expected an image size that the patch size {patch_size} divides, got {image_size};"
            " otherwise the right and bottom border is never seen"
        )


def _strip(stem: Any) -> None:
    for part in ("norm", "fc_norm", "head", "head_dist"):
        if hasattr(stem, part):
            setattr(stem, part, nn.Identity())
    stem.attn_pool = None
