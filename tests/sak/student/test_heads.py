"""Heads: resolutions and sizes."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sak import spec
from sak.errors import SakError
from sak.student.heads import HEADS, Head, LightHead


@pytest.mark.parametrize(
    ("grid", "image_size", "quarter"),
    [
        ((4, 6), (64, 96), (16, 24)),
        ((4, 6), (32, 48), (8, 12)),
        ((3, 3), (42, 42), (11, 11)),
        ((8, 8), (16, 16), (4, 4)),
    ],
)
def test_logits_have_image_size_and_are_fused_at_a_quarter(
    grid: tuple[int, int], image_size: tuple[int, int], quarter: tuple[int, int]
) -> None:
    head = Head(16, channels=5).eval()
    seen: list[torch.Size] = []
    head.classify.register_forward_hook(lambda _module, _inputs, output: seen.append(output.shape))
    levels = [torch.randn(2, grid[0] * grid[1], 16) for _ in range(4)]
    assert head(levels, grid, image_size).shape == (2, 5, *image_size)
    assert seen == [(2, 5, *quarter)]


def test_joining_before_resizing_equals_resizing_each_level() -> None:
    head = Head(16, channels=5).eval()
    levels = [torch.randn(1, 6, 16) for _ in range(4)]
    maps = [
        torch.nn.functional.interpolate(
            layer(tokens).transpose(1, 2).reshape(1, 4, 2, 3), scale_factor=4, mode="bilinear", align_corners=False
        )
        for layer, tokens in zip(head.reduce, levels, strict=True)
    ]
    logits = head.classify(head.act(head.norm(head.fuse(torch.cat(maps, dim=1)))))
    expected = torch.nn.functional.interpolate(logits, size=(32, 48), mode="bilinear", align_corners=False)
    torch.testing.assert_close(head(levels, (2, 3), (32, 48)), expected)


def test_a_width_that_levels_cannot_share_is_refused() -> None:
    with pytest.raises(SakError, match="18"):
        Head(18, channels=5)


@pytest.mark.parametrize(("grid", "image_size"), [((4, 6), (64, 96)), ((3, 3), (42, 42))])
def test_a_light_head_gives_the_same_shapes_for_a_tenth_of_the_arithmetic(
    grid: tuple[int, int], image_size: tuple[int, int]
) -> None:
    counts = []
    for kind in (Head, LightHead):
        head = kind(64, channels=5)
        levels = [torch.randn(2, grid[0] * grid[1], 64) for _ in range(4)]
        with FlopCounterMode(display=False) as counter:
            logits = head(levels, grid, image_size)
        assert logits.shape == (2, 5, *image_size)
        logits.sum().backward()
        assert all(parameter.grad is not None for parameter in head.parameters())
        counts.append(counter.get_total_flops())
    assert counts[1] < counts[0] / 8


def test_heads_are_those_that_a_spec_can_name() -> None:
    assert set(HEADS) == set(spec.HEADS)
    with pytest.raises(SakError, match="18"):
        LightHead(18, channels=5)
