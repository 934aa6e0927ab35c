from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.errors import PipelineError
from pipeline.recipes import recipe_from_mapping
from pipeline.stages import distill as module
from pipeline.stages.distill import distill, distill_dir, steps_of
from pipeline.stages.run import run_stage
from pipeline.tracking import read_metrics
from sak.teachers.identity import teacher_identity
from sak.weights import load_weights
from store.errors import MissingColumnError, StoreError
from store.store import Store
from tests.conftest import Finished
from tests.tiny_recipe import HINT, tiny_mapping, tiny_recipe, tree_digests


def distilled(finished: Finished, out: Path, *overrides: str) -> Path:
    """Stage 1 with overrides, from the shared store; its folder."""
    recipe = finished.fresh(out, *overrides)
    return distill(recipe.runs[0].study, recipe.out, label="test", hint=HINT).path


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


@pytest.mark.parametrize("loss", ["cos+l1", "l2"])
def test_cached_and_online_targets_give_the_same_losses(finished: Finished, tmp_path: Path, loss: str) -> None:
    options = ["distill.steps=20", f"distill.loss={loss}"]
    cached = read_metrics(distilled(finished, tmp_path / "cached", *options) / "metrics.jsonl")
    online = read_metrics(
        distilled(finished, tmp_path / "online", *options, "distill.targets=online") / "metrics.jsonl"
    )
    assert len(cached) == len(online) == 20
    for one, other in zip(cached, online, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    assert cached[-1]["total"] < cached[0]["total"], "nothing was learnt"


@pytest.mark.parametrize("stopped", [[2], [4], [6], [5, 1]])
def test_stopped_and_resumed_equals_uninterrupted(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: list[int]
) -> None:
    """Six steps are more than one cycle of 22 rows in batches of 4."""
    whole = distill_dir(finished.recipe.runs[0].study, finished.recipe.out, hint=HINT).path
    for call in stopped:
        with monkeypatch.context() as patch:
            stop_at(patch, module, "distill_loss", call)
            with pytest.raises(_Stop):
                distilled(finished, tmp_path / "cut")
    path = distilled(finished, tmp_path / "cut")
    assert path.name == whole.name
    for name in ("metrics.jsonl", "student.safetensors"):
        assert (path / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_finished_stage_does_nothing(
    finished: Finished, no_teacher: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "train", no_teacher)
    monkeypatch.setattr(module, "make_student", no_teacher)
    before = tree_digests(finished.recipe.out)
    stage = distill(finished.recipe.runs[0].study, finished.recipe.out, label="test", hint=HINT)
    assert stage.done()
    assert tree_digests(finished.recipe.out) == before


def test_cached_training_builds_no_teacher(finished: Finished, tmp_path: Path, no_teacher: Callable[..., Any]) -> None:
    path = distilled(finished, tmp_path, "distill.steps=1")
    assert (path / "student.safetensors").exists()


def test_online_training_does(finished: Finished, tmp_path: Path, no_teacher: Callable[..., Any]) -> None:
    with pytest.raises(AssertionError, match="a teacher was built"):
        distilled(finished, tmp_path, "distill.steps=1", "distill.targets=online")


RELEVANT = [
    "seed=1",
    "data.distill.source.images=20",
    "data.distill.source.seed=4",
    "data.distill.seed=1",
    "data.distill.view.flip=0.1",
    "data.distill.rows_per_shard=5",
    "data.distill.views=2",
    "teachers.first.random=9",
    "teachers.first.levels=[]",
    "teachers.first.normalization=reference",
    "student.teachers=[first]",
    "student.down_ratio=2",
    "student.paths=none",
    "student.aligners=true",
    "student.levels=[0, 1, 2, 3]",
    "student.mean=[0.5, 0.5, 0.5]",
    "student.overrides.num_heads=3",
    "extract.codec=int8",
    "distill.steps=7",
    "distill.batch=5",
    "distill.lr=2e-3",
    "distill.warmup=0.5",
    "distill.clip=1",
    "distill.weight_decay=0",
    "distill.loss=l2",
    "distill.cosine=token",
    "distill.precision=bf16",
    "distill.targets=online",
]
IRRELEVANT = [
    "threads=2",
    "device=auto",
    "name=other",
    "track.log_every=7",
    "track.checkpoint_every=1",
    "track.keep=5",
    "track.tensorboard=true",
    "extract.batch=7",
    "extract.workers=3",
    "eval.batch=2",
    "finetune.lr=3e-4",
    "data.finetune.source.images=11",
    "data.distill.on_error=skip",
    "baselines=[]",
]


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., str]:
    """Folder name of stage 1 under overrides; columns that do not exist are named as they would be."""

    def columns(study: Any, specs: Any, *, view_set: str, hint: str) -> Mapping[str, Any]:
        return {
            spec.name: SimpleNamespace(name=f"{spec.name}-{teacher_identity(spec)}-{study.extract.codec}-{view_set}")
            for spec in specs
        }

    monkeypatch.setattr(module, "_columns", columns)

    def name(*overrides: str) -> str:
        study = tiny_recipe(tmp_path, overrides, only="sak").runs[0].study
        return distill_dir(study, tmp_path, hint=HINT).path.name

    return name


@pytest.mark.parametrize("override", RELEVANT)
def test_what_shapes_the_result_shapes_the_folder(named: Callable[..., str], override: str) -> None:
    assert named(override) != named()


def test_other_code_has_another_folder(named: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    before = named()
    monkeypatch.setattr(module, "TRAINING", module.TRAINING + 1)
    assert named() != before


@pytest.mark.parametrize("override", IRRELEVANT)
def test_what_does_not_shape_the_result_shares_the_folder(named: Callable[..., str], override: str) -> None:
    assert named(override) == named()


def test_a_store_elsewhere_gives_the_same_folder(finished: Finished, tmp_path: Path) -> None:
    shutil.copytree(finished.root / "store", tmp_path / "store")
    moved = tiny_recipe(tmp_path, only="sak").runs[0].study
    here = finished.recipe.runs[0].study
    assert distill_dir(moved, tmp_path, hint=HINT).path.name == distill_dir(here, tmp_path, hint=HINT).path.name


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
    run_stage("distill", recipe, recipe.runs, hint=HINT)
    assert calls == ["one: distill"]
    assert len(list(tmp_path.glob("distill-*"))) == 1


def test_a_missing_column_names_the_command(finished: Finished, tmp_path: Path) -> None:
    with pytest.raises(MissingColumnError) as caught:
        distilled(finished, tmp_path, "extract.codec=fp16")
    assert "the fp16 column of teacher first" in str(caught.value)
    assert str(caught.value).endswith(f"make it with: {HINT}")


def test_a_missing_store_or_view_set_is_said(finished: Finished, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=f"there is none yet, .*; make them with: {HINT}"):
        distilled(finished, tmp_path, f"store={tmp_path}/nowhere")
    with pytest.raises(MissingColumnError, match=f"is absent; make it with: {HINT}"):
        distilled(finished, tmp_path, "data.distill.source.images=21")
    with pytest.raises(MissingColumnError, match="no view set"):
        distilled(finished, tmp_path, "data.distill.source.images=21", "distill.targets=online")


def test_an_incomplete_view_set_names_the_command(finished: Finished, tmp_path: Path) -> None:
    shutil.copytree(finished.root / "store", tmp_path / "store")
    study = tiny_recipe(tmp_path, ["distill.targets=online"], only="sak").runs[0].study
    store = Store.open(study.store)
    next(item for item in store.view_sets() if "unlabeled" in item.name).discard(1)
    with pytest.raises(PipelineError, match=rf"lacks 1 of 3 shards; complete it with: {HINT}"):
        distill(study, tmp_path / "out", label="test", hint=HINT)


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
        distill(study, tmp_path / "out", label="test", hint=HINT)


def test_the_record_tells_spec_and_size(finished: Finished) -> None:
    stage = distill_dir(finished.recipe.runs[0].study, finished.recipe.out, hint=HINT)
    record: Any = stage.record()
    assert (record["steps"], record["images"]) == (6, 24)
    state = load_weights(stage.path / "student.safetensors")
    assert record["parameters"]["total"] == sum(tensor.numel() for tensor in state.values())
    assert record["spec"]["teacher_widths"] == {"first": 24, "second": 24}
    assert record["spec"]["tasks"] == {}


@pytest.mark.parametrize(
    ("steps", "epochs", "expected"), [(7, None, 7), (None, 2.0, 50), (None, 0.5, 12), (None, 0.001, 1)]
)
def test_an_epoch_is_a_pass_over_as_many_rows_as_images(steps: int | None, epochs: float | None, expected: int) -> None:
    assert steps_of(steps, epochs, images=100, batch=4) == expected
