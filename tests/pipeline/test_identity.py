from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import identity
from pipeline.identity import distill_dir, evaluate_dir, finetune_dir, plain
from pipeline.recipes import recipe_from_mapping
from pipeline.targets import teacher_specs
from sak.tasks import METRICS
from sak.teachers.identity import teacher_identity
from store.spec import ViewSetSpec
from tests.conftest import Finished
from tests.tiny_recipe import tiny_mapping, tiny_recipe

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
    "distill.ema=0.9",
    "distill.targets=online",
    "distill.crops={kind: random_resized_crop, size: 32}",
    "distill.cosine_weight=0.5",
    "distill.l1_weight=0.5",
    "distill.beta=0.5",
    "distill.teacher_weights={first: 2}",
    "distill.level_weights=[1, 1, 1, 2]",
    "distill.warmup_epochs=0.1",
    "distill.reference_schedule=true",
    "distill.standardize=channel",
    "distill.teachers_per_step=1",
    "distill.compile=true",
    "distill.fused=true",
    "student.normalization=half",
    "student.freeze=stem",
    "student.lora={}",
]


IRRELEVANT = [
    "threads=2",
    "device=auto",
    "name=other",
    "track.log_every=7",
    "distill.accumulate=2",
    "loader.readers=2",
    "track.checkpoint_every=1",
    "track.keep=5",
    "track.tensorboard=true",
    "extract.batch=7",
    "extract.workers=3",
    "eval.batch=2",
    "finetune.lr=3e-4",
    "data.finetune.source.images=11",
    "data.distill.on_error=skip",
    "data.distill.max_bad=0.5",
    "baselines=[]",
    "student.checkpointing=true",
    "student.normalization=imagenet",
    "student.freeze=distilled",  # of stage 2
    "student.head=light",
    "finetune.lora={}",
    "finetune.beta=0.5",
]


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., str]:
    """Folder name of stage 1 under overrides; columns that do not exist are named as they would be."""

    def columns(study: Any, /, *, view_set: ViewSetSpec) -> Mapping[str, Any]:
        return {
            name: SimpleNamespace(name=f"{name}-{teacher_identity(spec)}-{study.extract.codec}-{view_set.name}")
            for name, spec in teacher_specs(study).items()
        }

    monkeypatch.setattr(identity, "study_columns", columns)

    def name(*overrides: str) -> str:
        study = tiny_recipe(tmp_path, overrides, only="sak").runs[0].study
        return distill_dir(study, tmp_path).path.name

    return name


@pytest.mark.parametrize("override", RELEVANT)
def test_what_shapes_stage_1_shapes_its_folder(named: Callable[..., str], override: str) -> None:
    assert named(override) != named()


def test_other_code_has_another_stage_1(named: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    before = named()
    monkeypatch.setattr(identity, "TRAINING", identity.TRAINING + 1)
    assert named() != before


@pytest.mark.parametrize("override", IRRELEVANT)
def test_what_does_not_shape_stage_1_shares_its_folder(named: Callable[..., str], override: str) -> None:
    assert named(override) == named()


def test_a_store_elsewhere_gives_the_same_folder(finished: Finished, tmp_path: Path) -> None:
    shutil.copytree(finished.root / "store", tmp_path / "store")
    moved = tiny_recipe(tmp_path, only="sak").runs[0].study
    here = finished.recipe.runs[0].study
    assert distill_dir(moved, tmp_path).path.name == distill_dir(here, tmp_path).path.name


@pytest.mark.parametrize(
    "override", ["finetune.lr=5e-4", "finetune.alpha=0.25", "finetune.tasks=[sal]", "distill.steps=7", "distill=null"]
)
def test_what_shapes_stage_2_shapes_its_folder(finished: Finished, tmp_path: Path, override: str) -> None:
    def name(*overrides: str) -> str:
        return finetune_dir(finished.fresh(tmp_path, *overrides).runs[0].study, tmp_path).path.name

    assert name(override) != name()
    assert name("track.keep=7", "threads=2", "eval.batch=3") == name()


def test_other_code_has_another_stage_2(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = finished.fresh(tmp_path, "distill=null", "finetune.alpha=0").runs[0].study
    before = finetune_dir(study, tmp_path).path
    monkeypatch.setattr(identity, "TRAINING", identity.TRAINING + 1)
    assert finetune_dir(study, tmp_path).path != before


def test_other_scoring_code_has_another_folder(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    study, out = finished.recipe.runs[0].study, finished.recipe.out
    before = evaluate_dir(study, out).path
    monkeypatch.setattr(identity, "SCORING", identity.SCORING + 1)
    assert evaluate_dir(study, out).path != before


def test_scoring_is_numbered_anew_when_there_are_other_metrics() -> None:
    """Else scores from before pass for complete ones: raise SCORING, and note here what it gives."""
    metrics = hashlib.sha256(" ".join(METRICS).encode()).hexdigest()[:8]
    assert (identity.SCORING, metrics) == (2, "b808f147")


def test_plain_is_json_of_everything(tmp_path: Path) -> None:
    study = recipe_from_mapping(tiny_mapping(tmp_path)).study
    data = json.loads(json.dumps(plain(study)))
    assert data["data"]["eval"]["view"]["size"] == [32, 32]
    assert data["teachers"]["first"]["levels"] == [0, 1, 2, 3]
    assert data["distill"]["batch"] == 4


def test_adapter_paths_depend_on_their_teachers_even_where_no_feature_is_read(finished: Finished) -> None:
    """Three paths are another network than two, and another order is another set of routers."""
    mapping = tiny_mapping(finished.root) | {"runs": {"sak": {}}, "baselines": []}
    off = ("distill=null", "finetune.alpha=0.0")

    def name(*overrides: str, order: tuple[str, ...] = ("second", "first")) -> str:
        teachers = {teacher: mapping["teachers"][teacher] for teacher in order}
        recipe = recipe_from_mapping(mapping | {"teachers": teachers}, overrides=[*off, *overrides])
        return finetune_dir(recipe.study, recipe.out).path.name

    swapped = ("first", "second")
    assert len({name(), name(order=("first",)), name(order=swapped)}) == 3
    # A plain student without a teacher loss is the same network whatever teachers the recipe knows.
    assert name("student.paths=none") == name("student.paths=none", order=swapped)


def test_one_normalization_by_name_or_number_is_one_stage(named: Callable[..., str]) -> None:
    half = "[0.5, 0.5, 0.5]"
    assert named("student.normalization=half") == named(f"student.mean={half}", f"student.std={half}")
    assert named("student.normalization=native") == named("student.normalization=half"), "timm's augreg stems"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("distill.compile=default", "distill.compile=true"),
        ("distill.teachers_per_step=2", "distill.teachers_per_step=all"),
    ],
)
def test_one_work_by_two_names_is_one_stage(named: Callable[..., str], one: str, other: str) -> None:
    assert named(one) == named(other)
    assert named("distill.compile=max-autotune") != named("distill.compile=true")


def test_more_rows_for_statistics_are_another_stage(named: Callable[..., str]) -> None:
    standardize = "distill.standardize=phi-s"
    assert named(standardize, "distill.standardize_rows=9") != named(standardize)
    assert named(standardize, "distill.standardize_rows=256") == named(standardize)


def test_whole_batches_alone_are_another_stage(named: Callable[..., str]) -> None:
    epochs = ("distill.steps=null", "distill.epochs=2")
    assert named(*epochs, "distill.drop_last=true") != named(*epochs)


@pytest.mark.parametrize(
    "override",
    [
        *("student.freeze=distilled", "student.head=light", "finetune.beta=0.5", "finetune.fused=true"),
        *("finetune.lora={}", "finetune.lr_scales={heads: 2}", "finetune.task_weights={sal: 2}"),
        *("finetune.weighting=uncertainty", "finetune.weighting=gradnorm"),
    ],
)
def test_what_shapes_stage_2_alone(finished: Finished, tmp_path: Path, override: str) -> None:
    def folder(*overrides: str) -> Path:
        return finetune_dir(finished.fresh(tmp_path, *overrides).runs[0].study, tmp_path).path

    assert folder(override) != folder() == folder("student.checkpointing=true")


def test_how_weights_are_learnt_is_part_of_what_is_learnt(finished: Finished, tmp_path: Path) -> None:
    def name(*overrides: str) -> str:
        options = ("distill=null", "finetune.alpha=0", "finetune.weighting=gradnorm", *overrides)
        return finetune_dir(finished.fresh(tmp_path, *options).runs[0].study, tmp_path).path.name

    assert len({name(), name("finetune.weighting_lr=0.1"), name("finetune.gradnorm_alpha=0")}) == 3
    assert name("finetune.crops=fresh") != name() == name("finetune.crops=null")


def test_black_padding_is_what_padding_always_was(finished: Finished, tmp_path: Path) -> None:
    def name(*overrides: str) -> str:
        options = ("distill=null", "finetune.alpha=0", "data.finetune.view={kind: multitask, size: 32}", *overrides)
        return finetune_dir(finished.fresh(tmp_path, *options).runs[0].study, tmp_path).path.name

    assert name("data.finetune.view.fill=black") == name() != name("data.finetune.view.fill=mean")


def test_keys_that_came_later_do_not_move_what_was_there_before(finished: Finished) -> None:
    """At their defaults they are no part of what names a folder: results from before them are found again."""
    inputs: Any = distill_dir(finished.recipe.runs[0].study, finished.recipe.out).inputs
    assert set(inputs["distill"]) == {
        *("steps", "epochs", "batch", "lr", "start_lr", "end_lr", "warmup", "weight_decay", "clip"),
        *("loss", "cosine", "targets", "precision"),
    }
    assert set(inputs["student"]) == {
        *("stem", "overrides", "checkpoint", "pretrained", "levels", "teachers", "paths", "down_ratio", "aligners"),
        *("mean", "std", "checkpoint_sha256"),
    }
    stage2: Any = finetune_dir(finished.recipe.runs[0].study, finished.recipe.out).inputs
    assert set(stage2["finetune"]) == {
        *("steps", "epochs", "batch", "lr", "stem_lr_scale", "schedule", "power", "start_lr", "end_lr", "warmup"),
        *("weight_decay", "clip", "tasks", "alpha", "targets", "precision", "loss", "cosine"),
    }
    assert set(stage2["student"]) == set(inputs["student"]) | {"router", "noisy_gating", "noise"}
    crops = "distill.crops={kind: random_resized_crop, size: 32}"
    cropped: Any = distill_dir(finished.fresh(finished.root, crops).runs[0].study, finished.root).inputs
    assert "fill" not in cropped["distill"]["crops"]
