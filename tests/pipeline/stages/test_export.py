from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from pipeline.errors import NotDoneError, PipelineError
from pipeline.identity import finetune_dir
from pipeline.stages.export import DTYPES, export
from pipeline.trained import trained_student
from sak.weights import load_metadata, load_strict, load_weights
from tests.conftest import Finished
from tests.tiny_recipe import NETWORK, STEM


def exported(finished: Finished, path: Path, **choices: str) -> int:
    options: dict[str, Any] = {"what": "student", "dtype": "fp32"} | choices
    return export(finished.recipe.runs[0].study, finished.recipe.out, path, **options)


def test_a_student_comes_back_whole(finished: Finished, tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    assert exported(finished, path) == path.stat().st_size
    stage = finetune_dir(finished.recipe.runs[0].study, finished.recipe.out)
    student, _ = trained_student(stage, device=torch.device("cpu"))
    for name, tensor in load_weights(path).items():
        assert torch.equal(tensor, student.state_dict()[name])
    assert load_metadata(path)["what"] == "student"


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_stem_is_a_timm_model(finished: Finished, tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "stem.safetensors"
    exported(finished, path, what="stem", dtype=dtype)
    state = load_weights(path)
    assert {tensor.dtype for tensor in state.values()} == {DTYPES[dtype]}
    model = timm.create_model(STEM, num_classes=0, img_size=32, **NETWORK)
    assert load_strict(model, state, where=str(path)).fits


@pytest.mark.parametrize(
    ("choice", "match"), [({"dtype": "fp8"}, "fp32, fp16, bf16"), ({"what": "head"}, "student or stem")]
)
def test_a_choice_that_is_none(finished: Finished, tmp_path: Path, choice: dict[str, str], match: str) -> None:
    with pytest.raises(PipelineError, match=match):
        exported(finished, tmp_path / "x.safetensors", **choice)
    assert not (tmp_path / "x.safetensors").exists()


def test_an_unfinished_run_names_its_stage(finished: Finished, tmp_path: Path) -> None:
    study = finished.fresh(tmp_path).runs[0].study
    with pytest.raises(NotDoneError, match=r"finetune-\w+ is not done$"):
        export(study, tmp_path, tmp_path / "x.safetensors", what="student", dtype="fp32")
