from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import pipeline
from pipeline import config
from pipeline.budgets import require_budgets
from pipeline.config import DistillConfig, FinetuneConfig, SourceConfig, StudentConfig, TeacherConfig
from pipeline.errors import RecipeError
from pipeline.recipes import Recipe, recipe_from_mapping
from pipeline.stages.report import report
from pipeline.viewsets import cached_source
from tests.tiny_recipe import run_stages, tiny_mapping, tiny_recipe

PACKAGE = str(Path(next(iter(pipeline.__path__))).resolve())
CLASSES = [getattr(config, name) for name in config.__all__ if dataclasses.is_dataclass(getattr(config, name))]
# Reads that do not use a value: checks at construction, and copies into a record or fingerprint.
NO_USE = {"__post_init__", "plain", "_positive", "_not_negative", "overlaps"}


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[tuple[str, str]]]:
    """(class, field) of every field of a configuration that code of ``pipeline`` reads while the test runs."""
    found: set[tuple[str, str]] = set()

    def watch(cls: type) -> None:
        fields = {field.name for field in dataclasses.fields(cls)}

        def noting(self: object, name: str) -> object:
            if name in fields:
                code = sys._getframe(1).f_code
                if code.co_filename.startswith(PACKAGE) and code.co_name not in NO_USE:
                    found.add((cls.__name__, name))
            return object.__getattribute__(self, name)

        monkeypatch.setattr(cls, "__getattribute__", noting, raising=False)

    for cls in CLASSES:
        watch(cls)
    yield found
    cached_source.cache_clear()


def short(root: Path, *overrides: str) -> Recipe:
    """One step of each stage of the first run."""
    steps = ["distill.steps=1", "finetune.steps=1", "data.distill.source.images=8", "data.finetune.source.images=4"]
    return tiny_recipe(root, [*steps, "data.eval.source.images=2", *overrides], only="sak")


def test_every_field_is_read_by_somebody(tmp_path: Path, reads: set[tuple[str, str]]) -> None:
    cached_source.cache_clear()
    recipe = short(tmp_path)
    require_budgets([("sak", recipe.runs[0].study)])
    run_stages(recipe)
    run_stages(short(tmp_path, "extract.engine=dask"), ["extract"])  # all is there, so no cluster starts
    report(recipe, tmp_path / "report.html")
    run_stages(short(tmp_path, "finetune.schedule=cosine", "finetune.warmup=0.5", f"out={tmp_path}/cosine"))
    run_stages(short(tmp_path, "distill.standardize=channel", "student.lora={rank: 2}", f"out={tmp_path}/other"))
    run_stages(short(tmp_path, "distill=null", "finetune.weighting=gradnorm", f"out={tmp_path}/weights"), ["finetune"])
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (40, 40), "red").save(photos / "good.png")
    (photos / "bad.png").write_bytes(b"not an image")
    whole = {"kind": "full", "size": 32}
    mapping = tiny_mapping(tmp_path) | {"runs": {}, "baselines": []}
    mapping["data"] = {"eval": {"source": {"name": "imagefolder", "root": str(photos)}, "view": whole}}
    mapping |= {"distill": None, "finetune": None, "store": str(tmp_path / "photo_store")}
    run_stages(
        recipe_from_mapping(mapping, overrides=["data.eval.on_error=skip", "data.eval.max_bad=0.5"]), ["extract"]
    )
    every = {(cls.__name__, field.name) for cls in CLASSES for field in dataclasses.fields(cls)}
    assert every - reads == set()


def test_the_watch_can_fail(reads: set[tuple[str, str]]) -> None:
    """A field that is set, checked and recorded but not used counts as unread."""
    FinetuneConfig(steps=3)
    assert ("FinetuneConfig", "power") not in reads
    assert ("SourceConfig", "seed") not in reads


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_configurations_are_frozen_and_closed(cls: type) -> None:
    assert cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert "__slots__" in vars(cls)
    with pytest.raises(ValueError, match=r"unexpected_keyword_argument|[Uu]nexpected keyword"):
        cls(no_such_field=1)


@pytest.mark.parametrize("rates", [{"end_lr": 1e-3}, {"start_lr": 1e-3}, {"end_lr": -1e-9}, {"start_lr": math.nan}])
@pytest.mark.parametrize("config", [DistillConfig, FinetuneConfig])
def test_rates_stay_below_the_peak(config: Any, rates: dict[str, float]) -> None:
    schedule = {"schedule": "cosine"} if config is FinetuneConfig else {}
    config(steps=1, lr=1e-4, **schedule, **dict.fromkeys(rates, 1e-5))
    config(steps=1, lr=1e-4, **schedule, **dict.fromkeys(rates, 0.0))
    with pytest.raises(ValueError, match=rf"{next(iter(rates))} must be between 0 and .*lr \(0\.0001\)"):
        config(steps=1, lr=1e-4, **schedule, **rates)


@pytest.mark.parametrize("rates", [{"end_lr": 1e-6}, {"start_lr": 1e-6}, {"warmup": 0.1}])
def test_the_poly_schedule_takes_no_rates_of_the_cosine(rates: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=rf"finetune\.{next(iter(rates))}: the poly schedule has none"):
        FinetuneConfig(steps=1, **rates)  # type: ignore[arg-type]


HELD_OUT = [
    ({"split": "val"}, {"split": "train"}, False),
    ({"seed": 1}, {}, False),
    ({}, {}, True),
    ({"size": 48, "images": 9}, {}, True),
]
ON_DISK = [
    ({"split": "val"}, {"split": "train"}, False),
    ({"root": "b"}, {}, False),
    ({"root": "a/"}, {}, True),
    ({"seed": 1}, {}, True),
    ({"split": "all"}, {"split": "train"}, True),
    ({"seed": 1, "images": 5}, {"images": 5}, False),
]


@pytest.mark.parametrize("stage", ["distill", "finetune"])
@pytest.mark.parametrize(
    ("kind", "held_out", "trained", "refused"),
    [("scenes", *case) for case in HELD_OUT] + [("imagefolder", *case) for case in ON_DISK],
)
def test_scores_need_held_out_images(
    tmp_path: Path, kind: str, held_out: dict[str, object], trained: dict[str, object], refused: bool, stage: str
) -> None:
    base = {"name": "scenes", "images": 6, "size": 32} if kind == "scenes" else {"name": "imagefolder", "root": "a"}
    other = "finetune" if stage == "distill" else "distill"
    mapping = tiny_mapping(tmp_path) | {"runs": {}, "baselines": [], other: None}
    mapping["data"]["eval"]["source"] = base | held_out
    mapping["data"][stage]["source"] = base | trained
    if not refused:
        recipe_from_mapping(mapping)
        return
    with pytest.raises(RecipeError, match=rf"data\.eval\.source and data\.{stage}\.source are the same images"):
        recipe_from_mapping(mapping)
    # A source that no stage reads is no leak.
    recipe_from_mapping(mapping | {stage: None})


def test_teacher_sources() -> None:
    built = TeacherConfig(builtin="scenes-geometry", resize="squash").spec("mine")
    assert (built.name, built.builtin) == ("mine", "scenes-geometry")
    spec = TeacherConfig(timm="vit_tiny_patch16_224", checkpoint="a.pth", input_size=64).spec("other")
    assert (spec.checkpoint, spec.input_size) == (Path("a.pth"), (64, 64))
    for wrong in ({"builtin": "scenes-nothing"}, {"timm": "x"}, {"timm": "x", "random": 1, "pretrained": True}):
        with pytest.raises(ValueError, match=r"scenes-nothing|exactly one"):
            TeacherConfig(**wrong)


@pytest.mark.parametrize("choice", ["normalization", "alignment"])
def test_builtin_teachers_take_the_choices_of_every_teacher(choice: str) -> None:
    spec = TeacherConfig(builtin="scenes-geometry", **{choice: "reference"}).spec("mine")  # type: ignore[arg-type]
    assert getattr(spec, choice) == "reference"
    assert (spec.mean is None) == (choice == "normalization")


def test_size_is_a_side_or_a_pair() -> None:
    assert SourceConfig(name="scenes", size=32).size_hw == (32, 32)
    assert SourceConfig(name="scenes", size=(24, 40)).size_hw == (24, 40)
    assert SourceConfig(name="scenes").size_hw is None


def test_final_targets_follow_the_last_stage(tmp_path: Path) -> None:
    def final(*overrides: str) -> str | None:
        return tiny_recipe(tmp_path, overrides, only="sak").runs[0].study.final_targets

    assert final() == "cached"
    assert final("finetune.targets=online") == "online"
    assert final("finetune.alpha=0") is None
    assert final("finetune=null") == "cached"
    assert final("finetune=null", "distill.targets=online") == "online"
    assert final("distill=null", "student.teachers=[]") is None
    assert final("finetune=null", "distill=null") is None


def test_student_teachers_keep_the_recipes_order(tmp_path: Path) -> None:
    study = tiny_recipe(tmp_path, ["student.teachers=[first, second]"], only="sak").runs[0].study
    assert study.student_teachers == ("second", "first")


@pytest.mark.parametrize(
    ("codec", "fault"),
    [
        ("int9", "codec: expected one of fp32, fp16, .*, got 'int9'"),
        ("{name: fp16, clop: true}", r"codec fp16: unknown options \['clop'\]; it has \['clip'\]"),
        ("{name: fp16, clip: 1}", "codec fp16: clip: expected true or false, got 1"),
        ("{clip: true}", "codec: expected one of fp32, fp16, .*, got None"),
    ],
)
def test_codecs_are_checked_with_the_recipe(tmp_path: Path, codec: str, fault: str) -> None:
    with pytest.raises(RecipeError, match=fault):
        tiny_recipe(tmp_path, [f"extract.codec={codec}"])


@pytest.mark.parametrize(("grid", "wanted"), [("native", None), (24, (24, 24)), ((12, 16), (12, 16)), ([3, 4], (3, 4))])
def test_every_teacher_takes_a_grid(grid: Any, wanted: tuple[int, int] | None) -> None:
    for teacher in ({"builtin": "scenes-geometry"}, {"timm": "vit_tiny_patch16_224", "random": 1}):
        assert TeacherConfig(**teacher, grid=grid).spec("mine").grid == wanted  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"grid: expected native or \(rows, columns\), both positive, got \(0, 0\)"):
        TeacherConfig(builtin="scenes-geometry", grid=0)


def test_a_teachers_codec_comes_before_the_recipes(tmp_path: Path) -> None:
    own = ["extract.codec=int8", "teachers.first.codec={name: fp16, clip: true}"]
    study = tiny_recipe(tmp_path, own, only="sak").runs[0].study
    assert study.codec("first") == {"name": "fp16", "clip": True}
    assert study.codec("second") == "int8"
    with pytest.raises(RecipeError, match=r"teachers\.first: codec: expected one of .*, got 'int9'"):
        tiny_recipe(tmp_path, ["teachers.first.codec=int9"])
    assert TeacherConfig(builtin="scenes-geometry", codec="int8").spec("mine").name == "mine"


REFUSED = {
    "distill.cosine_weight=-1": "distill.cosine_weight must be 0 or more, got -1",
    "distill.teacher_weights={first: -2}": "distill.teacher_weights.first must be 0 or more, got -2",
    "distill.teacher_weights={third: 1}": "distill.teacher_weights names ['third'], but the recipe's teachers are",
    "distill.teacher_weights={first: 0, second: 0}": "distill.teacher_weights: all are 0",
    "distill.level_weights=[1, 2]": "distill.level_weights: expected four, one a level, got 2",
    "distill.level_weights=[0, 0, 0, 0]": "distill: all weights of the loss are 0",
    "finetune={steps: 1, loss: l2, beta: 0.5}": "finetune.beta: loss l2 has no such term",
    "distill={steps: 1, loss: cos, l1_weight: 0.5}": "distill.l1_weight: loss cos has no such term",
    "distill.drop_last=true": "distill.drop_last needs distill.epochs, and whole ones, got None",
    "distill={epochs: 1.5, drop_last: true}": "distill.drop_last needs distill.epochs, and whole ones, got 1.5",
    "distill={steps: 1, warmup: 0.1, warmup_epochs: 1}": "distill: give warmup or warmup_epochs, not both",
    "distill.warmup_epochs=-1": "distill.warmup_epochs must be 0 or more",
    "distill.standardize=whiten": "distill.standardize",
    "distill.standardize_rows=9": "distill.standardize_rows: nothing is standardized",
    "distill={steps: 1, standardize: channel, standardize_rows: 0}": "standardize_rows must be greater than 0",
    "distill.teachers_per_step=3": "distill.teachers_per_step: expected all, or 1 to 2 teachers, got 3",
    "distill.teachers_per_step=0": "distill.teachers_per_step: expected all, or 1 to 2 teachers, got 0",
    "distill.compile=fast": "distill.compile",
    "distill={steps: 1, compile: reduce-overhead, accumulate: 2}": "distill.compile: reduce-overhead replays CUDA gra",
    "distill={steps: 1, compile: max-autotune, accumulate: 2}": "or distill.accumulate to 1",
    "student={normalization: half, mean: [0.1, 0.2, 0.3]}": "student.mean: normalization: half brings its own",
    "student={freeze: stem, lora: {}}": "student.freeze: lora keeps the stem's own weights already",
    "finetune.weighting=dwa": "finetune.weighting",
    "finetune.weighting_lr=0.1": "finetune.weighting_lr: fixed weights are not learnt",
    "finetune.gradnorm_alpha=0": "finetune.gradnorm_alpha: it is of weighting: gradnorm",
    "finetune={steps: 1, weighting: gradnorm, gradnorm_alpha: -1}": "finetune.gradnorm_alpha must be 0 or more, got -1",
    "finetune={steps: 1, weighting: gradnorm, compile: true}": "finetune.compile: gradnorm takes a gradient for each",
    "finetune={steps: 1, weighting: gradnorm, precision: fp16}": "finetune.precision: gradnorm's gradients vanish",
    "finetune.task_weights={sal: 0}": "finetune.task_weights.sal must be greater than 0, got 0",
    "finetune.lr_scales={stem: -1}": "finetune.lr_scales.stem must be greater than 0, got -1",
    "finetune.lr_scales={norms: 1}": "finetune.lr_scales",
    "finetune.lora={rank: 0}": "finetune.lora: lora.rank must be greater than 0",
    "finetune.crops=often": "finetune.crops",
    "finetune.crops=fresh": "finetune.crops: no stored map knows fresh views; set finetune.alpha to 0, targets to onl",
    "student.head=heavy": "student.head",
    "student.lora={rank: 0}": "student.lora: lora.rank must be greater than 0",
    "student.lora={layers: []}": "student.lora: lora.layers: expected one or more of qkv, proj, fc1, fc2",
    "student.lora={layers: [head]}": "student.lora.layers",
}


@pytest.mark.parametrize("override", REFUSED)
def test_what_makes_no_sense_is_refused_by_its_key(tmp_path: Path, override: str) -> None:
    with pytest.raises(RecipeError) as caught:
        tiny_recipe(tmp_path, [override], only="sak")
    assert REFUSED[override] in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["student.freeze=stem", "finetune.lora={}"],
            r"finetune\.lora: student\.freeze: stem trains nothing of the st",
        ),
        (
            ["student.freeze=distilled", "finetune.lora={}"],
            r"finetune\.lora: student\.freeze: distilled trains nothing",
        ),
        (
            ["student.freeze=distilled", "finetune.weighting=gradnorm"],
            r"finetune\.weighting: gradnorm looks at weights",
        ),
        (
            ["student.freeze=stem", "student.paths=none", "finetune.weighting=gradnorm"],
            r"finetune\.weighting: gradnorm looks at weights .* student\.freeze: stem trains none",
        ),
        (
            ["student.paths=frozen", "distill=null", "finetune.alpha=0", "finetune.weighting=gradnorm"],
            r"student\.paths: frozen teachers share no trained weights between tasks",
        ),
        (
            ["finetune.crops=fresh", "finetune.alpha=0", "data.finetune.views=2"],
            r"data\.finetune\.views and on_error me",
        ),
        (
            ["finetune.crops=fresh", "finetune.alpha=0", "data.finetune.on_error=skip"],
            r"finetune\.crops: fresh stores n",
        ),
    ],
)
def test_options_that_rule_each_other_out_are_refused(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        tiny_recipe(tmp_path, overrides, only="sak")


def test_low_rank_updates_without_stage_1_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"student\.lora: it is of stage 1, and there is no distill"):
        tiny_recipe(tmp_path, ["distill=null", "finetune.alpha=0", "student.lora={}"], only="sak")


def test_a_named_normalization_is_its_numbers() -> None:
    half, imagenet = ((0.5,) * 3, (0.5,) * 3), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    for name, stem, expected in (
        *((None, "vit_small_patch16_384", imagenet), ("imagenet", "vit_small_patch16_384", imagenet)),
        *(("half", "vit_small_patch16_384", half), ("native", "vit_small_patch16_384", half)),
        ("native", "vit_base_patch14_dinov2", imagenet),
    ):
        found = StudentConfig(stem=stem, normalization=name)  # type: ignore[arg-type]
        assert (found.mean, found.std) == expected
        assert dataclasses.replace(found) == found
