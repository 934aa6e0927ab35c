"""Low-rank updates: nothing at the start, small in number, and the same network once they are added to the weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sak.errors import SakError
from sak.student.lora import LoraLinear, add_lora, merge_lora
from sak.student.stem import build_stem, run_stem
from tests.sak.student.tiny import IMAGE_SIZE, STAGE1, images

ALL = ("qkv", "proj", "fc1", "fc2")


def stem_of() -> Any:
    torch.manual_seed(3)
    return build_stem(STAGE1.stem, image_size=IMAGE_SIZE, overrides=STAGE1.stem_overrides)


def learn(stem: Any) -> None:
    """Move what may be trained away from where it starts."""
    with torch.no_grad():
        for parameter in stem.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))


def test_it_starts_as_the_stem_itself() -> None:
    stem, plain = stem_of(), stem_of()
    add_lora(stem, rank=2, alpha=4.0, layers=ALL)
    for one, other in zip(run_stem(stem, images()), run_stem(plain, images()), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("layers", [("qkv",), ("qkv", "proj"), ALL])
def test_only_the_updates_are_trained(layers: tuple[str, ...]) -> None:
    stem = stem_of()
    before = {name: tensor.clone() for name, tensor in stem.state_dict().items()}
    add_lora(stem, rank=2, alpha=4.0, layers=layers)
    trained = {name: parameter for name, parameter in stem.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[-2] for name in trained} == {"down", "up"}
    assert {name.split(".")[-3] for name in trained} == set(layers)
    sides = {"qkv": 32 + 96, "proj": 64, "fc1": 32 + 128, "fc2": 32 + 128}
    assert sum(parameter.numel() for parameter in trained.values()) == 5 * 2 * sum(sides[name] for name in layers)
    torch.manual_seed(0)
    learn(stem)
    run_stem(stem, images())[-1].square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in trained.values())
    kept = {name.replace(".base.", "."): tensor for name, tensor in stem.state_dict().items()}
    assert all(torch.equal(kept[name], tensor) for name, tensor in before.items())


def test_merged_it_is_a_plain_stem_that_computes_the_same() -> None:
    stem, plain = stem_of(), stem_of()
    add_lora(stem, rank=3, alpha=6.0, layers=ALL)
    torch.manual_seed(0)
    learn(stem)
    with torch.no_grad():
        expected = run_stem(stem, images())
        assert not torch.allclose(expected[-1], run_stem(plain, images())[-1], atol=0.01)
        merge_lora(stem)
        found = run_stem(stem, images())
    assert stem.state_dict().keys() == plain.state_dict().keys()
    assert all(parameter.requires_grad for parameter in stem.parameters())
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    merge_lora(stem)  # once more changes nothing
    with torch.no_grad():
        assert torch.equal(run_stem(stem, images())[-1], found[-1])


def test_the_update_counts_alpha_over_rank() -> None:
    base = torch.nn.Linear(6, 5)
    layer = LoraLinear(base, rank=2, alpha=8.0)
    torch.nn.init.normal_(layer.up.weight)
    tokens = torch.randn(3, 4, 6)
    update = tokens @ layer.down.weight.T @ layer.up.weight.T
    torch.testing.assert_close(layer(tokens), base(tokens) + 4 * update)


def test_refusals() -> None:
    with pytest.raises(SakError, match="rank from 1 to below the sides of a 32 x 96 layer, got 32"):
        add_lora(stem_of(), rank=32, alpha=1.0, layers=["qkv"])
    with pytest.raises(SakError, match="linear layer 'query' in block 0"):
        add_lora(stem_of(), rank=2, alpha=1.0, layers=["query"])
