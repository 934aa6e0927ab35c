from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sak.errors import CheckpointError, SakError
from sak.reference import fit_reference
from sak.reference_spec import Known, recognise
from tests.sak.test_reference import CASES, KEYS, STEM

BASE, SMALL = "vit_base_patch16_384", "vit_small_patch16_384"
STAGE1, STAGE2 = KEYS["s1_small"], KEYS["s2_pascal"]


def tensors(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """Tensors that have names and shapes alone."""
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def both(shapes: dict[str, list[int]]) -> None:
    """What importing does, but for reading and writing."""
    spec, _ = recognise(tensors(shapes), known=Known(image_size=(64, 96)), where="here")
    fit_reference(tensors(shapes), spec, where="here")


@pytest.mark.parametrize("case", CASES)
def test_names_and_shapes_tell_what_the_configuration_said(case: str) -> None:
    size, wanted = CASES[case].image_size, CASES[case].arguments
    spec, dataset = recognise(tensors(KEYS[case]), known=Known(image_size=size))
    assert dataset == wanted.get("dataset", "")
    assert (spec.stem, spec.image_size, spec.down_ratio) == (SMALL, size, 4)
    assert list(spec.teacher_widths.items()) == list(wanted["teacher_widths"].items())
    assert [*spec.tasks] == [*wanted.get("tasks", ())]
    assert spec.aligners == wanted.get("aligners", False)
    assert spec.noisy_gating == wanted.get("noisy_gating", True)
    assert spec.router == ("mor" if spec.tasks and wanted.get("router", "mor") == "mor" else "none")
    assert fit_reference(tensors(KEYS[case]), spec, where="here").report.fits


def test_a_square_needs_no_size_and_a_published_oblong_none_either() -> None:
    assert recognise(tensors(KEYS["s1_aligner"]), known=Known()).spec.image_size == (64, 64)
    shapes = KEYS["s2_nyud_noiseless"] | {"backbone.vit.pos_embed": [1, 1 + 28 * 36, 384]}
    assert recognise(tensors(shapes), known=Known()).spec.image_size == (448, 576)
    with pytest.raises(CheckpointError, match="its 24 tokens make no square; tell it in pixels, as in --size"):
        recognise(tensors(STAGE1), known=Known())


def test_pyramid_teachers_have_a_width_for_each_level() -> None:
    shapes = dict(KEYS["s1_aligner"])
    for level, width in zip((2, 5, 8, 11), (96, 192, 384, 768), strict=True):
        shapes |= {f"ts_aligners.{level}_sam.weight": [width, 384], f"ts_aligners.{level}_sam.bias": [width]}
    spec, _ = recognise(tensors(shapes), known=Known())
    assert spec.teacher_widths["sam"] == (96, 192, 384, 768)
    assert fit_reference(tensors(shapes), spec, where="here").report.fits


def test_the_order_of_teachers_is_the_files_or_the_users() -> None:
    known = Known(image_size=(64, 96))
    sorted_names = dict(sorted(STAGE2.items()))
    with pytest.raises(CheckpointError, match=r"keeps none; tell it, as in --teachers clip,dinov2,sam"):
        recognise(tensors(sorted_names), known=known, ordered=False)
    told = Known(image_size=(64, 96), teachers=("sam", "clip", "dinov2"))
    spec, _ = recognise(tensors(sorted_names), known=told, ordered=False)
    assert [*spec.teacher_widths] == ["sam", "clip", "dinov2"]
    with pytest.raises(CheckpointError, match="teachers dinov2, clip, sam in their order, was told dino, clip"):
        recognise(tensors(STAGE2), known=Known(image_size=(64, 96), teachers=("dino", "clip")))
    # Without routers no order means anything.
    assert recognise(tensors(dict(sorted(STAGE1.items()))), known=known, ordered=False)


@pytest.mark.parametrize(
    ("change", "known", "match"),
    [
        ({"backbone.vit.pos_embed": None}, {}, "without backbone.vit.pos_embed; for a stem alone"),
        ({"heads.semseg.last_conv.weight": [19, 384, 1, 1]}, {}, r"got semseg \(19\).*no data set here has these"),
        ({}, {"dataset": "nyud"}, "of nyud, got semseg .* they fit pascalcontext"),
        ({}, {"dataset": "kitti"}, "unknown data set 'kitti'"),
        ({"backbone.vit.patch_embed.proj.weight": [384, 3, 14, 14]}, {}, "12 blocks of width 384 on patches of 14"),
    ],
)
def test_what_is_not_there_or_does_not_fit_is_told(change: dict[str, Any], known: dict[str, Any], match: str) -> None:
    shapes = {name: shape for name, shape in (STAGE2 | change).items() if shape is not None}
    with pytest.raises(SakError, match=match):
        recognise(tensors(shapes), known=Known(**({"image_size": (64, 96)} | known)))


def test_tasks_of_several_data_sets_need_its_name() -> None:
    kept = {name: shape for name, shape in STAGE2.items() if not name.startswith("heads.") or ".normals." in name}
    shapes = {name: shape for name, shape in kept.items() if ".mor." not in name or "_normals." in name}
    with pytest.raises(CheckpointError, match=r"normals \(3\) fit pascalcontext and nyud and scenes; tell which"):
        recognise(tensors(shapes), known=Known(image_size=(64, 96)))
    told = recognise(tensors(shapes), known=Known(image_size=(64, 96), dataset="nyud"))
    assert (told.dataset, [*told.spec.tasks]) == ("nyud", ["normals"])


def test_a_stem_that_the_user_names_must_fit() -> None:
    with pytest.raises(CheckpointError, match=f"expected a stem of width 384, got {BASE}"):
        recognise(tensors(STAGE1), known=Known(image_size=(64, 96), stem=BASE))
    assert recognise(tensors(STAGE1), known=Known(image_size=(64, 96), stem=STEM)).spec.stem == STEM


@settings(max_examples=12)
@given(name=st.sampled_from(sorted(STAGE2)), shape=st.lists(st.integers(0, 5), max_size=4), gone=st.booleans())
def test_a_damaged_checkpoint_is_one_line_whatever_is_damaged(name: str, shape: list[int], gone: bool) -> None:
    shapes = {**STAGE2, name: shape}
    if gone:
        del shapes[name]
    if shapes == STAGE2:
        return
    with pytest.raises(SakError) as caught:
        both(shapes)
    assert "\n" not in str(caught.value)


def test_stage_1_has_no_data_set() -> None:
    with pytest.raises(CheckpointError, match="of stage 1 and has no tasks, got nyud"):
        recognise(tensors(STAGE1), known=Known(image_size=(64, 96), dataset="nyud"))
