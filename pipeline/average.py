"""An exponential moving average of a network's weights (EMA)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["WeightAverage"]


class WeightAverage:
    """Averages of all floating-point weights and buffers; of the others, the newest.

    In step ``t``, from 0, the decay is ``min(decay, (1 + t) / (10 + t))``, so that a short run does not remember its
    random start.

    Args:
        model: Its weights now are the first average.
        decay: How much of the average a step leaves.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self._decay = decay
        self.state: dict[str, Tensor] = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, *, step: int) -> None:
        """Take in the weights after a step."""
        weight = 1 - min(self._decay, (1 + step) / (10 + step))
        now = model.state_dict()
        averaged = [name for name, value in self.state.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.state[name] for name in averaged], [now[name] for name in averaged], weight)
        for name in self.state.keys() - set(averaged):
            self.state[name].copy_(now[name])

    def give(self, model: nn.Module) -> None:
        """Make the averages the model's own weights."""
        model.load_state_dict(self.state)
