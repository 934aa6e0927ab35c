from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import LoraConfig, StudentConfig
from pipeline.students import Normalise, limit_training, make_student, student_identity, student_spec
from sak.weights import save_weights
from tests.tiny_recipe import NETWORK, STEM

SIZE = (32, 32)


def config_of(**changes: Any) -> StudentConfig:
    return StudentConfig(stem=STEM, overrides=dict(NETWORK), **changes)


def spec_of(config: StudentConfig, widths: dict[str, tuple[int, ...]], tasks: dict[str, int] | None = None) -> Any:
    return student_spec(config, image_size=SIZE, widths=widths, tasks=tasks or {})


SAME, WIDER = {"a": (24,) * 4}, {"a": (24,) * 4, "b": (8, 16, 32, 64)}


def test_normalise_is_the_usual_arithmetic() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pixels = torch.randint(0, 256, (2, 3, 5, 4), dtype=torch.uint8)
    expected = (pixels.double() / 255 - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    torch.testing.assert_close(Normalise(mean=mean, std=std)(pixels).double(), expected, rtol=1e-5, atol=1e-5)
    assert not Normalise(mean=mean, std=std).state_dict(), "constants of the recipe do not belong into weights"


@pytest.mark.parametrize(
    ("asked", "widths", "expected"),
    [
        (None, SAME, False),
        (None, WIDER, True),
        (True, SAME, True),
        (True, {"a": (), "b": ()}, False),  # nothing is aligned to a teacher whose features are not used
        (None, {"a": ()}, False),
    ],
)
def test_aligners_where_widths_differ(asked: bool | None, widths: dict[str, tuple[int, ...]], expected: bool) -> None:
    assert spec_of(config_of(aligners=asked), widths).aligners is expected


def test_widths_of_a_pyramid_are_kept_by_level() -> None:
    assert dict(spec_of(config_of(), WIDER).teacher_widths) == {"a": 24, "b": (8, 16, 32, 64)}
    assert dict(spec_of(config_of(), {"a": ()}).teacher_widths) == {"a": 24}


def test_the_stems_own_width_is_found_without_an_override() -> None:
    spec = student_spec(StudentConfig(stem=STEM), image_size=SIZE, widths={"a": (192,) * 4}, tasks={})
    assert not spec.aligners


def test_a_plain_student_has_no_router() -> None:
    assert spec_of(config_of(paths="none"), SAME, {"sal": 2}).router == "none"
    assert spec_of(config_of(), SAME, {"sal": 2}).router == "mor"


def test_weights_are_a_function_of_the_seed_and_leave_the_global_state_alone() -> None:
    config = config_of()
    spec = spec_of(config, SAME, {"sal": 2})
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    one = make_student(config, spec, seed=7, load_stem=True).state_dict()
    assert torch.equal(torch.rand(3), expected)
    same = make_student(config, spec, seed=7, load_stem=False).state_dict()
    other = make_student(config, spec, seed=8, load_stem=True).state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_the_stem_starts_from_its_checkpoint_only_when_asked(tmp_path: Path) -> None:
    spec = spec_of(config_of(), SAME)
    source = make_student(config_of(), spec, seed=1, load_stem=False)
    path = tmp_path / "stem.safetensors"
    save_weights(path, source.stem.state_dict())
    config = config_of(checkpoint=str(path))
    key = "stem.blocks.0.attn.qkv.weight"
    loaded = make_student(config, spec, seed=2, load_stem=True).state_dict()[key]
    fresh = make_student(config, spec, seed=2, load_stem=False).state_dict()[key]
    assert torch.equal(loaded, source.state_dict()[key])
    assert not torch.equal(fresh, loaded)


def test_identity_follows_the_bytes_of_the_checkpoint(tmp_path: Path) -> None:
    assert student_identity(config_of()) == {"checkpoint_sha256": None}
    path = tmp_path / "stem.safetensors"
    path.write_bytes(b"one")
    before = student_identity(config_of(checkpoint=str(path)))
    path.write_bytes(b"two")
    assert student_identity(config_of(checkpoint=str(path))) != before


def trained(student: Any) -> set[str]:
    """First names of what is trained."""
    return {name.split(".")[0] for name, parameter in student.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("freeze", "stage", "expected"),
    [
        ("none", 1, {"stem", "paths", "norms"}),
        ("stem", 1, {"paths", "norms"}),
        ("distilled", 1, {"stem", "paths", "norms"}),
        ("none", 2, {"stem", "paths", "norms", "routers", "heads"}),
        ("stem", 2, {"paths", "norms", "routers", "heads"}),
        ("distilled", 2, {"routers", "heads"}),
    ],
)
def test_what_is_frozen_in_which_stage(freeze: Any, stage: Any, expected: set[str]) -> None:
    config = config_of(freeze=freeze)
    student = make_student(config, spec_of(config, SAME, {"sal": 2} if stage == 2 else {}), seed=0, load_stem=True)
    limit_training(student, config, stage=stage, seed=0)
    assert trained(student) == expected


def test_low_rank_updates_are_of_stage_1_and_a_function_of_the_seed() -> None:
    config = config_of(lora=LoraConfig(rank=2, layers=("fc1",)))

    def student_of(stage: Any, seed: int = 0) -> Any:
        student = make_student(config, spec_of(config, SAME), seed=0, load_stem=True)
        limit_training(student, config, stage=stage, seed=seed)
        return student

    one, same, other, whole = student_of(1), student_of(1), student_of(1, 1), student_of(2)
    key = "stem.blocks.0.mlp.fc1.down.weight"
    assert {name for name, p in one.stem.named_parameters() if p.requires_grad} == {
        f"blocks.{block}.mlp.fc1.{part}.weight" for block in range(4) for part in ("down", "up")
    }
    assert torch.equal(one.state_dict()[key], same.state_dict()[key])
    assert not torch.equal(one.state_dict()[key], other.state_dict()[key])
    assert key not in whole.state_dict()
    assert all(parameter.requires_grad for parameter in whole.parameters())


def test_checkpointing_is_asked_for() -> None:
    for asked in (False, True):
        config = config_of(checkpointing=asked)
        assert make_student(config, spec_of(config, SAME), seed=0, load_stem=True).checkpointing is asked


def test_what_a_file_gave_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = spec_of(config_of(), SAME)
    path = tmp_path / "stem.safetensors"
    save_weights(path, make_student(config_of(), spec, seed=1, load_stem=False).stem.state_dict())
    make_student(config_of(checkpoint=str(path)), spec, seed=1, load_stem=True)
    assert re.search(
        r"stem\.safetensors: all \d+ tensors matched, from \d+ keys in timm layout\n", capsys.readouterr().err
    )
