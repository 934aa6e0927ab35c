"""Adapters and the recurrence of a path."""

from __future__ import annotations

import pytest
import torch

from sak.errors import SakError
from sak.student.adapters import Adapter, AdapterPath


def test_an_adapter_is_a_scaled_residual_bottleneck() -> None:
    adapter = Adapter(8, down_ratio=4)
    tokens = torch.randn(2, 3, 8)
    assert adapter.down.weight.shape == (2, 8)
    assert adapter.scale.item() == 1.0
    delta = adapter(tokens) - tokens
    with torch.no_grad():
        adapter.scale.fill_(-2.0)
    torch.testing.assert_close(adapter(tokens) - tokens, -2 * delta)
    expected = torch.nn.functional.gelu(tokens @ adapter.down.weight.T + adapter.down.bias) @ adapter.up.weight.T
    torch.testing.assert_close(delta, expected + adapter.up.bias)


def test_the_path_adds_every_block_before_its_adapter() -> None:
    path = AdapterPath(8, blocks=4, down_ratio=2)
    stages = [torch.randn(1, 3, 8) for _ in range(5)]
    first = path[0](stages[0])
    second = path[1](first + stages[1])
    third = path[2](second + stages[2])
    at_0, at_1 = path(stages, (0, 1))
    torch.testing.assert_close(at_0, second)
    torch.testing.assert_close(at_1, third)


def test_too_narrow_a_stem_is_refused() -> None:
    with pytest.raises(SakError, match="down_ratio"):
        Adapter(8, down_ratio=16)
