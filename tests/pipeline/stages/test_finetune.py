from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pipeline import loader
from pipeline.errors import NotDoneError, PipelineError
from pipeline.identity import distill_dir, finetune_dir
from pipeline.stages import finetune as module
from pipeline.stages.distill import distill
from pipeline.stages.finetune import finetune
from pipeline.tensors import to_tensors
from pipeline.tracking import read_metrics
from sak.weights import load_weights
from tests.conftest import Finished
from tests.pipeline.stages import test_distill
from tests.pipeline.stages.test_distill import stop_at
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
        ["finetune.weighting=gradnorm", "student.checkpointing=true", "finetune.precision=bf16"],
        ["finetune.weighting=gradnorm", "student.freeze=stem", "finetune.ema=0.9"],
        ["finetune.crops=fresh", "finetune.targets=online"],
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


ALONE = ("distill=null", "finetune.alpha=0")
GRADNORM = "finetune.weighting=gradnorm"


def lines_of(path: Path) -> list[dict[str, float]]:
    return read_metrics(path / "metrics.jsonl")


@pytest.mark.parametrize(
    "options",
    [
        (GRADNORM, "finetune.lora={rank: 2}", "student.head=light"),
        ("finetune.weighting=uncertainty", "finetune.crops=fresh"),
    ],
    ids=" ".join,
)
def test_all_that_is_learnt_resumes(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    """Weights of tasks and their Adam, low-rank updates, and views of the second epoch."""
    options = (*ALONE, *options)
    whole = finetuned(finished, tmp_path / "whole", *options)
    with monkeypatch.context() as patch:
        stop_at(patch, module, "task_losses", 5)
        with pytest.raises(test_distill._Stop):
            finetuned(finished, tmp_path / "cut", *options)
    cut = finetuned(finished, tmp_path / "cut", *options)
    for name in ("metrics.jsonl", "student.safetensors"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name
    weights = [{key: value for key, value in line.items() if key.startswith("weight/")} for line in lines_of(cut)]
    assert set(weights[0].values()) == {1.0}
    assert len({*weights[4].values()}) > 1


def test_fresh_views_are_those_that_a_store_would_hold(finished: Finished, tmp_path: Path) -> None:
    """A view for each of the two epochs, labels included; nothing is stored of them."""
    view = "data.finetune.view={kind: multitask, size: 32, photometric: true}"
    stored = tiny_recipe(tmp_path, [*ALONE, view, "data.finetune.views=2", "data.eval=null"], only="sak")
    run_stages(stored, ["extract", "finetune"])
    fresh = tiny_recipe(
        tmp_path, [*ALONE, view, "finetune.crops=fresh", f"store={tmp_path}/none", "data.eval=null"], only="sak"
    )
    path = finetune(fresh.runs[0].study, fresh.out, label="test").path
    (held,) = (found for found in fresh.out.glob("finetune-*") if found != path)
    assert (path / "metrics.jsonl").read_bytes() == (held / "metrics.jsonl").read_bytes()
    assert (path / "student.safetensors").read_bytes() == (held / "student.safetensors").read_bytes()
    assert not (tmp_path / "none").exists()


def test_low_rank_updates_change_the_named_layers_alone(finished: Finished, tmp_path: Path) -> None:
    options = ["distill.steps=1", "finetune.steps=2", "finetune.alpha=0"]
    whole = finetuned(finished, tmp_path, *options, "finetune.lora={rank: 2}")
    (first,) = tmp_path.glob("distill-*")
    before, after = load_weights(first / "student.safetensors"), load_weights(whole / "student.safetensors")
    moved = {name for name, value in before.items() if not torch.equal(after[name], value)}
    layers = {name for name in moved if name.startswith("stem.")}
    assert layers == {f"stem.blocks.{block}.attn.{layer}.weight" for block in range(4) for layer in ("qkv", "proj")}
    assert any(name.startswith("paths.") for name in moved)


def test_parts_learn_at_rates_of_their_own(finished: Finished, tmp_path: Path) -> None:
    scales = "finetune.lr_scales={stem: 1e-9, routers: 1e-9}"
    options = ["distill.steps=1", "finetune.steps=1", "finetune.alpha=0", "finetune.weight_decay=0"]
    slow, usual = (
        load_weights(finetuned(finished, tmp_path, *options, *more) / "student.safetensors") for more in ([scales], [])
    )
    (first,) = tmp_path.glob("distill-*")
    before = load_weights(first / "student.safetensors")
    moved = {name.split(".")[0] for name, value in before.items() if not torch.allclose(slow[name], value, atol=1e-8)}
    assert moved == {"paths", "norms"}
    other = {name.split(".")[0] for name, value in usual.items() if not torch.equal(slow[name], value)}
    assert other == {"stem", "routers"}, "heads and paths take the same step"


def test_weights_of_tasks_can_be_given(finished: Finished, tmp_path: Path) -> None:
    options = [*ALONE, "finetune.steps=1", "finetune.tasks=[sal, depth]"]
    usual = lines_of(finetuned(finished, tmp_path / "a", *options))[0]
    given = lines_of(finetuned(finished, tmp_path / "b", *options, "finetune.task_weights={sal: 1}"))[0]
    assert given["sal"] == pytest.approx(usual["sal"] / 5)
    assert given["total"] == pytest.approx(given["sal"] + usual["depth"])
    with pytest.raises(PipelineError, match=r"finetune\.task_weights: scenes has .*, not \['poses'\]"):
        finetuned(finished, tmp_path / "c", *options, "finetune.task_weights={poses: 1}")


@pytest.mark.parametrize("weighting", ["fixed", "uncertainty", "gradnorm"])
def test_labels_without_a_single_pixel_train_to_finite_weights(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weighting: str
) -> None:
    """Some steps without any label, some without people; images that cannot be learnt from stop nothing."""

    def emptied(samples: Any) -> Any:
        pixels, labels = to_tensors(samples)
        nothing = {"normals": 0.0}
        empty = {task: torch.full_like(label, nothing.get(task, 255.0)) for task, label in labels.items()}
        if len(steps) % 2:
            empty = labels | {"human_parts": empty["human_parts"]}
        steps.append(samples)
        return pixels, empty

    steps: list[Any] = []
    monkeypatch.setattr(loader, "to_tensors", emptied)
    path = finetuned(finished, tmp_path, *ALONE, f"finetune.weighting={weighting}", "finetune.steps=4")
    lines = lines_of(path)
    assert [line["semseg"] > 0 for line in lines] == [False, True] * 2
    assert {line["human_parts"] for line in lines} == {0.0}
    assert all(torch.isfinite(tensor).all() for tensor in load_weights(path / "student.safetensors").values())


def test_what_is_not_as_published_is_said(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*ALONE, "finetune.steps=1", "student.head=light", "finetune.lora={rank: 2}", "student.paths=none"]
    more = ["finetune.crops=fresh", "finetune.weighting=uncertainty", "finetune.lr_scales={heads: 10}"]
    finetuned(finished, tmp_path, *options, *more, "finetune.task_weights={sal: 2}")
    words = " ".join(capsys.readouterr().err.split())
    assert (
        "alpha 0; fresh views; light heads; uncertainty weights; weight of sal 2; rates of heads x 10; LoRA of rank 2"
        in words
    )


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
