"""The shared stem (TAS): any plain timm vision transformer, cut back to its raw residual stream.

Legend: B batch, P prefix tokens (CLS, registers), N patch tokens, C stem width.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from sak.errors import CheckpointError, SakError, UnknownNameError
from sak.hub import impatient_hub
from sak.weights import load_strict, load_weights, unwrap_state

__all__ = ["build_stem", "default_levels", "run_stem", "stem_grid", "stem_width"]

_PLAIN_MODULES = ("timm.models.vision_transformer", "timm.models.deit")
_SIZES = ("patch_size", "embed_dim", "depth", "num_heads")
_AFTER_BLOCKS = ("norm.", "fc_norm.", "head.", "head_dist.", "attn_pool.", "pre_logits.", "mask_token")
"""Parts of a timm checkpoint beyond the residual stream; a stem has none of them."""


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
    checkpoint: Path | None = None,
) -> nn.Module:
    """Build a plain vision transformer without final norm, pooling and classifier.

    Args:
        name: timm name, such as ``vit_small_patch16_384`` (with or without a weight tag).
        image_size: Input rows and columns, multiples of the patch size.
        overrides: Integers handed to timm, such as ``patch_size embed_dim depth num_heads``.
        pretrained: Fetch timm's weights from its hub.
        checkpoint: Weights on disk instead (safetensors, or weights-only .pth); a position embedding of another grid
            is resized.

    Raises:
        UnknownNameError: timm has no such model.
        SakError: the model is no plain vision transformer, or an override or the image size does not fit it.
        CheckpointError: the weights cannot be fetched or do not fit.
    """
    if pretrained and checkpoint is not None:
        raise CheckpointError(f"stem {name}: expected either pretrained or a checkpoint, got both; drop one of them")
    _check_plain(name)
    options: dict[str, Any] = {"img_size": image_size, "num_classes": 0, **(overrides or {})}
    stem = _create_pretrained(name, options) if pretrained else _create(name, options)
    if not isinstance(stem, VisionTransformer) or not isinstance(stem.patch_embed, PatchEmbed):
        raise SakError(
            f"stem {name}: expected a plain vision transformer, got {type(stem).__name__}; use a vit_* or deit*"
        )
    _check_size(name, stem, image_size)
    _strip(stem)
    if checkpoint is not None:
        state = checkpoint_filter_fn(unwrap_state(load_weights(checkpoint)), stem)
        load_strict(stem, state, where=str(checkpoint), drop=_AFTER_BLOCKS)
    return stem


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


def run_stem(stem: nn.Module, images_BCHW: Tensor, /) -> list[Tensor]:
    """Patch tokens of the residual stream: after the position embedding, then after each block.

    Shapes: ``(B, 3, H, W)`` → ``depth + 1`` of ``(B, N, C)``.

    Source: published stem; the CLS token takes part in attention but is never handed on.
    """
    vit: Any = stem
    tokens_BNC = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(images_BCHW))))
    prefix = vit.num_prefix_tokens
    stages = [tokens_BNC[:, prefix:]]
    for block in vit.blocks:
        tokens_BNC = block(tokens_BNC)
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
        reason = f"{type(error).__name__}: {error}"
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
