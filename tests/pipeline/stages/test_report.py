from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import NotDoneError
from pipeline.identity import evaluate_dir
from pipeline.recipes import Recipe
from pipeline.report.data import ReportData
from pipeline.runs import substudies
from pipeline.stagedir import read_json, write_json
from pipeline.stages import report as module
from pipeline.stages.report import report
from tests.conftest import Finished
from tests.tiny_recipe import run_stages, tiny_recipe


def test_one_page_of_all_runs_from_files_alone(
    finished: Finished, tmp_path: Path, no_teacher: Callable[..., Any]
) -> None:
    path = tmp_path / "page.html"
    results = report(finished.recipe, path)
    assert [row.name for row in results] == ["sak", "no-distill", "single-task"]
    page = path.read_text(encoding="utf-8")
    for part in ("sak", "no-distill", "single-task", "mIoU", "first", "second", "vit_tiny_patch16_224", "torch"):
        assert part in page
    # Self-contained: nothing is fetched when it is opened.
    for reference in ('src="http', "src='http", "@import", 'rel="stylesheet"'):
        assert reference not in page


def test_the_page_against_an_earlier_evaluation_and_a_published_one(finished: Finished, tmp_path: Path) -> None:
    shutil.copytree(finished.recipe.out, tmp_path / "out")
    found: Any = read_json(evaluate_dir(finished.recipe.runs[1].study, finished.recipe.out).path / "metrics.json")
    write_json(tmp_path / "last-week.json", found)
    baselines = (str(tmp_path / "last-week.json"), "paper-vitb")
    recipe = dataclasses.replace(finished.recipe, out=tmp_path / "out", baselines=baselines)
    rows = report(recipe, tmp_path / "page.html")
    assert [list(row.delta) for row in rows] == [["last-week"], ["last-week"], []]
    assert rows[1].delta["last-week"] == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "sak against last-week, task by task" in page
    assert f"Δm vs last-week: metrics stored in {tmp_path}/last-week.json." in page
    assert "sak has no Δm vs paper-vitb: tasks differ" in page
    assert "All metrics, and each class" in page
    assert '<th scope="row">under11.25 ↑</th>' in page


def test_the_page_of_a_distillation_alone(finished: Finished, tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, ["finetune=null", "data.finetune=null", "distill.steps=2"], only="sak")
    run_stages(recipe)
    (row,) = report(recipe, tmp_path / "page.html")
    assert row.dataset == ""
    assert f"sak: held-out distillation {row.metrics['distill']['loss']:.4f}." in (tmp_path / "page.html").read_text(
        "utf-8"
    )


def test_an_unfinished_recipe_has_no_page(finished: Finished, tmp_path: Path) -> None:
    with pytest.raises(NotDoneError, match="distill is not done"):
        report(finished.fresh(tmp_path / "out"), tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_curves_are_losses_and_the_cosine_to_each_teacher() -> None:
    lines = [
        {"step": 1, "a_level1": 2.0, "cosine/a_level1": 0.25, "cosine/a_level2": 0.75, "total": 3.0, "scale/a_0": 1.0},
        {"step": 2, "b_level1": 1.0, "cosine/b_level1": 0.5, "total": 2.0, "lr": 0.1, "grad_norm": 1.0},
    ]
    found = {name: values.tolist() for name, values in module._series(lines).items()}
    assert found == {
        "total": [3.0, 2.0],
        "a_level1": [2.0, pytest.approx(math.nan, nan_ok=True)],
        "b_level1": [pytest.approx(math.nan, nan_ok=True), 1.0],
        "cosine to a": [0.5, pytest.approx(math.nan, nan_ok=True)],
        "cosine to b": [pytest.approx(math.nan, nan_ok=True), 0.5],
    }


@pytest.fixture
def copied(finished: Finished, tmp_path: Path) -> Recipe:
    """The finished recipe over a copy of its results, to be changed."""
    shutil.copytree(finished.recipe.out, tmp_path / "out")
    return tiny_recipe(finished.root, [f"out={tmp_path}/out"])


def data_of(recipe: Recipe, folder: Path, patch: pytest.MonkeyPatch) -> ReportData:
    """What the page of a recipe shows."""
    shown: list[ReportData] = []
    patch.setattr(module, "write_report", lambda data, _: shown.append(data))
    report(recipe, folder / "page.html")
    return shown[0]


def gallery_of(recipe: Recipe, run: int, part: int = 0) -> Path:
    _, study = substudies(recipe.runs[run])[part]
    return evaluate_dir(study, recipe.out).path / "gallery.npz"


def arrays_of(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def reordered(path: Path, order: list[int]) -> None:
    """Rewrite a gallery with its samples in another order, or with fewer."""
    np.savez_compressed(path, **{name: array[order] for name, array in arrays_of(path).items()})


def test_predictions_stand_below_their_own_image(
    copied: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for run, part in ((1, 0), (2, 1)):
        reordered(gallery_of(copied, run, part), [1, 0])
    gallery = data_of(copied, tmp_path, monkeypatch).gallery
    first, second = arrays_of(gallery_of(copied, 0)), arrays_of(gallery_of(copied, 1))
    assert not np.array_equal(second["image"][0], second["image"][1])
    assert [sample.key for sample in gallery] == first["key"].tolist() == second["key"].tolist()[::-1]
    for index, sample in enumerate(gallery):
        assert np.array_equal(sample.image, first["image"][index])
        assert np.array_equal(sample.labels["depth"], second["label/depth"][1 - index])
        assert np.array_equal(sample.predictions["no-distill"]["depth"], second["pred/depth"][1 - index])
        assert {*sample.predictions["single-task"]} == {"semseg", "depth"}
        assert len(sample.features) == 4


def test_only_samples_of_every_run_are_shown(copied: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = arrays_of(gallery_of(copied, 0))["key"][1]
    reordered(gallery_of(copied, 2, 1), [1])
    assert [sample.key for sample in data_of(copied, tmp_path, monkeypatch).gallery] == [key]


def test_another_crop_of_an_image_is_another_sample(
    copied: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = arrays_of(gallery_of(copied, 1))
    arrays["image"][0] ^= 1
    np.savez_compressed(gallery_of(copied, 1), **arrays)
    assert [sample.key for sample in data_of(copied, tmp_path, monkeypatch).gallery] == [arrays["key"][1]]


def test_speeds_are_measured_or_left_out(copied: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = gallery_of(copied, 0).with_name("stage.json")
    write_json(path, read_json(path) | {"seconds": 0.0})
    costs = data_of(copied, tmp_path, monkeypatch).costs
    assert [(cost.stage, cost.run) for cost in costs if cost.rate == "–"] == [("eval", "sak")]
    assert {cost.stage for cost in costs if cost.seconds > 0} == {"extract", "distill", "finetune", "eval"}
    assert all(float(cost.rate.split()[0]) < 1e6 for cost in costs if cost.rate != "–")


def test_device_and_versions_are_those_of_the_runs(
    finished: Finished, copied: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = sorted((tmp_path / "out").glob("*/stage.json"))
    for path in paths:
        write_json(path, read_json(path) | {"device": "Engine A", "versions": {"torch": "1.0", "timm": "0.1"}})
    # No machine has this device, and none is needed: the page is made of records.
    recipe = tiny_recipe(finished.root, [f"out={tmp_path}/out", "device=cuda:63"])
    data = data_of(recipe, tmp_path, monkeypatch)
    assert (data.created, dict(data.versions)) == ("Engine A", {"torch": "1.0", "timm": "0.1"})
    assert not any("Engine" in note or "changed" in note for note in data.notes)
    write_json(paths[0], read_json(paths[0]) | {"device": "Engine B", "versions": {"torch": "2.0", "timm": "0.1"}})
    data = data_of(recipe, tmp_path, monkeypatch)
    assert sorted(data.created.split(" / ")) == ["Engine A", "Engine B"]
    assert sorted(data.versions["torch"].split(" / ")) == ["1.0", "2.0"]
    assert any("the device, torch changed between stages" in note for note in data.notes)
