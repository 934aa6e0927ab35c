"""The student's description: validation and round trip."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sak.errors import SakError
from sak.spec import NOISES, StudentSpec

SPEC = StudentSpec(stem="vit_tiny_patch16_224", image_size=(64, 96), teacher_widths={"sam": 24})


@given(
    size=st.tuples(st.integers(1, 512), st.integers(1, 512)),
    levels=st.sampled_from([(), (0, 1, 2, 3), (2, 5, 8, 11)]),
    tasks=st.dictionaries(st.sampled_from(["semseg", "edge"]), st.integers(1, 40)),
    noise=st.sampled_from(NOISES),
)
def test_a_spec_survives_json(
    size: tuple[int, int], levels: tuple[int, ...], tasks: dict[str, int], noise: str
) -> None:
    spec = replace(SPEC, image_size=size, levels=levels, tasks=tasks, noise=noise)
    assert StudentSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"paths": "both"}, "adapters, none"),
        ({"router": "top1"}, "mor, none"),
        ({"noise": "token"}, "image, pixel"),
        ({"paths": "none"}, "set router to 'none'"),
        ({"teacher_widths": {"sam": (24, 24)}}, "one width or four"),
        ({"teacher_widths": {}}, "set paths to 'none'"),
        ({"image_size": (0, 4)}, "both positive"),
        ({"down_ratio": 0}, "down_ratio"),
        ({"levels": (1, 2, 3)}, "4 ascending"),
        ({"levels": (3, 2, 1, 0)}, "4 ascending"),
        ({"levels": (1, 1, 2, 3)}, "4 ascending"),
        ({"levels": (-1, 1, 2, 3)}, "4 ascending"),
        ({"tasks": {"edge": 0}}, "edge"),
        ({"teacher_widths": {"a.b": 3}}, r"'a\.b'"),
    ],
)
def test_impossible_values_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SakError, match=message):
        replace(SPEC, **changes)


def test_all_faults_are_listed_at_once() -> None:
    with pytest.raises(SakError, match=r"router.*noise.*down_ratio"):
        replace(SPEC, router="x", noise="y", down_ratio=0)


def test_unknown_and_missing_keys_are_named() -> None:
    with pytest.raises(SakError, match=r"unknown keys \['colour'\], missing keys \['stem'\]"):
        StudentSpec.from_dict({"image_size": [4, 4], "colour": 1})


def test_the_order_of_teachers_survives_writers_that_sort_keys() -> None:
    """It is the order of a router's experts: sorted, every gate would weigh another teacher's path."""
    spec = replace(SPEC, teacher_widths={"zebra": 24, "ant": (24, 24, 12, 12), "moth": 8})
    again = StudentSpec.from_dict(json.loads(json.dumps(spec.to_dict(), sort_keys=True)))
    assert list(again.teacher_widths.items()) == list(spec.teacher_widths.items())
