"""Plans of the tiny recipe, before and after it is extracted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pipeline import trials, viewsets
from pipeline.budgets import BudgetError, require_budgets
from pipeline.config import Study
from pipeline.errors import PipelineError
from pipeline.planning import Stage, loader_memory
from pipeline.recipes import recipe_from_mapping
from pipeline.report.quantities import bytes_text
from pipeline.resources import Free
from pipeline.runs import substudies
from pipeline.stages.extract import extract
from pipeline.stages.plan import Planned, PlanOptions, plan_extract, plan_json, plan_lines, plan_tables
from pipeline.stages.run import prepare
from sak.errors import SakError
from sak.weights import save_weights
from store.order import image_permutation
from store.store import Store
from tests.conftest import Finished
from tests.tiny_recipe import files_of, tiny_mapping, tiny_recipe, tree_digests

STAGE1 = ("data.eval=null", "finetune=null", "runs={sak: {}}", "baselines=[]")
COUNTED, TRIED = PlanOptions(calibrate=False), PlanOptions(seconds=0.02)


def studies(root: Path, *overrides: str) -> list[tuple[str, Study]]:
    recipe = tiny_recipe(root, overrides)
    return [labelled for plan in recipe.runs for labelled in substudies(plan)]


@pytest.fixture
def copy(finished: Finished, tmp_path: Path) -> Path:
    """A folder with the finished store."""
    shutil.copytree(finished.root / "store", tmp_path / "store")
    return tmp_path


def columns(planned: Planned) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = plan_json(planned)["columns"]
    return found


def test_a_store_that_is_not_there_lacks_everything_and_is_not_made(tmp_path: Path) -> None:
    planned = plan_extract(studies(tmp_path), options=TRIED._replace(images_per_s=100))
    assert list(tmp_path.iterdir()) == []
    found = plan_json(planned)
    assert json.loads(json.dumps(found)) == found
    assert [(item["rows_missing"], item["rows"]) for item in found["views"]] == [(22, 22), (12, 12), (6, 6)]
    # Six columns, however many runs read them: 4 levels of 24 channels on 4 x 4, stored in single precision.
    assert [(item["teacher"], item["rows_missing"]) for item in found["columns"]] == [
        (name, rows) for rows in (22, 12, 6) for name in ("second", "first")
    ]
    for item in found["columns"]:
        assert item["native_bytes"] == 2 * 4 * 24 * 16 * item["rows"]
        assert (item["bytes"], item["basis"]) == (2 * item["native_bytes"], "counted")
        assert item["forward_seconds_per_row"] > 0
        assert item["seconds"] > 0
    distill, finetune = found["reading"]
    assert (distill["run"], finetune["run"]) == ("sak", "sak"), "other runs read no teacher"
    image = found["views"][0]["image_bytes_per_row"]
    assert distill["bytes_per_row"] == pytest.approx(2 * 4 * 4 * 24 * 16 + image, abs=0.2)
    assert distill["bytes_per_second"] == pytest.approx(100 * distill["bytes_per_row"], rel=1e-3)
    assert found["refused"] is None
    assert found["payback"]["unit"] == "s"
    # All three view sets, against 6 x 4 and 5 x 3 images: about 40 of 39 forwards, and the codec.
    assert 0.5 < found["payback"]["runs"] < 20


def test_what_is_printed_names_every_view_set_and_teacher(tmp_path: Path) -> None:
    planned = plan_extract(studies(tmp_path), options=COUNTED)
    missing, reading = plan_tables(planned)
    assert missing.row_count == 3 * (1 + 2) + 1
    assert reading.row_count == 2
    lines = "\n".join(plan_lines(planned))
    assert "time: not known; no calibration was asked for" in lines
    assert "in multiply-adds" in lines
    assert "give --disk-mb-s" in lines


def test_a_finished_store_lacks_nothing_and_stays_as_it_is(finished: Finished) -> None:
    before = tree_digests(finished.root / "store")
    planned = plan_extract([("sak", finished.recipe.runs[0].study)], options=TRIED)
    assert tree_digests(finished.root / "store") == before
    assert planned.plan.done
    found = plan_json(planned)
    assert (found["totals"]["feature_bytes"], found["totals"]["seconds_columns"]) == (0, 0)
    assert {item["basis"] for item in found["columns"]} == {"stored"}
    assert "time: nothing is missing" in plan_lines(planned)


def test_only_rows_of_missing_parts_are_counted(copy: Path) -> None:
    store = Store.open(copy / "store")
    (name,) = [name for name in store.view_set_names() if "unlabeled" in name]
    (column,) = [column for column in store.columns(name) if column.spec.teacher == "first"]
    column.discard(2)  # 22 images in shards of 8: the last holds 6
    stored = column.commits.require([0])[0]
    found = columns(plan_extract(studies(copy), options=COUNTED))
    assert [item["rows_missing"] for item in found] == [0, 6, 0, 0, 0, 0]
    assert found[1]["bytes"] == pytest.approx(6 * stored.size / 8, rel=0.05)


def test_views_that_are_appended_are_missing(copy: Path) -> None:
    found = plan_json(plan_extract(studies(copy, "data.distill.views=3"), options=COUNTED))
    assert (found["views"][0]["rows_missing"], found["views"][0]["rows"]) == (44, 66)
    assert [item["rows_missing"] for item in found["columns"][:2]] == [44, 44]


def test_a_column_of_an_exact_one_runs_no_teacher(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a teacher was loaded")

    monkeypatch.setattr(trials, "load_teacher", refuse)
    found = columns(plan_extract(studies(copy, "extract.codec=int8"), options=TRIED))
    assert all(item["from_exact_column"] for item in found)
    assert all(item["seconds"] > 0 for item in found)


def test_an_exact_column_of_the_same_plan_saves_the_teacher_too(tmp_path: Path) -> None:
    more = "runs.sak.set={extract.codec: fp32}", "runs.no-distill.set={extract.codec: int8}"
    planned = plan_extract(studies(tmp_path, *more), options=COUNTED)
    found = {(item["teacher"], item["codec"]["name"]): item["from_exact_column"] for item in columns(planned)}
    assert found["first", "int8"]
    assert not found["first", "fp32"]


def test_a_fitted_codec_is_measured_where_the_weights_are_and_nominal_else(tmp_path: Path) -> None:
    overrides = ["extract.codec={name: klt, error: 0.3, rows: 8}", *STAGE1]
    assert {item["basis"] for item in columns(plan_extract(studies(tmp_path, *overrides), options=COUNTED))} == {
        "nominal"
    }
    overrides.append("teachers.first={timm: vit_tiny_patch16_224, checkpoint: gone.pth, overrides: {img_size: 32,"
                     " patch_size: 8, embed_dim: 24, depth: 4, num_heads: 2}}")  # fmt: skip
    second, first = columns(plan_extract(studies(tmp_path, *overrides), options=TRIED))
    assert (second["basis"], second["weights"]) == ("measured", "here")
    assert 0 < second["bytes"] < second["native_bytes"]
    assert (first["basis"], first["weights"], first["rows_missing"]) == ("nominal", "missing", 22)
    assert first["forward_seconds_per_row"] > 0, "of random weights"


def test_weights_that_are_here_and_do_not_fit_are_told_as_extraction_would(tmp_path: Path) -> None:
    save_weights(tmp_path / "other.safetensors", {"other": torch.zeros(1)}, metadata={})
    shape = "overrides: {img_size: 32, patch_size: 8, embed_dim: 24, depth: 4, num_heads: 2}"
    teacher = f"{{timm: vit_tiny_patch16_224, checkpoint: {tmp_path}/other.safetensors, {shape}}}"
    found = studies(tmp_path, *STAGE1, f"teachers.first={teacher}")
    assert columns(plan_extract(found, options=COUNTED))[1]["weights"] == "here"
    with pytest.raises(SakError, match=r"other\.safetensors"):
        plan_extract(found, options=TRIED)


def test_workers_share_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.survey.processors", lambda: 4)
    engine = plan_extract(studies(tmp_path, "extract.engine=dask", "extract.workers=3"), options=COUNTED).plan.engine
    assert (engine.processes, engine.drawing, engine.threads) == (3, 3, 1)
    alone = plan_extract(studies(tmp_path, "threads=null"), options=COUNTED).plan.engine
    assert (alone.processes, alone.threads) == (1, 0)


def test_a_loader_is_counted_as_the_recipe_asks_for_it(tmp_path: Path) -> None:
    usual = loader_memory(plan_extract(studies(tmp_path), options=COUNTED).plan)
    asked = studies(tmp_path, "loader={ahead_bytes: 50_000_000, readers: 1}")
    assert loader_memory(plan_extract(asked, options=COUNTED).plan) > usual + 50_000_000


def test_the_disk_or_the_student_is_the_limit(tmp_path: Path) -> None:
    slow = plan_lines(plan_extract(studies(tmp_path), options=PlanOptions(False, 2000, 1.0)))
    fast = plan_lines(plan_extract(studies(tmp_path), options=PlanOptions(False, 2000, 10_000)))
    assert any("the disk is the limit of sak's" in line and "(given)" in line for line in slow)
    assert any("students at 2000 images/s are the limit" in line for line in fast)


@pytest.mark.parametrize("options", [PlanOptions(False, 0.0), PlanOptions(False, 1.0, -1.0)])
def test_rates_are_positive(tmp_path: Path, options: PlanOptions) -> None:
    with pytest.raises(PipelineError, match="expected more than 0"):
        plan_extract(studies(tmp_path), options=options)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        (
            "extract.max_disk=100kB",
            ("of disk in ", "over the 100 kB of extract.max_disk: take a smaller codec", "grid"),
        ),
        ("extract.max_memory=1MB", ("of memory, ", "over the 1.00 MB of extract.max_memory: lower ", "extract.batch")),
    ],
)
def test_a_plan_over_its_budget_is_refused_before_and_after_a_trial(
    tmp_path: Path, override: str, parts: tuple[str, ...]
) -> None:
    found = plan_extract(studies(tmp_path, override), options=COUNTED)
    assert found.refusal is not None
    assert "\n" not in found.refusal
    recipe = tiny_recipe(tmp_path, [override])
    with pytest.raises(BudgetError) as caught:
        prepare(recipe, recipe.runs, stages=("extract",))
    for part in parts:
        assert part in found.refusal
        assert part in str(caught.value)
    assert not (tmp_path / "store").exists()
    prepare(recipe, recipe.runs, stages=("distill",))


def test_a_full_disk_is_found_before_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.budgets.free_space", lambda root: Free(1000, 1))
    with pytest.raises(BudgetError, match=r"over the 1.00 kB free on its disk"):
        require_budgets(studies(tmp_path))
    require_budgets(studies(tmp_path, "extract.max_disk=1GB"))


def test_a_finished_store_is_within_any_budget(finished: Finished, no_teacher: Callable[..., Any]) -> None:
    tight = ["extract.max_disk=1", "extract.max_memory=1"]
    recipe = finished.fresh(finished.root / "tight", *tight)
    require_budgets([("sak", recipe.runs[0].study)])
    with pytest.raises(AssertionError, match="a teacher was built"):
        require_budgets([("sak", finished.fresh(finished.root / "tight", "data.distill.views=2").runs[0].study)])


def test_the_planned_bytes_are_an_upper_bound_of_what_is_written(tmp_path: Path) -> None:
    found = studies(tmp_path, "extract.codec=int8", *STAGE1)
    planned = plan_extract(found, options=COUNTED).plan.disk(str(tmp_path / "store"))
    extract([study for _, study in found])
    written = sum((tmp_path / "store" / name).stat().st_size for name in files_of(tmp_path / "store"))
    assert written < 2 * planned
    assert planned < 2 * written


def test_memory_is_of_every_worker_and_time_of_every_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.survey.processors", lambda: 2)
    dask = "extract.engine=dask", "extract.workers=8"
    planned = plan_extract(studies(tmp_path, *dask, "extract.max_memory=1MB"), options=COUNTED)
    assert (planned.plan.engine.processes, planned.plan.engine.workers) == (2, 8)
    assert "of memory in 8 processes" in (planned.refusal or "")
    assert bytes_text(8 * planned.memory.total) in (planned.refusal or "")


def test_the_plan_counts_drawn_teachers_and_whole_batches(tmp_path: Path) -> None:
    epoch = ["distill.steps=null", "distill.epochs=1.0", "distill.batch=8", *STAGE1]

    def stage(*more: str) -> Stage:
        (found,) = plan_extract(studies(tmp_path, *epoch, *more), options=COUNTED).plan.stages
        return found

    assert (stage().images, stage().share) == (24, 1.0)
    assert stage("distill.drop_last=true").images == 16
    assert stage("distill.teachers_per_step=1").share == 0.5


def test_batches_of_auto_are_planned_for_a_row(tmp_path: Path) -> None:
    auto = plan_extract(studies(tmp_path, "extract.batch=auto"), options=COUNTED)
    whole = plan_extract(studies(tmp_path, "extract.batch=32"), options=COUNTED)
    assert auto.memory.maps < auto.whole.maps == whole.memory.maps
    assert any("1 view (" in line and "of 32; extract.batch=auto" in line for line in plan_lines(auto))


def test_rows_without_an_image_are_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(6):
        Image.new("RGB", (40, 40), (40 * index, 0, 0)).save(folder / f"{index}.png")
    source = {"name": "imagefolder", "root": str(folder), "split": "all"}
    data = {"source": source, "view": {"kind": "full", "size": 32}, "on_error": "skip", "max_bad": 0.9}
    mapping = tiny_mapping(tmp_path) | {"data": {"distill": data}, "finetune": None, "runs": {}, "baselines": []}
    study = recipe_from_mapping(mapping, overrides=["extract.batch=1"]).runs[0].study
    for index in image_permutation(6, order_seed=0)[:5]:  # all but the last row
        (folder / f"{index}.png").write_bytes(b"no image")
    planned = plan_extract([("one", study)], options=TRIED)
    assert all(item.speed and item.speed.forward > 0 for item in planned.plan.columns.values())
    for path in folder.iterdir():
        path.write_bytes(b"no image")
    viewsets.cached_source.cache_clear()
    with pytest.raises(PipelineError, match="have no image; mend the source"):
        plan_extract([("one", study)], options=TRIED)
