from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sak.errors import CheckpointError
from sak.spec import StudentSpec
from sak.student.file import Origin, read_header, save_student

SPEC = StudentSpec(stem="vit_tiny_patch16_224", image_size=(32, 32), teacher_widths={"b": 4, "a": 8})
ORIGIN = Origin("nyud", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "a test")


def test_a_header_says_what_was_saved(tmp_path: Path) -> None:
    save_student(tmp_path / "s.safetensors", {"a": torch.zeros(1)}, spec=SPEC, origin=ORIGIN)
    spec, origin = read_header(tmp_path / "s.safetensors")
    assert (spec, origin) == (SPEC, ORIGIN)
    assert [*spec.teacher_widths] == ["b", "a"]


def about(**changes: object) -> str:
    plain = SPEC.to_dict() | changes
    return json.dumps({"spec": json.dumps(plain), "origin": json.dumps(ORIGIN._asdict())})


@pytest.mark.parametrize(
    "text",
    [
        *("no json", "[1]", '"text"', "[" * 100_000),
        *(about(tasks=None), about(image_size=[float("inf"), 3]), about(teacher_widths=[["a"]]), about(stem=None)),
        json.dumps({"spec": "[" * 100_000, "origin": "{}"}),
        json.dumps({"spec": json.dumps(SPEC.to_dict()), "origin": '{"mean": [1]}'}),
    ],
)
def test_a_header_that_means_nothing_is_told_of_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "s.safetensors"
    save_file({"a": torch.zeros(1)}, path, metadata={"sak": text})
    with pytest.raises(CheckpointError, match=r"cannot be read .*again") as caught:
        read_header(path)
    assert "\n" not in str(caught.value)
