"""Weights of tasks that are learnt while the network is: by uncertainty, or by the norms of gradients.

They multiply losses that have their fixed weights already, start at 1, and are functions of the whole batch's losses
and gradients, so that every part of a split batch has the same. Each has its own Adam, written out here: its state,
``TaskBalance.state``, is all that a checkpoint has to keep. A task without a labelled pixel in a batch changes nothing.

Legend: T tasks, P shared parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from sak.errors import UnknownNameError

__all__ = ["WEIGHTINGS", "GradNorm", "Mean", "TaskBalance", "Uncertainty", "make_balance"]

Mean = Callable[[Tensor], Tensor]

WEIGHTINGS = ("fixed", "uncertainty", "gradnorm")
"""``fixed`` learns none."""

_BETAS, _EPSILON = (0.9, 0.999), 1e-8
_SMALLEST = 1e-3  # a weight that reaches 0 never comes back
_REGRESSION = ("normals", "depth")


class TaskBalance(Protocol):
    """Weights of tasks, and how a step changes them.

    Attributes:
        state: All that changes, by name; changed in place.
    """

    state: dict[str, Tensor]

    def weights(self) -> Tensor:
        """The weights ``(T,)`` of the next step, in the tasks' order."""
        ...

    def __call__(self, losses: Mapping[str, Tensor], *, shared: Sequence[nn.Parameter], mean: Mean) -> Tensor:
        """The total loss of a step under its weights; those of the next step are learnt from it.

        Args:
            losses: Task → loss; means over the parts of a split batch are the batch's.
            shared: Weights that all tasks share and train.
            mean: A value of this part → its mean over all parts; no gradient passes.
        """
        ...


class Uncertainty:
    """exp(-s) L + s, or s / 2 for classification, of each task: s is its log scale, or log variance.

    Source: Kendall et al. 2018 (arXiv 1705.07115). Its likelihoods for our losses: cross entropy under a temperature
    σ² gives L / σ² + log σ, L1 under a Laplace distribution of scale b gives L / b + log b.
    """

    def __init__(self, tasks: Sequence[str], *, rate: float, device: torch.device) -> None:
        self._rate = rate
        halves = [1.0 if task in _REGRESSION else 0.5 for task in tasks]
        self._slope_T = torch.tensor(halves, device=device)
        self.state = {"log_variance": torch.zeros(len(tasks), device=device), **_adam(len(tasks), device)}

    def weights(self) -> Tensor:
        """exp(-s); shape ``(T,)``."""
        return (-self.state["log_variance"]).exp()

    def __call__(self, losses: Mapping[str, Tensor], *, shared: Sequence[nn.Parameter], mean: Mean) -> Tensor:
        """As ``TaskBalance``; ``shared`` is not looked at."""
        now_T = torch.stack(list(losses.values()))
        batch_T = mean(now_T.detach())
        log_T, weight_T = self.state["log_variance"], self.weights()
        present_T = batch_T > 0
        total = (weight_T * now_T).sum() + torch.where(present_T, self._slope_T * log_T, 0.0).sum()
        _descend(log_T, self._slope_T - weight_T * batch_T, present_T, state=self.state, rate=self._rate)
        return total


class GradNorm:
    """Weights under which every task's gradient on the shared weights has about the same norm.

    A task whose loss has fallen less than the others' since the start pulls harder, by the power ``alpha`` of how much
    less. Weights add up to the number of tasks.

    Source: GradNorm (Chen et al. 2018, arXiv 1711.02257), its algorithm 1. A task's first loss is that of the first
    batch that has a labelled pixel of it.
    """

    def __init__(self, tasks: Sequence[str], *, rate: float, device: torch.device, alpha: float = 1.5) -> None:
        self._rate, self._alpha = rate, alpha
        self.state = {
            "weights": torch.ones(len(tasks), device=device),
            "first_loss": torch.zeros(len(tasks), device=device),
            **_adam(len(tasks), device),
        }

    def weights(self) -> Tensor:
        """Of mean 1; shape ``(T,)``."""
        return self.state["weights"].clone()

    def __call__(self, losses: Mapping[str, Tensor], *, shared: Sequence[nn.Parameter], mean: Mean) -> Tensor:
        """As ``TaskBalance``; takes a gradient of each loss down to ``shared``."""
        now_T = torch.stack(list(losses.values()))
        batch_T = mean(now_T.detach())
        norm_T = mean(torch.stack([_gradient(loss, shared) for loss in losses.values()])).norm(dim=1)
        own_T, first_T, weight_T = self.state["weights"], self.state["first_loss"], self.weights()
        present_T = batch_T > 0
        first_T.copy_(torch.where((first_T == 0) & present_T, batch_T, first_T))
        pull_T = weight_T * norm_T
        fallen_T = torch.where(present_T, batch_T / first_T, 0.0)
        slower_T = fallen_T / _mean_of(fallen_T, present_T)
        wanted_T = _mean_of(pull_T, present_T) * slower_T**self._alpha
        slope_T = (pull_T - wanted_T).sign() * norm_T
        _descend(own_T, slope_T, present_T, state=self.state, rate=self._rate)
        own_T.clamp_(min=_SMALLEST)
        own_T.mul_(len(own_T) / own_T.sum())
        return (weight_T * now_T).sum()


def make_balance(
    name: str, tasks: Sequence[str], *, rate: float, alpha: float, device: torch.device
) -> TaskBalance | None:
    """The named weighting, at its start; None for ``fixed``.

    Args:
        alpha: Of ``gradnorm``.

    Raises:
        UnknownNameError: No such weighting.
    """
    if name == "fixed":
        return None
    if name == "uncertainty":
        return Uncertainty(tasks, rate=rate, device=device)
    if name == "gradnorm":
        return GradNorm(tasks, rate=rate, device=device, alpha=alpha)
    raise UnknownNameError(f"weighting: expected one of {', '.join(WEIGHTINGS)}, got {name!r}")


def _adam(tasks: int, device: torch.device) -> dict[str, Tensor]:
    return {name: torch.zeros(tasks, device=device) for name in ("step", "moment", "square")}


@torch.no_grad()
def _descend(value_T: Tensor, slope_T: Tensor, present_T: Tensor, *, state: Mapping[str, Tensor], rate: float) -> None:
    """A step of Adam, in place, of those tasks that are present; each counts its own steps."""
    first, second = _BETAS
    for name, new_T, decay in (("moment", slope_T, first), ("square", slope_T.square(), second)):
        state[name].copy_(torch.where(present_T, torch.lerp(new_T, state[name], decay), state[name]))
    state["step"].add_(present_T)
    count_T = state["step"].clamp(min=1)
    moment_T, square_T = state["moment"] / (1 - first**count_T), state["square"] / (1 - second**count_T)
    value_T.sub_(torch.where(present_T, rate * moment_T / (square_T.sqrt() + _EPSILON), 0.0))


def _mean_of(value_T: Tensor, present_T: Tensor) -> Tensor:
    """Mean over tasks that are present; 1, not NaN, where there is none or nothing in them."""
    mean = torch.where(present_T, value_T, 0.0).sum() / present_T.sum().clamp(min=1)
    return torch.where(mean > 0, mean, 1.0)


def _gradient(loss: Tensor, shared: Sequence[nn.Parameter]) -> Tensor:
    """Of one loss on the shared weights, as a vector ``(P,)``; the graph stays for the backward pass."""
    with torch.autocast(loss.device.type, enabled=False):
        found = torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True, materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in found])
