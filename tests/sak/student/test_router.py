"""Routers: weights per image, noise in training only."""

from __future__ import annotations

import math

import pytest
import torch

from sak.errors import UnknownNameError
from sak.student.router import NOISE_FLOOR, Router, mix_experts

TOKENS = 6


def inputs(batch: int, experts: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Random stem tokens and experts that are one-hot, so that the mix shows the weights themselves."""
    one_hot = [torch.nn.functional.one_hot(torch.tensor(e), 8).float().expand(batch, TOKENS, 8) for e in range(experts)]
    return torch.randn(batch, TOKENS, 8), one_hot


def test_mix_is_the_weighted_sum() -> None:
    experts = [torch.randn(2, 5, 4) for _ in range(3)]
    weights = torch.rand(2, 5, 3)
    torch.testing.assert_close(
        mix_experts(experts, weights), torch.einsum("ebnc,bne->bnc", torch.stack(experts), weights)
    )


@pytest.mark.parametrize("noisy", [True, False])
def test_evaluation_is_deterministic_and_per_image(noisy: bool) -> None:
    router = Router(8, experts=3, noisy=noisy).eval()
    tokens, experts = inputs(2, 3)
    first, second = router(tokens, experts), router(tokens, experts)
    assert torch.equal(first.tokens_BNC, second.tokens_BNC)
    torch.testing.assert_close(first.tokens_BNC[:, 0, :3], first.weights_BE)
    torch.testing.assert_close(first.tokens_BNC, first.tokens_BNC[:, :1].expand(-1, TOKENS, -1))


def test_the_gate_averages_its_logits_over_tokens() -> None:
    router = Router(8, experts=3, noisy=True).eval()
    tokens, experts = inputs(2, 3)
    per_token = router.gate(router.act(router.norm(router.hidden(tokens))))[..., :3]
    torch.testing.assert_close(router(tokens, experts).weights_BE, per_token.mean(dim=1).softmax(dim=-1))


@pytest.mark.parametrize(("noise", "same"), [("image", True), ("pixel", False)])
def test_training_noise_is_drawn_per_image_or_per_token(noise: str, same: bool) -> None:
    torch.manual_seed(0)
    router = Router(8, experts=3, noisy=True, noise=noise).train()
    tokens, experts = inputs(1, 3)
    first, second = router(tokens, experts), router(tokens, experts)
    assert not torch.allclose(first.weights_BE, second.weights_BE)
    constant = torch.allclose(first.tokens_BNC, first.tokens_BNC[:, :1].expand(-1, TOKENS, -1))
    assert constant is same
    torch.testing.assert_close(first.tokens_BNC[..., :3].mean(dim=1), first.weights_BE)


def test_two_images_of_a_batch_get_different_noise() -> None:
    torch.manual_seed(0)
    router = Router(8, experts=2, noisy=True).train()
    tokens, experts = inputs(1, 2)
    weights = router(tokens.expand(2, -1, -1), [expert.expand(2, -1, -1) for expert in experts]).weights_BE
    assert not torch.allclose(weights[0], weights[1])


def test_without_noisy_gating_training_equals_evaluation() -> None:
    router = Router(8, experts=3, noisy=False)
    tokens, experts = inputs(2, 3)
    assert router.gate.out_features == 3
    assert torch.equal(router.train()(tokens, experts).weights_BE, router.eval()(tokens, experts).weights_BE)


def test_noise_has_the_published_initial_scale() -> None:
    torch.manual_seed(0)
    router = Router(8, experts=2, noisy=True).train()
    torch.nn.init.zeros_(router.gate.weight)
    torch.nn.init.zeros_(router.gate.bias)
    weights = router(*inputs(20_000, 2)).weights_BE
    spread = (weights[:, 0].log() - weights[:, 1].log()).std().item() / math.sqrt(2)
    assert spread == pytest.approx(math.log(2) + NOISE_FLOOR, rel=0.03)


def test_the_noise_scale_is_learnt() -> None:
    router = Router(8, experts=2, noisy=True).train()
    router(*inputs(2, 2)).tokens_BNC[..., 0].sum().backward()
    assert router.gate.weight.grad is not None
    assert router.gate.weight.grad[2:].abs().sum() > 0


def test_an_unknown_noise_lists_the_choices() -> None:
    with pytest.raises(UnknownNameError, match="image, pixel"):
        Router(8, experts=2, noisy=True, noise="token")
