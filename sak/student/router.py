"""Routers (MoR): per task and level, image-wise weights over the shared and the teacher-specific representations.

Legend: B batch, N patch tokens, C stem width, G gate width, E experts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from sak.draws import Share, draw_normal
from sak.errors import UnknownNameError
from sak.spec import NOISES

__all__ = ["NOISE_FLOOR", "Routed", "Router", "mix_experts"]

NOISE_FLOOR = 0.01
"""Smallest standard deviation of the training noise on a gate's logits."""


class Routed(NamedTuple):
    """What a router gives: mixed tokens ``(B, N, C)`` and the mean weights ``(B, E)`` it mixed with."""

    tokens_BNC: Tensor
    weights_BE: Tensor


def mix_experts(experts_BNC: list[Tensor], weights_BNE: Tensor) -> Tensor:
    """Add up the experts with weights; one product and sum at a time, so that no (B, N, C, E) stack is made.

    Shapes: E of ``(B, N, C)``, ``(B, N or 1, E)`` → ``(B, N, C)``.
    """
    mixed_BNC = experts_BNC[0] * weights_BNE[..., 0:1]
    for index, expert_BNC in enumerate(experts_BNC[1:], start=1):
        mixed_BNC = torch.addcmul(mixed_BNC, expert_BNC, weights_BNE[..., index : index + 1])
    return mixed_BNC


class Router(nn.Module):
    """A noisy soft gate over experts, fed by the stem's tokens.

    Source: published router. Deviation: training noise is drawn per image (``noise="image"``), as the gate itself
    is; the published code draws it per token after spreading the logits over the map (``noise="pixel"``).
    """

    def __init__(self, width: int, *, experts: int, noisy: bool, noise: str = "image") -> None:
        """Make a gate from ``width`` channels to ``experts`` logits, and as many noise scales when ``noisy``.

        Raises:
            UnknownNameError: ``noise`` is none of ``NOISES``.
        """
        super().__init__()
        if noise not in NOISES:
            raise UnknownNameError(f"router noise: expected one of {', '.join(NOISES)}, got {noise!r}")
        self.experts = experts
        self.noisy = noisy
        self.noise = noise
        self.hidden = nn.Linear(width, width // 2)
        self.norm = nn.LayerNorm(width // 2)
        self.act = nn.GELU()
        self.gate = nn.Linear(width // 2, 2 * experts if noisy else experts)

    def forward(self, tokens_BNC: Tensor, experts_BNC: list[Tensor], share: Share | None = None) -> Routed:
        """Weigh the experts by the stem's tokens of the same level; ``share`` is these images' place in the batch.

        Shapes: ``(B, N, C)`` and E of ``(B, N, C)`` → ``(B, N, C)`` and ``(B, E)``.
        """
        # The last layer is linear, so the mean over tokens may be taken before it: the same logits, N times cheaper.
        mean_BG = self.act(self.norm(self.hidden(tokens_BNC))).mean(dim=1)
        logits_B1E = self.gate(mean_BG).float().unsqueeze(1)
        if self.noisy:
            logits_B1E, scale_B1E = logits_B1E.chunk(2, dim=-1)
            if self.training:
                logits_B1E = self._perturb(logits_B1E, scale_B1E, tokens_BNC.shape[1], share)
        weights_BNE = logits_B1E.softmax(dim=-1)
        mixed_BNC = mix_experts(experts_BNC, weights_BNE.to(experts_BNC[0].dtype))
        return Routed(mixed_BNC, weights_BNE.mean(dim=1))

    def _perturb(self, logits_B1E: Tensor, scale_B1E: Tensor, tokens: int, share: Share | None) -> Tensor:
        std_B1E = functional.softplus(scale_B1E) + NOISE_FLOOR
        draws = 1 if self.noise == "image" else tokens
        batch, _, experts = logits_B1E.shape
        eps_BNE = draw_normal((batch, draws, experts), share=share, like=logits_B1E)
        return logits_B1E + eps_BNE * std_B1E
