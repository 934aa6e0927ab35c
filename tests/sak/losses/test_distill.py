"""The distillation loss equals the published one and refuses what it cannot compare."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sak.errors import SakError, UnknownNameError
from sak.losses.distill import COSINES, KINDS, LossWeights, distill_loss, distill_measures

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "sak_reference_losses_metrics.npz"
TEACHERS = ("dinov2", "sam", "clip")


def maps(side: str) -> dict[str, list[Tensor]]:
    with np.load(GOLDEN, allow_pickle=False) as golden:
        return {t: [torch.from_numpy(golden[f"distill/{side}/{t}/{i}"]) for i in range(2)] for t in TEACHERS}


@pytest.mark.parametrize("kind", KINDS)
def test_parity_with_the_published_loss(kind: str) -> None:
    losses = distill_loss(maps("teacher"), maps("student"), kind)
    with np.load(GOLDEN, allow_pickle=False) as golden:
        wanted = {key.split("/")[-1]: float(golden[key]) for key in golden.files if key.startswith(f"distill/{kind}/")}
    assert losses.keys() == wanted.keys()
    assert {key: float(loss) for key, loss in losses.items()} == pytest.approx(wanted, rel=1e-6, abs=1e-6)


def test_either_side_may_be_the_larger() -> None:
    small, large = torch.randn(2, 8, 4, 5), torch.randn(2, 8, 7, 9)
    one = distill_loss({"a": [small]}, {"a": [large]}, "cos+l1")["total"]
    other = distill_loss({"a": [large]}, {"a": [small]}, "cos+l1")["total"]
    torch.testing.assert_close(one, other)


def test_token_cosine_is_not_dominated_by_one_large_token() -> None:
    target = torch.randn(1, 16, 6, 6)
    target[..., 0, 0] *= 100
    feat = torch.randn(1, 16, 6, 6)
    feat[..., 0, 0] = target[..., 0, 0]
    image = distill_loss({"a": [target]}, {"a": [feat]}, "cos")["total"]
    token = distill_loss({"a": [target]}, {"a": [feat]}, "cos", cosine="token")["total"]
    assert image < 0.1 < 0.8 < token


def test_perfect_features_cost_nothing_and_gradients_reach_the_student() -> None:
    target = torch.randn(2, 8, 4, 4)
    for kind in KINDS:
        assert float(distill_loss({"a": [target]}, {"a": [target.clone()]}, kind)["total"]) == pytest.approx(
            0, abs=1e-6
        )
    feat = torch.randn(2, 8, 4, 4, requires_grad=True)
    distill_loss({"a": [target]}, {"a": [feat]}, "cos+l1")["total"].backward()
    assert feat.grad is not None
    assert feat.grad.abs().sum() > 0


def test_half_precision_is_computed_in_float32() -> None:
    target, feat = torch.randn(1, 8, 4, 4), torch.randn(1, 8, 4, 4).bfloat16()
    loss = distill_loss({"a": [target]}, {"a": [feat]}, "cos+l1")["total"]
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, distill_loss({"a": [target]}, {"a": [feat.float()]}, "cos+l1")["total"])


def test_refusals_name_the_culprit() -> None:
    one = torch.zeros(2, 8, 4, 4)
    with pytest.raises(UnknownNameError, match=r"'l1'.*cos\+l1, cos, l2"):
        distill_loss({"a": [one]}, {"a": [one]}, "l1")
    with pytest.raises(UnknownNameError, match=r"'pixel'.*image, token"):
        distill_loss({"a": [one]}, {"a": [one]}, "cos", cosine="pixel")
    with pytest.raises(SakError, match=r"none for \['sam'\] and too many \['clip'\]"):
        distill_loss({"a": [one], "sam": [one]}, {"a": [one], "clip": [one]}, "cos")
    with pytest.raises(SakError, match=r"teacher 'a' has 2 levels, the student's path 1"):
        distill_loss({"a": [one, one]}, {"a": [one]}, "cos")
    with pytest.raises(SakError, match=r"a_level2.*\(2, 8, 4, 4\) and student \(2, 6, 4, 4\)"):
        distill_loss({"a": [one, one]}, {"a": [one, one[:, :6]]}, "cos")
    with pytest.raises(SakError, match="at least one teacher"):
        distill_loss({}, {}, "cos")


def test_weights_are_the_published_formula_with_other_numbers() -> None:
    target, feat = torch.randn(2, 8, 4, 4), torch.randn(2, 8, 4, 4)
    weights = LossWeights(cosine=0.3, l1=2.0, beta=0.25)
    cosine = 1 - torch.nn.functional.cosine_similarity(target.flatten(1), feat.flatten(1)).mean()
    error = (target - feat).abs()
    smooth = torch.where(error < 0.25, error.square() / 0.5, error - 0.125).mean()
    found = distill_loss({"a": [target]}, {"a": [feat]}, "cos+l1", weights=weights)
    torch.testing.assert_close(found["total"], 0.3 * cosine + 2 * smooth)
    plain = distill_loss({"a": [target]}, {"a": [feat]}, "cos+l1", weights=LossWeights(cosine=0.0, l1=1.0, beta=0.0))
    torch.testing.assert_close(plain["total"], error.mean())


@pytest.mark.parametrize("kind", KINDS)
def test_teachers_and_levels_weigh_in_the_total_alone(kind: str) -> None:
    plain = distill_loss(maps("teacher"), maps("student"), kind)
    weights = LossWeights(teachers={"sam": 0.25, "clip": 0.0}, levels=(1.0, 3.0))
    weighed = distill_loss(maps("teacher"), maps("student"), kind, weights=weights)
    assert all(torch.equal(weighed[name], plain[name]) for name in plain if name != "total")
    expected = sum(
        factor * (plain[f"{name}_level1"] + 3 * plain[f"{name}_level2"])
        for name, factor in (("dinov2", 1), ("sam", 0.25))
    )
    torch.testing.assert_close(weighed["total"], expected)


def test_weights_that_no_loss_can_have_are_refused() -> None:
    with pytest.raises(SakError, match=r"l1_weight -1, teacher_weights\.a nan, level_weights\[1\] inf"):
        LossWeights(l1=-1, teachers={"a": float("nan")}, levels=(1.0, float("inf")))
    one = torch.zeros(2, 8, 4, 4)
    with pytest.raises(SakError, match="level_weights: expected 1, one a level, got 2"):
        distill_loss({"a": [one]}, {"a": [one]}, "cos", weights=LossWeights(levels=(1.0, 2.0)))


@pytest.mark.parametrize("cosine", COSINES)
def test_measures_are_the_parts_of_the_loss(cosine: str) -> None:
    weights = LossWeights(cosine=0.7, l1=0.2, beta=0.5)
    target, feat = maps("teacher"), maps("student")
    losses = distill_loss(target, feat, "cos+l1", cosine=cosine, weights=weights)
    found = distill_measures(target, feat, "cos+l1", cosine=cosine, beta=0.5)
    for name in losses.keys() - {"total"}:
        together = 0.7 * found.pop(f"loss_cosine/{name}") + 0.2 * found.pop(f"loss_l1/{name}")
        torch.testing.assert_close(together, losses[name])
    assert found.keys() == {f"cosine/{name}" for name in losses.keys() - {"total"}}


@pytest.mark.parametrize("kind", ["cos", "l2"])
def test_the_cosine_of_tokens_is_measured_for_every_loss(kind: str) -> None:
    target, feat = torch.randn(2, 8, 4, 5), torch.randn(2, 8, 4, 5, requires_grad=True)
    (value,) = distill_measures({"a": [target]}, {"a": [feat]}, kind).values()
    one, other = target.numpy(), feat.detach().numpy()
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    assert float(value) == pytest.approx(((one * other).sum(axis=1) / lengths).mean(), abs=1e-6)
    assert not value.requires_grad
