from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import feature_losses, trainer
from pipeline.errors import NotDoneError
from pipeline.identity import distill_dir
from pipeline.recipes import recipe_from_mapping
from pipeline.sampling import TeacherDraw
from pipeline.stagedir import read_json
from pipeline.stages import distill as module
from pipeline.stages.distill import distill
from pipeline.stages.run import run_stage
from pipeline.students import make_student
from pipeline.tracking import read_metrics
from sak.spec import StudentSpec
from sak.weights import load_weights
from store.errors import MissingColumnError, StoreError
from store.store import Store
from tests.conftest import Finished
from tests.tiny_recipe import run_stages, tiny_mapping, tiny_recipe, tree_digests


def distilled(finished: Finished, out: Path, *overrides: str) -> Path:
    """Stage 1 with overrides, from the shared store; its folder."""
    recipe = finished.fresh(out, *overrides)
    return distill(recipe.runs[0].study, recipe.out, label="test").path


class _Stop(Exception):
    pass


def stop_at(monkeypatch: pytest.MonkeyPatch, target: Any, name: str, call: int) -> None:
    """Let the ``call``-th call of a function raise."""
    real, count = getattr(target, name), 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == call:
            raise _Stop
        return real(*arguments, **options)

    monkeypatch.setattr(target, name, counted)


@pytest.mark.parametrize(
    "changed",
    [
        "distill.loss=cos+l1",
        "distill.loss=l2",
        "distill.standardize=channel",
        "distill.standardize=phi-s",
        "distill.teachers_per_step=1",
    ],
)
def test_cached_and_online_targets_give_the_same_losses(finished: Finished, tmp_path: Path, changed: str) -> None:
    options = ["distill.steps=20", changed]
    cached = read_metrics(distilled(finished, tmp_path / "cached", *options) / "metrics.jsonl")
    online = read_metrics(
        distilled(finished, tmp_path / "online", *options, "distill.targets=online") / "metrics.jsonl"
    )
    assert len(cached) == len(online) == 20
    for one, other in zip(cached, online, strict=True):
        assert one == pytest.approx(other, rel=1e-5 if "standardize" not in changed else 1e-4)
    assert cached[-1]["total"] < cached[0]["total"], "nothing was learnt"


@pytest.mark.parametrize("stopped", [[2], [4], [6], [5, 1]])
def test_stopped_and_resumed_equals_uninterrupted(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: list[int]
) -> None:
    """Six steps are more than one cycle of 22 rows in batches of 4."""
    whole = distill_dir(finished.recipe.runs[0].study, finished.recipe.out).path
    for call in stopped:
        with monkeypatch.context() as patch:
            stop_at(patch, feature_losses, "distill_loss", call)
            with pytest.raises(_Stop):
                distilled(finished, tmp_path / "cut")
    path = distilled(finished, tmp_path / "cut")
    assert path.name == whole.name
    for name in ("metrics.jsonl", "student.safetensors"):
        assert (path / name).read_bytes() == (whole / name).read_bytes(), name


def test_averaged_weights_are_kept_train_the_same_and_survive_a_stop(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = distill_dir(finished.recipe.runs[0].study, finished.recipe.out).path
    whole = distilled(finished, tmp_path / "whole", "distill.ema=0.9")
    assert whole.name != plain.name
    assert (whole / "metrics.jsonl").read_bytes() == (plain / "metrics.jsonl").read_bytes()
    averaged, last = (load_weights(path / "student.safetensors") for path in (whole, plain))
    assert averaged.keys() == last.keys()
    assert not all(torch.equal(value, last[name]) for name, value in averaged.items())
    with monkeypatch.context() as patch:
        stop_at(patch, feature_losses, "distill_loss", 5)
        with pytest.raises(_Stop):
            distilled(finished, tmp_path / "cut", "distill.ema=0.9")
    cut = distilled(finished, tmp_path / "cut", "distill.ema=0.9")
    assert (cut / "student.safetensors").read_bytes() == (whole / "student.safetensors").read_bytes()


def test_micro_batches_are_another_way_to_the_same_result(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when a run goes on with others: here four steps with 2 of 2 rows, then with 4 of 1."""
    whole = distill_dir(finished.recipe.runs[0].study, finished.recipe.out).path
    with monkeypatch.context() as patch:
        stop_at(patch, feature_losses, "distill_loss", 10)
        with pytest.raises(_Stop):
            distilled(finished, tmp_path, "distill.accumulate=2")
    path = distilled(finished, tmp_path, "distill.accumulate=4")
    assert path.name == whole.name
    pairs = zip(read_metrics(path / "metrics.jsonl"), read_metrics(whole / "metrics.jsonl"), strict=True)
    for one, other in pairs:
        assert one == pytest.approx(other, rel=1e-5, abs=1e-6)  # cosines begin near 0


def test_a_finished_stage_does_nothing(
    finished: Finished, no_teacher: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "train", no_teacher)
    monkeypatch.setattr(module, "make_student", no_teacher)
    before = tree_digests(finished.recipe.out)
    stage = distill(finished.recipe.runs[0].study, finished.recipe.out, label="test")
    assert stage.done()
    assert tree_digests(finished.recipe.out) == before


def test_cached_training_builds_no_teacher(finished: Finished, tmp_path: Path, no_teacher: Callable[..., Any]) -> None:
    path = distilled(finished, tmp_path, "distill.steps=1")
    assert (path / "student.safetensors").exists()


def test_online_training_does(finished: Finished, tmp_path: Path, no_teacher: Callable[..., Any]) -> None:
    with pytest.raises(AssertionError, match="a teacher was built"):
        distilled(finished, tmp_path, "distill.steps=1", "distill.targets=online")


def test_two_runs_share_one_stage_1(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mapping = tiny_mapping(finished.root) | {"out": str(tmp_path), "baselines": []}
    mapping["runs"] = {"one": {}, "two": {"set": {"finetune.lr": 5e-4}}, "three": {"set": {"student.router": "none"}}}
    recipe = recipe_from_mapping(mapping)
    calls = []
    real = module.train

    def counting(*arguments: Any, **options: Any) -> None:
        calls.append(options["label"])
        real(*arguments, **options)

    monkeypatch.setattr(module, "train", counting)
    run_stage("distill", recipe, recipe.runs)
    assert calls == ["one: distill"]
    assert len(list(tmp_path.glob("distill-*"))) == 1


def test_a_missing_column_is_named(finished: Finished, tmp_path: Path) -> None:
    with pytest.raises(MissingColumnError) as caught:
        distilled(finished, tmp_path, "extract.codec=fp16")
    assert "the fp16 column of teacher second" in str(caught.value)
    assert "is absent; second-" in str(caught.value)
    assert str(caught.value).endswith(" is of another codec")


def test_a_missing_store_or_view_set_is_said(finished: Finished, tmp_path: Path) -> None:
    with pytest.raises(
        MissingColumnError, match=r"there is none yet, so the fp32 columns of teachers second, first .* are absent$"
    ):
        distilled(finished, tmp_path, f"store={tmp_path}/nowhere")
    with pytest.raises(MissingColumnError, match=r"is absent$"):
        distilled(finished, tmp_path, "data.distill.source.images=21")
    with pytest.raises(MissingColumnError, match="no view set"):
        distilled(finished, tmp_path, "data.distill.source.images=21", "distill.targets=online")


def test_an_incomplete_view_set_is_named(finished: Finished, tmp_path: Path) -> None:
    shutil.copytree(finished.root / "store", tmp_path / "store")
    study = tiny_recipe(tmp_path, ["distill.targets=online"], only="sak").runs[0].study
    store = Store.open(study.store)
    next(item for item in store.view_sets() if "unlabeled" in item.name).discard(1)
    with pytest.raises(NotDoneError, match=r"view set scenes-unlabeled-\S+ lacks 1 of 3 shards$"):
        distill(study, tmp_path / "out", label="test")


def test_a_flipped_byte_in_a_column_stops_training(finished: Finished, tmp_path: Path) -> None:
    shutil.copytree(finished.root / "store", tmp_path / "store")
    study = tiny_recipe(tmp_path, only="sak").runs[0].study
    path = max(
        (tmp_path / "store/columns").glob("scenes-unlabeled*/first-*/level_3/c/**/*"), key=lambda p: p.stat().st_size
    )
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))
    with pytest.raises(StoreError, match="level_3"):
        distill(study, tmp_path / "out", label="test")


def test_the_record_tells_spec_and_size(finished: Finished) -> None:
    stage = distill_dir(finished.recipe.runs[0].study, finished.recipe.out)
    record: Any = stage.record()
    assert (record["steps"], record["images"]) == (6, 24)
    state = load_weights(stage.path / "student.safetensors")
    assert record["parameters"]["total"] == sum(tensor.numel() for tensor in state.values())
    assert record["spec"]["teacher_widths"] == [["second", 24], ["first", 24]]
    assert record["spec"]["tasks"] == {}


def metrics(path: Path) -> list[dict[str, float]]:
    return read_metrics(path / "metrics.jsonl")


def test_each_step_learns_from_the_teachers_that_were_drawn(finished: Finished, tmp_path: Path) -> None:
    path = distilled(finished, tmp_path, "distill.teachers_per_step=1", "distill.level_weights=[1, 0, 0, 2]")
    draw = TeacherDraw(teachers=("second", "first"), count=1, seed=0)
    for step, line in enumerate(metrics(path)):
        (name,) = draw(step)
        levels = [line[f"{name}_level{level}"] for level in (1, 2, 3, 4)]
        assert {key.rpartition("/")[2].split("_")[0] for key in line if "level" in key} == {name}
        assert line["total"] == pytest.approx(2 * (levels[0] + 2 * levels[3]), rel=1e-5)


def test_a_run_that_draws_resumes_exactly(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("distill.teachers_per_step=1", "distill.standardize=phi-s", "distill.standardize_rows=8")
    whole = distilled(finished, tmp_path / "whole", *options)
    with monkeypatch.context() as patch:
        stop_at(patch, feature_losses, "distill_loss", 5)
        with pytest.raises(_Stop):
            distilled(finished, tmp_path / "cut", *options)
    path = distilled(finished, tmp_path / "cut", *options)
    for name in ("metrics.jsonl", "student.safetensors", "standards.safetensors"):
        assert (path / name).read_bytes() == (whole / name).read_bytes(), name


def test_stage_2_and_scoring_go_on_with_the_statistics_of_stage_1(finished: Finished, tmp_path: Path) -> None:
    """At a rate of nearly nothing, the loss against teachers is in stage 2 what it was in stage 1."""
    options = ["distill.standardize=channel", "distill.steps=60", "distill.loss=l2", "finetune.loss=l2"]
    recipe = finished.fresh(tmp_path, *options, "finetune.lr=1e-12", "finetune.steps=1", "distill.lr=3e-3")
    run_stages(recipe, ["distill", "finetune", "eval"])
    (first,), (second,), (score,) = (list(tmp_path.glob(f"{stage}-*")) for stage in ("distill", "finetune", "eval"))
    last = metrics(first)[-1]["total"]
    assert metrics(second)[0]["distill"] == pytest.approx(last, rel=0.5)
    assert read_json(score / "metrics.json")["distill"]["loss"] == pytest.approx(last, rel=0.5)  # type: ignore[index]
    plain = finished.fresh(tmp_path / "plain", "distill.steps=1", "distill.loss=l2")
    run_stages(plain, ["distill"])
    assert not list((tmp_path / "plain").glob("distill-*/standards*"))


@pytest.mark.parametrize("override", ["student.freeze=stem", "student.lora={rank: 2}"])
def test_what_is_frozen_stays_and_takes_no_room_in_checkpoints(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str
) -> None:
    sizes: list[set[str]] = []
    real = trainer.save_checkpoint

    def noting(*arguments: Any, **options: Any) -> Path:
        path: Path = real(*arguments, **options)
        sizes.append({name for name in load_weights(path) if name.startswith("optim/stem.")})
        return path

    monkeypatch.setattr(trainer, "save_checkpoint", noting)
    plain = finished.fresh(tmp_path, "distill.steps=1").runs[0].study
    spec = StudentSpec.from_dict(distill(plain, tmp_path, label="test").record()["spec"])  # type: ignore[arg-type]
    start = make_student(plain.student, spec, seed=plain.seed, load_stem=True).state_dict()
    whole, sizes[:] = sizes[-1], []
    end = load_weights(distilled(finished, tmp_path / "end", override) / "student.safetensors")
    assert start.keys() == end.keys(), "updates are part of the weights at the end"
    changed = {name for name in end if not torch.equal(start[name], end[name])}
    lora = {f"stem.blocks.{block}.attn.{layer}.weight" for block in range(4) for layer in ("qkv", "proj")}
    assert {name for name in changed if name.startswith("stem.")} == (lora if "lora" in override else set())
    assert {name for name in changed if name.startswith("paths.")}
    assert len(whole) == 3 * sum(name.startswith("stem.") for name in start)
    assert len(sizes[-1]) == (3 * 2 * 8 if "lora" in override else 0)


@pytest.mark.parametrize("override", ["student.freeze=stem", "student.lora={rank: 2}", "student.checkpointing=true"])
def test_stopped_and_resumed_equals_uninterrupted_with_parts_frozen(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str
) -> None:
    whole = distilled(finished, tmp_path / "whole", override)
    with monkeypatch.context() as patch:
        stop_at(patch, feature_losses, "distill_loss", 5)
        with pytest.raises(_Stop):
            distilled(finished, tmp_path / "cut", override)
    path = distilled(finished, tmp_path / "cut", override)
    for name in ("metrics.jsonl", "student.safetensors"):
        assert (path / name).read_bytes() == (whole / name).read_bytes(), name
    if override == "student.checkpointing=true":
        plain = distill_dir(finished.recipe.runs[0].study, finished.recipe.out).path
        assert (path / "student.safetensors").read_bytes() == (plain / "student.safetensors").read_bytes()


@pytest.mark.parametrize(
    "override", ["distill.fused=true", pytest.param("distill.compile=true", marks=pytest.mark.slow)]
)
def test_fused_and_compiled_learn_the_same_to_rounding(finished: Finished, tmp_path: Path, override: str) -> None:
    plain = distill_dir(finished.recipe.runs[0].study, finished.recipe.out).path
    path = distilled(finished, tmp_path, override)
    assert path.name != plain.name
    for one, other in zip(metrics(path), metrics(plain), strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_a_compiled_student_is_what_takes_the_step(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the minute that a compiler takes: what torch.compile is given is called for every step, in its mode."""
    calls: list[str] = []

    def compile_(module: torch.nn.Module, *, mode: str) -> Callable[..., Any]:
        return lambda *arguments, **options: (calls.append(mode), module(*arguments, **options))[1]

    monkeypatch.setattr(torch, "compile", compile_)
    recipe = finished.fresh(tmp_path, "distill.compile=true", "finetune.compile=reduce-overhead", "finetune.steps=2")
    run_stages(recipe, ["distill", "finetune"])
    assert calls == ["default"] * 6 + ["reduce-overhead"] * 2


def test_the_stem_starts_frozen_in_stage_2_too(finished: Finished, tmp_path: Path) -> None:
    recipe = finished.fresh(tmp_path, "student.freeze=distilled", "finetune.weight_decay=0.1", "finetune.lr=0.1")
    run_stages(recipe, ["distill", "finetune"])
    (first,), (second,) = (list(tmp_path.glob(f"{stage}-*/student.safetensors")) for stage in ("distill", "finetune"))
    before, after = load_weights(first), load_weights(second)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert after.keys() > before.keys()
