"""A column that is not the one asked for says in one line what it is instead."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pipeline.mismatch import difference, nearest
from sak.teachers.entry import Weights
from sak.teachers.identity import teacher_identity
from sak.teachers.published import PUBLISHED

SPEC = PUBLISHED["clip_vitb16_openai"].spec("clip", weights=Weights(random=0))
WANTED = teacher_identity(SPEC)


def test_equal_identities_differ_in_nothing() -> None:
    assert difference(WANTED, dict(WANTED)) == ""


def test_another_normalisation_is_named_with_its_numbers() -> None:
    held = teacher_identity(replace(SPEC, normalization="reference", mean=None, std=None))
    told = difference(WANTED, held)
    assert told == (
        "normalization mean 0.485 0.456 0.406 std 0.229 0.224 0.225 (ImageNet, as reference) where the recipe asks for"
        " mean 0.4815 0.4578 0.4082 std 0.2686 0.2613 0.2758 (native)"
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"random": 3}, "weights random 3 where the recipe asks for random 0"),
        ({"levels": (0, 1, 2, 3)}, "levels 0 1 2 3 where the recipe asks for 2 5 8 11"),
        ({"input_size": (224, 224)}, "input_size 224 224 where the recipe asks for none"),
        ({"grid": (7, 7)}, "grid size 7 7 resampling area where the recipe asks for none"),
        ({"alignment": "reference"}, "alignment reference where the recipe asks for exact"),
    ],
)
def test_other_differences_are_named(change: dict[str, Any], words: str) -> None:
    assert difference(WANTED, teacher_identity(replace(SPEC, **change))) == words


def test_the_nearest_is_the_one_told_about() -> None:
    near = teacher_identity(replace(SPEC, random=3))
    far = teacher_identity(replace(SPEC, random=3, levels=(0, 1, 2, 3), resize="squash", input_size=(32, 32)))
    assert nearest(WANTED, {"far": far, "near": near}) == "near"
