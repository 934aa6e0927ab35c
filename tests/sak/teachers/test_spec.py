"""Teacher specs check themselves, and their identity changes exactly when their maps could."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from sak.errors import TeacherError, UnknownNameError
from sak.teachers.identity import teacher_identity
from sak.teachers.registry import TEACHERS, teacher_spec
from sak.teachers.spec import TeacherSpec
from sak.weights import save_weights

VIT = "vit_tiny_patch16_224"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"random": None}, "exactly one of checkpoint, pretrained, builtin, random, got none"),
        ({"pretrained": True}, "got pretrained and random"),
        ({"levels": (1, 2, 3)}, "4 ascending indices from 0"),
        ({"levels": (1, 2, 3, 3)}, "4 ascending indices from 0"),
        ({"levels": (-1, 2, 3, 4)}, "4 ascending indices from 0"),
        ({"resize": "crop"}, "expected one of squash, long_side_pad, got 'crop'"),
        ({"normalization": "imagenet"}, "expected one of native, reference"),
        ({"alignment": "none"}, "expected one of exact, reference"),
        ({"resize": "long_side_pad"}, "needs a square one"),
        ({"resize": "long_side_pad", "input_size": (64, 96)}, "needs a square one"),
        ({"input_size": (0, 96)}, "both positive"),
        ({"grid": (0, 4)}, r"grid: expected native or \(rows, columns\), both positive, got \(0, 4\)"),
        ({"grid": (4, 4), "alignment": "reference"}, "grid: alignment 'reference' keeps maps as published"),
        ({"mean": (0.5, 0.5, 0.5)}, "expected both or neither"),
        ({"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.0, 0.5)}, "positive std"),
        ({"mean": (0.5,) * 3, "std": (0.5,) * 3, "normalization": "reference"}, "leave them out"),
        ({"overrides": {"checkpoint_path": "x.pth"}}, "checkpoint_path cannot be set here"),
        ({"name": "a.b"}, "letters, digits"),
    ],
)
def test_faults_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(TeacherError, match=message):
        TeacherSpec(**({"name": "t", "timm": VIT, "random": 0} | fields))


def test_all_faults_come_at_once() -> None:
    with pytest.raises(TeacherError, match=r"resize.*weights.*levels"):
        TeacherSpec(name="t", timm=VIT, resize="x", levels=(1,))


BASE = TeacherSpec(name="t", timm=VIT, random=0)


@pytest.mark.parametrize(
    "change",
    [
        {"timm": "vit_small_patch16_224"},
        {"random": 1},
        {"random": None, "pretrained": True},
        {"levels": (0, 1, 2, 3)},
        {"input_size": (64, 64)},
        {"input_size": (64, 64), "resize": "long_side_pad"},
        {"mean": (0.4,) * 3, "std": (0.5,) * 3},
        {"normalization": "reference"},
        {"alignment": "reference"},
        {"overrides": {"img_size": (64, 96)}},
        {"grid": (7, 7)},
    ],
)
def test_identity_tells_different_maps_apart(change: dict[str, Any]) -> None:
    identity = teacher_identity(BASE)
    other = teacher_identity(replace(BASE, **change))
    assert other != identity
    assert json.loads(json.dumps(other)) == other


def test_identity_ignores_what_does_not_matter(tmp_path: Path) -> None:
    assert teacher_identity(replace(BASE, name="other")) == teacher_identity(BASE)
    same_statistics = replace(BASE, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert teacher_identity(same_statistics) == teacher_identity(BASE)
    for place in ("a", "b"):
        save_weights(tmp_path / f"{place}.safetensors", {"x": torch.zeros(3)})
    one, two = (replace(BASE, random=None, checkpoint=tmp_path / f"{place}.safetensors") for place in ("a", "b"))
    assert teacher_identity(one) == teacher_identity(two)


def test_identity_follows_the_bytes_of_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    spec = replace(BASE, random=None, checkpoint=path)
    save_weights(path, {"x": torch.zeros(3)})
    before = teacher_identity(spec)
    save_weights(path, {"x": torch.ones(3)})
    assert teacher_identity(spec) != before


def test_identity_builds_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a network was built")

    monkeypatch.setattr(timm, "create_model", refuse)
    assert teacher_identity(BASE)["weights"] == {"random": 0}
    tagged = replace(BASE, random=None, pretrained=True)
    assert teacher_identity(tagged)["weights"] == {"pretrained": "vit_tiny_patch16_224.augreg_in21k_ft_in1k"}


def test_identity_refuses_what_it_cannot_know(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown timm model 'vit_tinny'.*perhaps .*vit"):
        teacher_identity(replace(BASE, timm="vit_tinny"))
    with pytest.raises(TeacherError, match=r"no file at .*gone.safetensors"):
        teacher_identity(replace(BASE, random=None, checkpoint=tmp_path / "gone.safetensors"))
    with pytest.raises(TeacherError, match=r"built-in teacher weights 'nobody'.*which holds"):
        teacher_identity(replace(BASE, random=None, builtin="nobody"))
    with pytest.raises(TeacherError, match="no pretrained weights"):
        teacher_identity(replace(BASE, random=None, pretrained=True, timm="vit_small_patch16_36x1_224"))


@pytest.mark.parametrize("name", TEACHERS)
def test_builtin_teachers_are_named_as_their_key(name: str) -> None:
    assert teacher_spec(name).name == teacher_spec(name).builtin == name


def test_unknown_builtin_lists_the_choices() -> None:
    with pytest.raises(UnknownNameError, match=r"'scenes'.*scenes-semantics, scenes-geometry, scenes-boundary"):
        teacher_spec("scenes")


def test_identities_of_native_maps_are_what_they_always_were() -> None:
    """A new key would give every stored column another name."""
    native = teacher_identity(BASE)
    assert "grid" not in native
    assert teacher_identity(replace(BASE, grid=(7, 9))) == native | {"grid": {"size": [7, 9], "resampling": "area"}}
