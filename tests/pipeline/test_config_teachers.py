"""Teachers as recipes name them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from pipeline.config_teachers import ExtractConfig, TeacherConfig
from sak.teachers.published import PUBLISHED


def test_a_published_teacher_brings_its_own_preprocessing() -> None:
    spec = TeacherConfig(name="sam_vitb", random=0).spec("sam")
    assert (spec.name, spec.timm, spec.levels) == ("sam", "samvit_base_patch16.sa1b", (2, 5, 8, 11))
    assert (spec.input_size, spec.resize) == ((1024, 1024), "long_side_pad")
    assert spec.mean == (0.485, 0.456, 0.406)
    assert TeacherConfig(name="dinov2_vitb14", checkpoint="w.pth").spec("t").checkpoint == Path("w.pth")
    assert TeacherConfig(name="dinov2_vitb14", pretrained=True).spec("t").input_size is None


@pytest.mark.parametrize(
    ("asked", "size", "resize"),
    [
        ({"name": "sam_vitb", "input_size": "view"}, None, "squash"),
        ({"name": "sam_vitb", "input_size": 512}, (512, 512), "long_side_pad"),
        ({"name": "sam_vitb", "resize": "squash"}, (1024, 1024), "squash"),
        ({"name": "dinov2_vitb14", "input_size": "native"}, (518, 518), "squash"),
        ({"name": "dinov2_vitb14", "input_size": [70, 98]}, (70, 98), "squash"),
        ({"timm": "vit_tiny_patch16_224", "input_size": "view"}, None, "squash"),
    ],
)
def test_what_a_teacher_sees_can_be_chosen(asked: dict[str, Any], size: tuple[int, int] | None, resize: str) -> None:
    spec = TypeAdapter(TeacherConfig).validate_python({"random": 0, **asked}).spec("t")
    assert (spec.input_size, spec.resize) == (size, resize)


def test_levels_normalisation_and_overrides_take_the_place_of_its_own() -> None:
    config = TeacherConfig(
        name="radio_v2.5_vitb16",
        random=0,
        levels=(0, 1, 2, 3),
        normalization="reference",
        overrides={"depth": 4},
        grid=12,
    )
    spec = config.spec("radio")
    assert spec.overrides == {"pos_embed_align_corners": True, "depth": 4}
    assert (spec.levels, spec.grid, spec.normalization, spec.mean) == ((0, 1, 2, 3), (12, 12), "reference", None)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"name": "sam_vitb", "timm": "samvit_base_patch16", "random": 0}, "sam_vitb brings its own timm"),
        ({"name": "sam_vitb", "mean": (0.5,) * 3, "std": (0.5,) * 3, "random": 0}, "brings its own mean, std"),
        ({"name": "sam_vitx", "random": 0}, r"unknown teacher 'sam_vitx'.*sam_vit"),
        ({"name": "sam_vitb"}, "exactly one of checkpoint, pretrained, builtin, random, got none"),
        ({"name": "theia_vitb16", "pretrained": True}, "timm's hub has no weights of this network"),
        ({"timm": "vit_tiny_patch16_224", "random": 0, "input_size": "native"}, "native is for published teachers"),
        ({"builtin": "scenes-boundary", "name": "sam_vitb"}, "scenes-boundary is complete in itself"),
    ],
)
def test_contradictions_about_published_teachers_are_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TypeAdapter(TeacherConfig).validate_python(asked)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_teacher_can_be_in_a_recipe(name: str) -> None:
    assert (
        TeacherConfig(name=name, checkpoint="w.safetensors").spec(name.replace(".", "-")).timm == PUBLISHED[name].timm
    )


def test_arithmetic_is_the_recipes_unless_a_teacher_has_its_own() -> None:
    own = TeacherConfig(name="dinov2_vits14", random=0, precision="fp32", compile=False)
    extract = ExtractConfig(precision="bf16", channels_last=True, compile=True)
    spec = own.under(extract).spec("t")
    assert (spec.precision, spec.channels_last, spec.compiled) == ("fp32", True, False)
    spec = TeacherConfig(builtin="scenes-geometry").under(extract).spec("t")
    assert (spec.precision, spec.channels_last, spec.compiled) == ("bf16", True, True)
    plain = TeacherConfig(builtin="scenes-geometry")
    assert plain.under(ExtractConfig()).spec("t") == plain.spec("t")


def test_a_batch_is_a_number_or_auto() -> None:
    assert (ExtractConfig(batch="auto").batch_rows, ExtractConfig(batch=7).batch_rows) == (32, 7)
    for batch in (0, "some"):
        with pytest.raises(ValueError, match="batch"):
            ExtractConfig(batch=batch)  # type: ignore[arg-type]
