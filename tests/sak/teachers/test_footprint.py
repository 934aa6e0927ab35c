"""Costs that are counted without memory."""

from __future__ import annotations

import torch

from sak.live_bytes import LiveBytes
from sak.teachers.footprint import footprint
from sak.teachers.spec import TeacherSpec

VIT = TeacherSpec(name="t", timm="vit_tiny_patch16_224", random=0, overrides={"depth": 4, "img_size": 64})


def test_live_bytes_are_those_of_tensors_that_are_held() -> None:
    with torch.device("meta"), torch.inference_mode(), LiveBytes() as live:
        first = torch.empty(100)
        second = first + 1
        second.view(10, 10).add_(1)  # the same memory
        assert live.most == 800
        del first
        torch.empty(50, dtype=torch.uint8)
        assert live.most == 800, "the first is gone"
        torch.empty(300)
    assert live.most == 400 + 1200


def test_activations_hold_at_least_the_maps_and_grow_with_the_view() -> None:
    small = footprint(VIT, view=(64, 64))
    assert small.activations >= 4 * small.values
    assert small.activations < 100 * 4 * small.values
    large = footprint(VIT, view=(128, 128))
    assert large.activations > 3 * small.activations
    assert large.parameters == small.parameters
