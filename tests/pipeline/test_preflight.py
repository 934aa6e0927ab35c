"""What is found to be wrong before any work, and that nothing sound is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import preflight as module
from pipeline.errors import PipelineError, RecipeError
from pipeline.recipes import Recipe
from pipeline.stages.run import STAGES, prepare
from sak.teachers.model import _build
from sak.teachers.spec import TeacherSpec
from tests.conftest import Finished
from tests.tiny_recipe import tiny_recipe


def told(recipe: Recipe, *stages: str) -> list[str]:
    """Faults, a line each."""
    with pytest.raises(RecipeError) as caught:
        prepare(recipe, recipe.runs, stages=stages or STAGES)
    head, *rest = str(caught.value).splitlines()
    if not rest:
        return [head]
    assert head == f"{len(rest)} faults, found before any work:"
    return [line.strip() for line in rest]


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("device=tpu", "device: 'tpu'"),
        ("data.distill.source={name: imagefolder, root: absent}", "data.distill.source: absent: folder not found"),
        ("data.eval.source.name=holiday", "data.eval.source: unknown image source 'holiday'"),
        ("data.finetune.source={name: scenes, split: test, images: 4, size: 32}", "data.finetune.source: scenes: "),
        ("teachers.first={timm: vit_tiny_patch16_224, checkpoint: gone.pth}", "found no file at gone.pth"),
        ("teachers.first={timm: vit_nope, random: 1}", "vit_nope"),
        ("student.stem=vit_nope", "student: stem: timm"),
        ("student.stem=resnet18", "expected a plain vision transformer"),
        ("student.overrides.num_heads=0", "expected overrides of 1 or more, got {'num_heads': 0}"),
        ("student.overrides.num_heads=5", "correct the overrides"),
        ("student.overrides.depth=3", "at least 4 blocks"),
        ("student.overrides.patch_size=12", "expected an image size that the patch size (12, 12) divides"),
        ("student.levels=[0, 1, 2, 9]", "expected blocks below 4"),
        ("student.checkpoint=gone.safetensors", "student.checkpoint: expected a file, found none at gone.safetensors"),
        ("distill.precision=fp16", "distill: precision: fp16 needs a CUDA device"),
        ("student.lora={rank: 400}", "student.lora: lora: expected a rank from 1 to below the sides of a "),
        ("finetune.lora={rank: 400}", "finetune.lora: lora: expected a rank from 1 to below the sides of a "),
        ("finetune.precision=fp16", "finetune: precision: fp16 needs a CUDA device"),
        ("finetune.tasks=[semseg, flow]", "finetune.tasks: scenes has semseg, "),
        ("finetune.task_weights={flow: 2}", "finetune.task_weights: scenes has semseg, "),
        ("distill.batch=23", "distill.batch: data.distill has 22 images, fewer"),
        ("data.eval=null", "eval needs data.eval"),
        ("data.eval.view.size=24", "data.eval.view.size: expected (32, 32)"),
    ],
)
def test_a_fault_is_found_and_named_once(tmp_path: Path, override: str, part: str) -> None:
    (line,) = told(tiny_recipe(tmp_path, [override], only="sak"))
    assert part in line
    assert not (tmp_path / "store").exists()


def test_faults_of_all_runs_come_at_once_with_the_runs_that_have_them(tmp_path: Path) -> None:
    recipe = tiny_recipe(
        tmp_path,
        [
            "runs.sak.set={student.overrides.num_heads: 0}",
            "runs.no-distill.set.student.checkpoint=gone.pth",
            "finetune.tasks=[flow]",
            "data.eval.view.size=24",
        ],
    )
    lines = told(recipe)
    assert len(lines) == 4
    assert lines[0].startswith("sak, no-distill: finetune.tasks: ")  # the third names its own
    assert lines[1].startswith("sak: student: stem")
    assert lines[2].startswith("data.eval.view.size")
    assert lines[3].startswith("no-distill: student.checkpoint")


def test_a_source_that_does_not_open_hides_no_other_fault(tmp_path: Path) -> None:
    recipe = tiny_recipe(
        tmp_path,
        [
            "data.finetune.source={name: nyud, root: absent}",
            "student.stem=vit_nope",
            "runs.single-task.set={distill: null, finetune.alpha: 0.0, student.paths: none}",
        ],
    )
    first, second = told(recipe)
    assert first.startswith("data.finetune.source: absent: folder not found")
    assert "vit_nope" in second


def test_only_what_the_stages_need_is_asked_for(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, ["data.eval=null"], only="sak")
    prepare(recipe, recipe.runs, stages=("distill",))
    recipe = tiny_recipe(tmp_path, ["distill.precision=fp16"], only="sak")
    prepare(recipe, recipe.runs, stages=("extract", "finetune", "eval"))
    recipe = tiny_recipe(tmp_path, ["distill=null", "finetune=null"], only="sak")
    prepare(recipe, recipe.runs, stages=("extract",))
    assert told(recipe, "eval") == ["eval needs a trained student: give the recipe distill, finetune or both"]


def test_a_precision_for_another_machine_is_no_fault_of_what_is_done(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PipelineError("precision: not here")

    monkeypatch.setattr(module, "autocast", refuse)
    prepare(finished.recipe, finished.recipe.runs)
    assert any("precision: not here" in line for line in told(finished.fresh(finished.root / "elsewhere")))


def test_a_sound_recipe_passes_without_a_teacher_an_image_or_a_store(
    tmp_path: Path, no_teacher: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def counted(spec: TeacherSpec) -> torch.nn.Module:
        assert torch.empty(0).is_meta, "a teacher was given memory"
        return _build(spec)

    monkeypatch.setattr("sak.teachers.model._build", counted)
    monkeypatch.setattr("pipeline.images.scenes.render_scene", no_teacher)
    recipe = tiny_recipe(tmp_path)
    prepare(recipe, recipe.runs)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "recipe.yaml"]
