from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.config import DistillConfig, FinetuneConfig
from pipeline.errors import PipelineError
from pipeline.training import compiled, distill_rate, finetune_rate, loss_weights, warmup_steps

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, 3),  # 2 / 30 of 50 steps
        ({"warmup": 0.2}, 10),
        ({"warmup_epochs": 1.0}, 25),
        ({"warmup_epochs": 0.1}, 2),
        ({"warmup_epochs": 0.0}, 0),
    ],
)
def test_the_warm_up_is_a_fraction_or_in_epochs(keys: dict[str, float], expected: int) -> None:
    assert warmup_steps(DistillConfig(epochs=2, batch=4, **keys), steps=50, images=100) == expected  # type: ignore[arg-type]


def test_with_whole_batches_alone_an_epoch_of_warm_up_has_no_others() -> None:
    config = DistillConfig(epochs=2, batch=8, drop_last=True, warmup_epochs=1.0)
    assert warmup_steps(config, steps=24, images=102) == 12


def test_a_warm_up_as_long_as_the_whole_is_refused() -> None:
    config = DistillConfig(steps=20, batch=4, warmup_epochs=1.0)
    with pytest.raises(PipelineError, match=r"warmup_epochs: 1 epochs are 25 of 20 steps"):
        distill_rate(config, steps=20, images=100)


def test_the_reference_schedule_is_one_step_behind() -> None:
    def rates(**keys: Any) -> list[float]:
        rate = distill_rate(DistillConfig(steps=20, batch=4, warmup=0.2, **keys), steps=20, images=100)
        return [rate(step) for step in range(20)]

    ours, theirs = rates(), rates(reference_schedule=True)
    assert theirs == [ours[0], *ours[:-1]]
    assert (theirs[0], theirs[1], max(theirs), theirs.index(max(theirs))) == (1.25e-7, 1.25e-7, 1e-3, 5)


def test_stage_2_falls_by_its_power_or_along_a_cosine() -> None:
    poly = finetune_rate(FinetuneConfig(steps=10, lr=1e-3, power=2.0), steps=10)
    assert [poly(0), poly(5), poly(10)] == pytest.approx([1e-3, 2.5e-4, 0.0])
    cosine = finetune_rate(FinetuneConfig(steps=10, lr=1e-3, schedule="cosine", warmup=0.2, end_lr=1e-4), steps=10)
    assert [cosine(0), cosine(2), cosine(10)] == pytest.approx([1.25e-7, 1e-3, 1e-4])


def test_weights_of_the_loss_are_the_keys_and_a_scale_reaches_every_teacher() -> None:
    keys: dict[str, Any] = {"cosine_weight": 0.5, "l1_weight": 2.0, "beta": 0.1, "level_weights": (1.0, 1.0, 1.0, 4.0)}
    config = DistillConfig(steps=1, teacher_weights={"sam": 0.5}, **keys)
    found = loss_weights(config)
    assert (found.cosine, found.l1, found.beta, found.levels) == (0.5, 2.0, 0.1, (1.0, 1.0, 1.0, 4.0))
    assert found.teachers == {"sam": 0.5}
    assert loss_weights(config, teachers=("sam", "clip"), scale=2.0).teachers == {"sam": 1.0, "clip": 2.0}


def test_compiling_needs_a_compiler_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    module = nn.Linear(2, 2)
    assert compiled(module, False, device=CPU) is module
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(PipelineError, match=r"a C\+\+ compiler here, found none; .*set compile to false"):
        compiled(module, True, device=CPU)


@pytest.mark.slow
@pytest.mark.skipif(not any(shutil.which(name) for name in ("c++", "g++", "clang++")), reason="needs a C++ compiler")
def test_a_compiled_module_computes_and_learns_as_itself() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2))
    fast, given = compiled(module, "default", device=CPU), torch.randn(3, 4)
    expected = module(given)
    found = fast(given)
    torch.testing.assert_close(found, expected)
    wanted = torch.autograd.grad(expected.square().sum(), list(module.parameters()))
    found.square().sum().backward()
    for parameter, gradient in zip(module.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
