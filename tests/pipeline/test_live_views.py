"""Views that are drawn while training are the stored ones, and crops of stored maps are what slow code would cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import feature_losses
from pipeline.errors import RecipeError
from pipeline.feature_crop import CroppedTargets, crop_boxes, seen_targets
from pipeline.live_views import CroppedViews, FreshViews, seen_views
from pipeline.loader import Loader, load_samples
from pipeline.needs import needs
from pipeline.preflight import preflight
from pipeline.recipes import Recipe
from pipeline.stages.distill import distill
from pipeline.stages.run import run_stage
from pipeline.targets import target_source
from pipeline.tracking import read_metrics
from pipeline.views import apply_view, draw_view
from pipeline.viewsets import complete_views
from sak.grids import crop_map
from tests.conftest import Finished
from tests.pipeline.stages.test_distill import _Stop, stop_at
from tests.tiny_recipe import tiny_recipe

CPU = torch.device("cpu")
EPOCHS, STEPS = 3, 15  # 22 images in batches of 4
FRESH = ("distill.targets=online", "distill.crops=fresh")
CROPS = "distill.crops={kind: random_resized_crop, size: 32, area: [0.3, 1.0]}"


@pytest.fixture(scope="module")
def viewed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose store holds one view of each image for each epoch, exactly."""
    root = tmp_path_factory.mktemp("views")
    recipe = tiny_recipe(root, [f"data.distill.views={EPOCHS}"], only="sak")
    run_stage("extract", recipe, recipe.runs)
    return root


def trained(recipe: Recipe) -> Path:
    return distill(recipe.runs[0].study, recipe.out, label="test").path


def losses(root: Path, out: Path, *overrides: str) -> list[dict[str, float]]:
    steps = ["distill.steps=15", "finetune=null", f"out={out}"]
    return read_metrics(trained(tiny_recipe(root, [*steps, *overrides], only="sak")) / "metrics.jsonl")


def test_stored_views_and_fresh_ones_give_the_same_losses(viewed: Path, tmp_path: Path) -> None:
    views = f"data.distill.views={EPOCHS}"
    fresh = losses(viewed, tmp_path / "fresh", *FRESH)
    assert len(fresh) == STEPS
    assert fresh == losses(viewed, tmp_path / "online", views, "distill.targets=online")
    for one, other in zip(fresh, losses(viewed, tmp_path / "cached", views), strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    one_view = losses(viewed, tmp_path / "one", "distill.targets=online")
    assert [one == other for one, other in zip(fresh, one_view, strict=True)] == [True] * 5 + [False] * 10


def test_views_beyond_the_epochs_change_nothing(viewed: Path, tmp_path: Path) -> None:
    two = losses(viewed, tmp_path / "two", "data.distill.views=2", "distill.steps=10")
    assert two == losses(viewed, tmp_path / "three", f"data.distill.views={EPOCHS}", "distill.steps=10")


def test_fresh_views_need_no_store(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, [*FRESH, "finetune=null", "data.eval=null"], only="sak")
    assert needs(recipe.runs[0].study) == ()
    assert (trained(recipe) / "student.safetensors").exists()
    assert not list((tmp_path / "store").glob("*/*"))


def test_fresh_views_are_the_stored_rows(viewed: Path) -> None:
    study = tiny_recipe(viewed, [f"data.distill.views={EPOCHS}"], only="sak").runs[0].study
    data: Any = study.data.distill
    stored, fresh = complete_views(study, data, labels=False), FreshViews(data, epochs=EPOCHS)
    assert (fresh.name, fresh.spec) == (stored.name, stored.spec)
    np.testing.assert_array_equal(fresh.unusable_rows(), stored.unusable_rows())
    rows = [65, 0, 23, 44, 21]
    for one, other in zip(fresh.load(rows), load_samples(stored, rows, tasks=()), strict=True):
        assert one.key == other.key
        np.testing.assert_array_equal(one.image, other.image)


def cropped(root: Path, *overrides: str) -> tuple[Any, Any, Any, Any]:
    """Study, stored views, crops of them and their targets."""
    study = tiny_recipe(root, [CROPS, *overrides], only="sak").runs[0].study
    stored = complete_views(study, study.data.distill, labels=False)  # type: ignore[arg-type]
    assert study.distill is not None
    assert study.data.distill is not None
    views = seen_views(study.distill, study.data.distill, stored, steps=STEPS)
    return study, stored, views, seen_targets(study, stored, views, device=CPU)


@pytest.mark.parametrize("views", [1, 2])
def test_a_batch_of_crops_is_what_slow_code_would_cut(viewed: Path, views: int) -> None:
    study, stored, crops, targets = cropped(viewed, f"data.distill.views={views}")
    assert isinstance(crops, CroppedViews)
    assert isinstance(targets, CroppedTargets)
    assert crops.spec.views == EPOCHS
    whole = target_source(study, stored, kind="cached", device=CPU)
    flips = set()
    for batch in Loader(crops, batch=4, seed=0, targets=targets).batches(0, STEPS):
        found = targets.targets(batch.encoded, batch.pixels)
        for index, row in enumerate(batch.rows.tolist()):
            epoch, image = divmod(row, 22)
            assert epoch == batch.step // 5
            held = epoch % views * 22 + image
            (sample,) = load_samples(stored, [held], tasks=())
            draw = draw_view(study.distill.crops, seed=0, key=sample.key, view=epoch, sample=sample)
            flips.add(draw.flip)
            seen = torch.from_numpy(apply_view(draw, sample).image).permute(2, 0, 1)
            torch.testing.assert_close(batch.pixels[index], seen, rtol=0, atol=0)
            boxes = crop_boxes([draw])
            maps = whole.targets(whole.read(np.array([held])), seen[None])
            for teacher, levels in maps.items():
                for level, feat in enumerate(levels):
                    want = crop_map(feat, boxes.boxes_B4, (feat.shape[-2], feat.shape[-1]), flips_B=boxes.flips_B)
                    torch.testing.assert_close(found[teacher][level][index], want[0])
    assert flips == {False, True}


def test_crops_of_everything_are_the_stored_views(viewed: Path, tmp_path: Path) -> None:
    whole = "distill.crops={kind: random_resized_crop, size: 32, area: [1, 1], ratio: [1, 1], flip: 0}"
    crop = losses(viewed, tmp_path / "crop", whole)
    for one, other in zip(crop, losses(viewed, tmp_path / "plain"), strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_live_teachers_see_the_crops(viewed: Path, tmp_path: Path) -> None:
    cached, live = (
        losses(viewed, tmp_path / "a", CROPS),
        losses(viewed, tmp_path / "b", CROPS, "distill.targets=online"),
    )
    assert cached[0]["total"] != pytest.approx(live[0]["total"], rel=1e-3)
    assert cached[0]["total"] == pytest.approx(live[0]["total"], rel=0.5)


def test_crops_of_another_size_make_a_student_of_that_size(viewed: Path, tmp_path: Path) -> None:
    options = ["distill.crops={kind: random_resized_crop, size: 16}", "finetune=null", f"out={tmp_path}"]
    recipe = tiny_recipe(viewed, options, only="sak")
    with pytest.raises(RecipeError, match=r"data\.eval\.view\.size: expected \(16, 16\)"):
        preflight([("sak", recipe.runs[0].study)], tmp_path, stages=("distill", "eval"))
    assert (trained(recipe) / "student.safetensors").exists()


@pytest.mark.parametrize("options", [FRESH, (CROPS,)])
def test_stopped_and_resumed_equals_uninterrupted(
    viewed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    whole = losses(viewed, tmp_path / "whole", *options)
    with monkeypatch.context() as patch:
        stop_at(patch, feature_losses, "distill_loss", 9)
        with pytest.raises(_Stop):
            losses(viewed, tmp_path / "cut", *options)
    assert losses(viewed, tmp_path / "cut", *options) == whole


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["distill.crops=fresh"], "only live teachers know them; set targets to online"),
        ([*FRESH, "data.distill.views=2"], "drop them"),
        ([*FRESH, "data.distill.on_error=skip"], "drop them"),
        (["distill.crops={kind: full, size: 32}"], "expected random_resized_crop, got full"),
        (["distill.crops={kind: random_resized_crop, size: 32, photometric: true}"], "no stored map can follow"),
        (["distill.crops=often"], "crops.*'fresh'"),
    ],
)
def test_crops_that_cannot_be_had_are_refused(tmp_path: Path, overrides: list[str], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        tiny_recipe(tmp_path, overrides, only="sak")


def test_the_source_of_fresh_views_is_looked_for_beforehand(finished: Finished, tmp_path: Path) -> None:
    options = [*FRESH, "data.distill.source={name: imagefolder, root: nowhere}"]
    study = finished.fresh(tmp_path, *options).runs[0].study
    with pytest.raises(RecipeError, match=r"data\.distill\.source: nowhere"):
        preflight([("sak", study)], tmp_path, stages=("distill",))
