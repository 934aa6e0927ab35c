from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pipeline.errors import NotDoneError, PipelineError
from pipeline.identity import distill_dir, finetune_dir
from pipeline.stages import finetune as module
from pipeline.stages.distill import distill
from pipeline.stages.finetune import finetune
from pipeline.tracking import read_metrics
from sak.weights import load_weights
from tests.conftest import Finished
from tests.tiny_recipe import run_stages, tiny_recipe, tree_digests


def finetuned(finished: Finished, out: Path, *overrides: str, only: str = "sak") -> Path:
    """Stage 2 with overrides after its own stage 1, from the shared store; its folder."""
    recipe = finished.fresh(out, *overrides, only=only)
    study = recipe.runs[0].study
    if study.distill:
        distill(study, recipe.out, label="test")
    return finetune(study, recipe.out, label="test").path


class _Stop(Exception):
    pass


@pytest.mark.parametrize("noise", ["image", "pixel"])
def test_cached_and_online_targets_give_the_same_losses(finished: Finished, tmp_path: Path, noise: str) -> None:
    options = ["finetune.steps=20", "distill.steps=2", f"student.noise={noise}"]
    cached = read_metrics(finetuned(finished, tmp_path / "c", *options) / "metrics.jsonl")
    online = read_metrics(finetuned(finished, tmp_path / "o", *options, "finetune.targets=online") / "metrics.jsonl")
    assert len(cached) == len(online) == 20
    for one, other in zip(cached, online, strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-6)
    tasks = {"semseg", "human_parts", "sal", "normals", "edge", "depth"}
    assert tasks | {"step", "total", "distill", "lr", "grad_norm"} == {name for name in cached[0] if "/" not in name}


@pytest.mark.parametrize("stopped", [[3], [4], [5], [5, 1]])
def test_stopped_and_resumed_equals_uninterrupted(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: list[int]
) -> None:
    """Five steps of 3 are more than one cycle of 12 rows; the routers' noise comes from the saved random state."""
    study = finished.recipe.runs[0].study
    whole = finetune_dir(study, finished.recipe.out).path
    real = module.task_losses
    for call in stopped:
        count = 0

        def counted(*arguments: Any, call: int = call, **keywords: Any) -> Any:
            nonlocal count
            count += 1
            if count == call:
                raise _Stop
            return real(*arguments, **keywords)

        with monkeypatch.context() as patch:
            patch.setattr(module, "task_losses", counted)
            with pytest.raises(_Stop):
                finetuned(finished, tmp_path / "cut")
    path = finetuned(finished, tmp_path / "cut")
    assert path.name == whole.name
    for name in ("metrics.jsonl", "student.safetensors"):
        assert (path / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_finished_stage_does_nothing(
    finished: Finished, no_teacher: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "train", no_teacher)
    monkeypatch.setattr(module, "make_student", no_teacher)
    before = tree_digests(finished.recipe.out)
    run_stages(finished.recipe, ["finetune"])
    after = tree_digests(finished.recipe.out)
    assert {name: after[name] for name in after if name != "recipe.yaml"} == {
        name: before[name] for name in before if name != "recipe.yaml"
    }


def test_cached_training_builds_no_teacher(finished: Finished, tmp_path: Path, no_teacher: Callable[..., Any]) -> None:
    path = finetuned(finished, tmp_path, "finetune.steps=1", "distill.steps=1")
    assert "distill" in read_metrics(path / "metrics.jsonl")[0]


def test_without_alpha_no_feature_is_read(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = finished.fresh(tmp_path, "finetune.alpha=0", "distill.steps=1", "finetune.steps=1")
    study = recipe.runs[0].study
    distill(study, recipe.out, label="test")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("targets were asked for")

    monkeypatch.setattr(module, "target_source", refuse)
    path = finetune(study, recipe.out, label="test").path
    assert "distill" not in read_metrics(path / "metrics.jsonl")[0]


def test_total_is_tasks_plus_alpha_times_distillation(finished: Finished, tmp_path: Path) -> None:
    def first(alpha: float) -> dict[str, float]:
        options = [f"finetune.alpha={alpha}", "finetune.steps=1", "distill.steps=1"]
        return read_metrics(finetuned(finished, tmp_path, *options) / "metrics.jsonl")[0]

    half, double = first(0.5), first(2.0)
    assert half["distill"] == pytest.approx(double["distill"], rel=1e-6)
    assert double["total"] - half["total"] == pytest.approx(1.5 * half["distill"], rel=1e-4)


def test_stage_2_starts_from_stage_1(finished: Finished, tmp_path: Path) -> None:
    """A rate of next to nothing leaves stage 1's weights where they were."""
    options = ["finetune.steps=1", "finetune.lr=1e-12", "finetune.weight_decay=0", "finetune.alpha=0"]
    path = finetuned(finished, tmp_path, *options)
    recipe = finished.fresh(tmp_path, *options)
    before = load_weights(distill_dir(recipe.runs[0].study, tmp_path).path / "student.safetensors")
    after = load_weights(path / "student.safetensors")
    assert before.keys() < after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=1e-7)
    assert {name.split(".")[0] for name in after.keys() - before.keys()} == {"heads", "routers"}


@pytest.mark.parametrize(
    "overrides",
    [
        ["student.paths=none"],
        ["student.paths=none", "finetune.alpha=0"],
        ["student.aligners=true"],
        ["student.aligners=true", "finetune.alpha=0"],
        ["student.router=none"],
        ["student.noisy_gating=false"],
        ["student.teachers=[second]"],
        ["finetune.targets=online", "distill.targets=online"],
        ["finetune.schedule=cosine", "finetune.warmup=0.5"],
        ["finetune.precision=bf16", "distill.precision=bf16"],
        ["data.finetune.view.size=48"],
    ],
    ids=" ".join,
)
def test_every_kind_of_student_trains_through_both_stages(
    finished: Finished, tmp_path: Path, overrides: list[str]
) -> None:
    if "data.finetune.view.size=48" in overrides:
        recipe = tiny_recipe(tmp_path, [*overrides, "finetune.alpha=0", "data.eval=null"], only="sak")
        run_stages(recipe, ["extract", "distill", "finetune"])
        (path,) = tmp_path.glob("out/finetune-*")
    else:
        path = finetuned(finished, tmp_path, "distill.steps=2", "finetune.steps=2", *overrides)
    state = load_weights(path / "student.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in state.values())
    parts = {name.split(".")[0] for name in state}
    assert ("paths" in parts) == ("student.paths=none" not in overrides)
    aligned = {"student.paths=none", "student.aligners=true"} & {*overrides} and "finetune.alpha=0" not in overrides
    assert ("aligners" in parts) == bool(aligned)


def test_the_stem_learns_at_its_own_rate(finished: Finished, tmp_path: Path) -> None:
    options = ["finetune.steps=1", "distill.steps=1", "finetune.stem_lr_scale=1e-9", "finetune.weight_decay=0"]
    path = finetuned(finished, tmp_path, *options)
    recipe = finished.fresh(tmp_path, *options)
    before = load_weights(distill_dir(recipe.runs[0].study, tmp_path).path / "student.safetensors")
    after = load_weights(path / "student.safetensors")
    assert all(torch.allclose(after[name], tensor, atol=1e-9) for name, tensor in before.items())


def test_tasks_are_a_choice_of_the_data_sets(finished: Finished, tmp_path: Path) -> None:
    options = ["finetune.steps=1", "finetune.alpha=0", "distill=null"]
    path = finetuned(finished, tmp_path, *options, "finetune.tasks=[depth, semseg]")
    assert {"semseg", "depth"} < read_metrics(path / "metrics.jsonl")[0].keys()
    assert "edge" not in read_metrics(path / "metrics.jsonl")[0]
    with pytest.raises(PipelineError, match=r"finetune\.tasks: scenes has .*, not \['poses'\]"):
        finetuned(finished, tmp_path, *options, "finetune.tasks=[depth, poses]")


def test_without_stage_1_the_message_says_so(finished: Finished, tmp_path: Path) -> None:
    recipe = finished.fresh(tmp_path)
    with pytest.raises(NotDoneError, match=r"starts from stage 1, which is not done \(.*\)$"):
        finetune(recipe.runs[0].study, recipe.out, label="test")


def test_images_without_labels_cannot_train_tasks(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(4):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(tmp_path / f"photos/{number}.png")
    source = f"data.finetune.source={{name: imagefolder, root: {tmp_path}/photos}}"
    recipe = tiny_recipe(tmp_path, [source, "distill=null", "finetune.alpha=0", "data.eval=null"], only="sak")
    run_stages(recipe, ["extract"])
    with pytest.raises(PipelineError, match=r"has no labels; give data\.finetune a labelled source"):
        run_stages(recipe, ["finetune"])


def test_the_cosine_schedule_keeps_to_its_rates(finished: Finished, tmp_path: Path) -> None:
    """A peak below the paper's final rate of stage 1 is still a peak."""
    alone = ["distill=null", "finetune.alpha=0", "finetune.steps=5", "finetune.schedule=cosine", "finetune.lr=4e-6"]
    lines = read_metrics(finetuned(finished, tmp_path / "a", *alone) / "metrics.jsonl")
    assert [line["lr"] for line in lines] == sorted((line["lr"] for line in lines), reverse=True)
    assert lines[0]["lr"] == 4e-6
    rates = ["finetune.warmup=0.4", "finetune.start_lr=1e-6", "finetune.end_lr=2e-6"]
    lines = read_metrics(finetuned(finished, tmp_path / "b", *alone, *rates) / "metrics.jsonl")
    assert [line["lr"] for line in lines] == pytest.approx([1e-6, 2.5e-6, 4e-6, 3.5e-6, 2.5e-6])
