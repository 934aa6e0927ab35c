"""Low-rank updates (LoRA) of a stem's linear layers: trained beside frozen weights, then added to them.

Legend: B batch, N tokens, I inputs, O outputs, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sak.errors import SakError

__all__ = ["LoraLinear", "add_lora", "merge_lora"]

_OWNERS = {"qkv": "attn", "proj": "attn", "fc1": "mlp", "fc2": "mlp"}


class LoraLinear(nn.Module):
    """y = base(x) + alpha / rank · up(down(x)); starts as the base alone.

    Source: LoRA (Hu et al. 2021, arXiv 2106.09685): ``down`` starts random, ``up`` at zero; no dropout.
    """

    def __init__(self, base: nn.Linear, *, rank: int, alpha: float) -> None:
        """Wrap a linear layer, whose own parameters are trained no more.

        Raises:
            SakError: the rank is no less than the layer's sides.
        """
        super().__init__()
        if not 1 <= rank < min(base.in_features, base.out_features):
            sides = f"{base.in_features} x {base.out_features}"
            raise SakError(f"lora: expected a rank from 1 to below the sides of a {sides} layer, got {rank}; lower it")
        self.base = base.requires_grad_(False)
        self.scale = alpha / rank
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)

    def forward(self, x_BNI: Tensor) -> Tensor:
        """Shapes: ``(B, N, I)`` → ``(B, N, O)``."""
        y_BNO: Tensor = self.base(x_BNI) + self.scale * self.up(self.down(x_BNI))
        return y_BNO

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The base with the update added to its weight; arithmetic in float64."""
        update_OI = self.scale * self.up.weight.double() @ self.down.weight.double()
        self.base.weight.copy_(self.base.weight.double() + update_OI)
        return self.base.requires_grad_(True)


def add_lora(stem: nn.Module, /, *, rank: int, alpha: float, layers: Sequence[str]) -> None:
    """Freeze a stem and give the named layers of all its blocks a low-rank update.

    Raises:
        SakError: a block has no such layer, or the rank does not suit one.
    """
    stem.requires_grad_(False)
    for place in _places(stem, layers):
        place.put(LoraLinear(place.layer, rank=rank, alpha=alpha))


def merge_lora(model: nn.Module, /) -> None:
    """Turn every update in a model into its weights, which can all be trained again; without any, nothing changes."""
    found = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, LoraLinear)]
    for name, layer in found:
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, layer.merged())
    if found:
        model.requires_grad_(True)


class _Place(NamedTuple):
    owner: nn.Module
    attribute: str
    layer: nn.Linear

    def put(self, layer: nn.Module) -> None:
        setattr(self.owner, self.attribute, layer)


def _places(stem: Any, layers: Sequence[str]) -> Iterator[_Place]:
    for index, block in enumerate(stem.blocks):
        for attribute in layers:
            owner = getattr(block, _OWNERS.get(attribute, ""), None)
            layer = getattr(owner, attribute, None)
            if owner is None or not isinstance(layer, nn.Linear):
                raise SakError(f"lora: expected a linear layer {attribute!r} in block {index}, found none; name others")
            yield _Place(owner, attribute, layer)
