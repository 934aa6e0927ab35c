"""Parity with the published student, and refusal of checkpoints that do not fit."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from sak.errors import CheckpointError, SakError, UnknownNameError
from sak.reference import fit_reference, reference_state, student_from_reference
from sak.student.model import Student, StudentOutput
from tests.golden_fill import fill_state, golden_images

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
SHARED = Path(__file__).resolve().parents[3] / "shared" / "golden" / "sak_reference_student.npz"
KEYS: dict[str, dict[str, list[int]]] = json.loads((GOLDEN / "sak_reference_student_keys.json").read_text())
EVERY = 7
STEM = "vit_small_patch16_224"
SAME = {"dinov2": 384, "clip": 384, "sam": 384}
PASCAL = ("semseg", "human_parts", "normals", "edge", "sal")
NYUD = ("semseg", "normals", "edge", "depth")


class Case(NamedTuple):
    """One golden case: its input and the arguments that describe its student."""

    seed: int
    image_size: tuple[int, int]
    arguments: dict[str, Any]


CASES = {
    "s1_small": Case(0, (64, 96), {"teacher_widths": SAME}),
    "s1_aligner": Case(1, (64, 64), {"teacher_widths": {"dinov2": 768, "clip": 512, "sam": 768}, "aligners": True}),
    "s2_pascal": Case(2, (64, 96), {"teacher_widths": SAME, "tasks": PASCAL, "dataset": "pascalcontext"}),
    "s2_nyud_noiseless": Case(
        3, (64, 64), {"teacher_widths": SAME, "tasks": NYUD, "dataset": "nyud", "noisy_gating": False}
    ),
    "s2_nyud_norouter": Case(
        4,
        (64, 64),
        {"teacher_widths": {"dinov2": 384, "clip": 384}, "tasks": NYUD, "dataset": "nyud", "router": "none"},
    ),
}


def build(case: str, state: dict[str, Any]) -> Student:
    return student_from_reference(state, stem=STEM, image_size=CASES[case].image_size, **CASES[case].arguments)


@cache
def outputs(case: str) -> StudentOutput:
    student = build(case, dict(fill_state(KEYS[case])))
    with torch.no_grad():
        output: StudentOutput = student(golden_images(CASES[case].seed, *CASES[case].image_size))
    return output


def produced(case: str, key: str) -> np.ndarray:
    """The array that a golden key ``case/out/task`` or ``case/aligned/teacher/level`` names."""
    output = outputs(case)
    kind, name, *level = key.split("/")[1:]
    return (output.tasks[name] if kind == "out" else output.aligned[name][int(level[0])]).numpy()


@pytest.mark.parametrize("case", CASES)
def test_student_gives_what_the_published_one_gives(case: str) -> None:
    with np.load(GOLDEN / "sak_student_every7th.npz") as golden:
        keys = [key for key in golden.files if key.startswith(f"{case}/")]
        assert keys
        for key in keys:
            np.testing.assert_allclose(
                produced(case, key).reshape(-1)[::EVERY], golden[key], rtol=0, atol=2e-5, err_msg=key
            )


@pytest.mark.skipif(not SHARED.exists(), reason="the complete golden arrays are not beside this checkout")
@pytest.mark.parametrize("case", CASES)
def test_every_value_agrees(case: str) -> None:
    with np.load(SHARED) as golden:
        for key in (key for key in golden.files if key.startswith(f"{case}/")):
            assert produced(case, key).shape == golden[key].shape
            np.testing.assert_allclose(produced(case, key), golden[key], rtol=0, atol=2e-5, err_msg=key)


def test_model_comes_in_eval_mode_with_gates_that_sum_to_one() -> None:
    output = outputs("s2_pascal")
    for weights in (weights_BE for levels in output.gates.values() for weights_BE in levels):
        assert weights.shape == (2, 4)
        torch.testing.assert_close(weights.sum(dim=1), torch.ones(2))
    assert set(output.gates) == set(PASCAL)


@pytest.mark.parametrize("wrap", ["bare", "model", "module", "both"])
def test_training_checkpoints_and_ddp_prefixes_are_unwrapped(wrap: str) -> None:
    state: dict[str, Any] = dict(fill_state(KEYS["s1_small"]))
    if wrap in ("module", "both"):
        state = {f"module.{name}": tensor for name, tensor in state.items()}
    if wrap in ("model", "both"):
        state = {"model": state, "epoch": 29, "optimizer": {"state": {}}}
    student = build("s1_small", state)
    assert not student.training
    torch.testing.assert_close(
        student.state_dict()["paths.sam.12.scale"], fill_state(KEYS["s1_small"])["tsap.sam.12.scale"]
    )


def test_wrong_missing_and_extra_keys_are_listed_together() -> None:
    state: dict[str, Any] = dict(fill_state(KEYS["s1_small"]))
    del state["tsap.clip.3.scale"]
    state["out_norms.4_clip.weight"] = torch.zeros(384)
    state["vit.cls_token"] = torch.zeros(1, 1, 192)
    with pytest.raises(CheckpointError) as caught:
        build("s1_small", state)
    for fault in (
        "1 missing: tsap.clip.3.scale",
        "1 unexpected: out_norms.4_clip.weight",
        "vit.cls_token",
        "(1, 1, 384)",
        "(1, 1, 192)",
    ):
        assert fault in str(caught.value)


def test_another_image_size_is_refused() -> None:
    with pytest.raises(CheckpointError, match="pos_embed"):
        student_from_reference(dict(fill_state(KEYS["s1_small"])), stem=STEM, image_size=64, teacher_widths=SAME)


def test_stage_2_keys_do_not_load_into_a_stage_1_student() -> None:
    with pytest.raises(CheckpointError, match=r"unexpected: backbone\.mor\.2_semseg"):
        build("s1_small", dict(fill_state(KEYS["s2_pascal"])))


def test_a_distilled_only_stage_2_checkpoint_loads_without_tasks() -> None:
    state = {f"backbone.{name}": tensor for name, tensor in fill_state(KEYS["s1_small"]).items()}
    assert build("s1_small", dict(state)).spec.tasks == {}


def test_tasks_need_a_data_set_that_has_them() -> None:
    with pytest.raises(SakError, match="dataset="):
        student_from_reference({}, stem=STEM, image_size=64, teacher_widths=SAME, tasks=NYUD)
    with pytest.raises(UnknownNameError, match="depth"):
        student_from_reference({}, stem=STEM, image_size=64, teacher_widths=SAME, tasks=NYUD, dataset="pascalcontext")


def test_values_that_are_no_tensors_are_named() -> None:
    with pytest.raises(CheckpointError, match=r"epoch \(int\)"):
        build("s1_small", {"epoch": 3})


def test_a_published_checkpoint_comes_back_under_its_own_names() -> None:
    case = "s2_nyud_noiseless"
    state = fill_state(KEYS[case])
    student = build(case, dict(state))
    back = reference_state(student)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())
    fitted = fit_reference(state, student.spec, where="here").state
    assert fitted.keys() == student.state_dict().keys()
    assert all(torch.equal(fitted[name], tensor) for name, tensor in student.state_dict().items())
