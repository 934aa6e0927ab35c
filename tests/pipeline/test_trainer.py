"""A step's gradients, whatever makes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.config import TrackConfig
from pipeline.loader import Batch
from pipeline.split import Split
from pipeline.trainer import Trainer, TrainPlan


class Tokens(nn.Module):
    """A class token before the others, and a position for each, as in a vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token, self.pos_embed = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 5, 8))
        self.layer = nn.Linear(8, 8)

    def forward(self, tokens_BNC: Tensor) -> Tensor:
        whole_BNC = torch.cat([self.cls_token.expand(len(tokens_BNC), -1, -1), tokens_BNC], dim=1)
        found: Tensor = self.layer(whole_BNC + self.pos_embed).tanh()
        return found


def gradients(folder: Path, build: Callable[[nn.Module], Any], *, accumulate: int, clip: float) -> dict[str, Tensor]:
    """After a step of four images."""
    torch.manual_seed(0)
    model = Tokens()
    forward = build(model)

    def losses(batch: Batch, /) -> Mapping[str, Tensor]:
        return {"total": forward(batch.pixels).square().sum()}

    split = Split(batch=4, accumulate=accumulate)
    plan = TrainPlan(
        steps=1,
        rate=lambda step: 0.0,
        groups=[(list(model.parameters()), 1.0)],
        weight_decay=0.0,
        clip=clip,
        precision="fp32",
        track=TrackConfig(tensorboard=False),
        split=split,
    )
    trainer = Trainer(model=model, losses=losses, plan=plan, folder=folder)
    tokens = torch.randn(4, 4, 8)
    trainer.step(0, [Batch(0, np.arange(len(part)), part, {}, {}) for part in tokens.split(split.micro)])
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("clip", [0.0, 0.1])
def test_a_compiled_step_of_single_images_has_the_gradients_of_an_eager_one(tmp_path: Path, clip: float) -> None:
    """What torch.compile gives for one image are two views of one tensor: neither sums nor clipping may meet twice."""

    def compiled(model: nn.Module) -> Any:
        return torch.compile(model, backend="aot_eager")

    found = gradients(tmp_path, compiled, accumulate=4, clip=clip)
    expected = gradients(tmp_path, lambda model: model, accumulate=4, clip=clip)
    whole = gradients(tmp_path, lambda model: model, accumulate=1, clip=clip)
    assert found.keys() == expected.keys() == {"cls_token", "pos_embed", "layer.weight", "layer.bias"}
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=lambda told, name=name: f"{name}: {told}")
        torch.testing.assert_close(gradient * (1 if clip else 4), whole[name], rtol=1e-4, atol=1e-5)
    assert len({gradient.untyped_storage().data_ptr() for gradient in found.values()}) == len(found)
