from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from pipeline.boundary.counts import read_counts
from pipeline.errors import NotDoneError, PipelineError
from pipeline.identity import evaluate_dir, finetune_dir
from pipeline.loader import load_samples
from pipeline.runs import substudies
from pipeline.stagedir import read_json
from pipeline.stages import evaluate as module
from pipeline.stages.distill import distill
from pipeline.stages.evaluate import decode_predictions, evaluate
from pipeline.stages.finetune import finetune
from pipeline.stages.report import report
from pipeline.students import Normalise
from pipeline.tensors import to_tensors
from pipeline.trained import trained_student
from sak.boundary import image_counts
from sak.metrics import TaskMetrics
from store.store import Store
from tests.conftest import Finished
from tests.tiny_recipe import run_stages, tiny_recipe, tree_digests

CPU = torch.device("cpu")


def study_of(finished: Finished, run: int = 0) -> Any:
    return finished.recipe.runs[run].study


def scored(finished: Finished, run: int = 0) -> Path:
    return evaluate_dir(study_of(finished, run), finished.recipe.out).path


def refuse(word: str) -> None:
    raise AssertionError(f"{word} is no JSON")


def test_metrics_are_those_of_the_student_alone(finished: Finished) -> None:
    """Computed again here, image by image, from the stored weights."""
    study = study_of(finished)
    student, _ = trained_student(finetune_dir(study, finished.recipe.out), device=CPU)
    view_set = next(item for item in Store.open(study.store).view_sets() if "val" in item.name)
    tasks = tuple(student.spec.tasks)
    metrics = TaskMetrics("scenes", tasks)
    normalise = Normalise(mean=study.student.mean, std=study.student.std)
    for row in view_set.usable_rows().tolist():
        pixels, labels = to_tensors(load_samples(view_set, [row], tasks=tasks))
        metrics.update(student(normalise(pixels), with_aligned=False).tasks, labels)
    found: Any = read_json(scored(finished) / "metrics.json")
    assert found.keys() == {*tasks, "distill"}
    for task, values in metrics.compute().items():
        assert found[task] == pytest.approx(values, rel=1e-5), task
    assert found["distill"]["loss"] > 0


def test_the_scored_network_has_the_experts_of_the_trained_one(finished: Finished) -> None:
    """In the same order: a router's weights mean nothing else."""
    study = study_of(finished)
    student, _ = trained_student(finetune_dir(study, finished.recipe.out), device=CPU)
    assert tuple(student.spec.teacher_widths) == study.student_teachers == ("second", "first")


def test_the_batch_size_changes_no_score(finished: Finished, tmp_path: Path) -> None:
    recipe = finished.fresh(tmp_path, "eval.batch=5")
    study = recipe.runs[0].study
    distill(study, tmp_path, label="test")
    finetune(study, tmp_path, label="test")
    path = evaluate(study, tmp_path, label="test").path
    assert path.name != scored(finished).name
    one: Any = read_json(path / "metrics.json")
    other: Any = read_json(scored(finished) / "metrics.json")
    for task in other:
        assert one[task] == pytest.approx(other[task], rel=1e-5), task


def test_router_weights_are_a_mean_over_images(finished: Finished) -> None:
    record: Any = evaluate_dir(study_of(finished), finished.recipe.out).record()
    assert record["experts"] == ["stem", "second", "first"]
    assert record["images"] == 6
    routers: Any = read_json(scored(finished) / "routers.json")
    assert len(routers) == 6
    for weights in routers.values():
        assert np.array(weights).shape == (4, 3)
        assert np.allclose(np.sum(weights, axis=1), 1)
    (_, single), *_ = substudies(finished.recipe.runs[2])
    plain_student = evaluate_dir(single, finished.recipe.out)
    assert read_json(plain_student.path / "routers.json") == {}


def test_gallery_holds_what_the_report_shows(finished: Finished) -> None:
    with np.load(scored(finished) / "gallery.npz", allow_pickle=False) as file:
        gallery = {name: file[name] for name in file.files}
    assert gallery["image"].shape == (2, 32, 32, 3)
    for task in ("semseg", "human_parts", "sal", "edge", "depth"):
        assert gallery[f"label/{task}"].shape == gallery[f"pred/{task}"].shape == (2, 32, 32)
    assert gallery["pred/normals"].shape == (2, 32, 32, 3)
    for level in range(4):
        for teacher in ("first", "second"):
            assert gallery[f"teacher/{teacher}/{level}"].shape == (2, 24, 4, 4)
            assert gallery[f"student/{teacher}/{level}"].shape == (2, 24, 4, 4)
    with np.load(scored(finished, 1) / "gallery.npz", allow_pickle=False) as file:
        assert not [name for name in file.files if name.startswith(("teacher/", "student/"))]


def test_evaluation_builds_no_teacher(finished: Finished, tmp_path: Path, no_teacher: Callable[..., Any]) -> None:
    recipe = finished.fresh(tmp_path, "distill.steps=1", "finetune.steps=1")
    run_stages(recipe, ["distill", "finetune", "eval"])
    (path,) = tmp_path.glob("eval-*/metrics.json")
    assert "distill" in read_json(path)


def test_distillation_alone_is_scored_by_its_held_out_loss(finished: Finished, tmp_path: Path) -> None:
    """Its views carry no labels, so they are other views than those of a study with tasks."""
    recipe = tiny_recipe(tmp_path, ["finetune=null", "data.finetune=null"], only="sak")
    run_stages(recipe)
    (path,) = (tmp_path / "out").glob("eval-*/metrics.json")
    found: Any = read_json(path)
    assert found.keys() == {"distill"}
    assert found["distill"]["loss"] > 0


@pytest.mark.parametrize("metric", ["odsF", "odsF-mtinet"])
def test_boundaries_by_odsf_from_counts_that_are_kept(finished: Finished, tmp_path: Path, metric: str) -> None:
    """Computed again here, from the stored weights; nothing else changes."""
    changes = ["distill=null", "finetune.alpha=0", f"eval.boundary={metric}", "finetune.tasks=[edge,depth]"]
    recipe = finished.fresh(tmp_path, *changes)
    run_stages(recipe, ["finetune", "eval"])
    study = recipe.runs[0].study
    stage = evaluate_dir(study, tmp_path)
    student, _ = trained_student(finetune_dir(study, tmp_path), device=CPU)
    view_set = next(item for item in Store.open(study.store).view_sets() if "val" in item.name)
    normalise = Normalise(mean=study.student.mean, std=study.student.std)
    table = read_counts(stage.path / "boundary.parquet")
    protocol = metric.removeprefix("odsF-") if "-" in metric else "sak"
    assert table.rules == (protocol, 0.0075)
    for row in view_set.usable_rows().tolist():
        (sample,) = load_samples(view_set, [row], tasks=("edge",))
        logits = student(normalise(to_tensors([sample]).pixels), with_aligned=False).tasks["edge"]
        prediction = (logits.detach()[0, 0].sigmoid() * 255).to(torch.uint8).numpy()
        counts = image_counts(prediction, sample.labels["edge"] == 1, max_dist=0.0075, protocol=protocol)
        np.testing.assert_array_equal(table.images[sample.key].counts_T4, counts)
    found: Any = read_json(stage.path / "metrics.json")
    wanted = table.scores()
    assert found["edge"][metric] == pytest.approx(100 * wanted.odsF)
    assert found["edge"].keys() >= {"maxF", "loss", metric}
    record: Any = stage.record()
    assert record["boundary"]["protocol"] == protocol
    assert record["boundary"]["truth"] == "stored boundary labels"
    (row,) = report(recipe, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert f"protocol {protocol}, tolerance 0.0075 of the diagonal, against stored boundary labels, on full" in page
    assert "Precision over recall of boundaries" in page
    assert row.metrics["edge"][metric] == found["edge"][metric]


def test_scoring_as_ever_is_the_folder_of_before(finished: Finished, tmp_path: Path) -> None:
    values = {
        "boundary": ("pixel", "odsF", "odsF-invpt"),
        "absent_classes": ("zero", "ignore"),
        "held_out_loss": ("auto", "always", "never"),
        "resolution": ("view", "image"),
    }
    before = evaluate_dir(finished.fresh(tmp_path).runs[0].study, tmp_path)
    assert {*cast("dict[str, Any]", before.inputs["eval"])} == {"batch", "gallery", "codec"}
    paths = {
        (key, value): evaluate_dir(finished.fresh(tmp_path, f"eval.{key}={value}").runs[0].study, tmp_path).path
        for key, choices in values.items()
        for value in choices
    }
    assert [paths[key, choices[0]] for key, choices in values.items()] == [before.path] * 4
    assert len({*paths.values()}) == 1 + 2 + 1 + 2 + 1


ALONE = ("distill=null", "finetune.alpha=0", "finetune.steps=1", "finetune.tasks=[semseg,depth]")


def scores_of(finished: Finished, out: Path, *overrides: str) -> dict[str, Any]:
    run_stages(finished.fresh(out, *ALONE, *overrides), ["finetune", "eval"])
    (path,) = out.glob("eval-*/metrics.json")
    found: dict[str, Any] = read_json(path)
    return found


def test_every_metric_and_class_is_named(finished: Finished, tmp_path: Path) -> None:
    found = scores_of(finished, tmp_path / "published")
    assert {*found["depth"]} == {"RMSE", "rel", "delta1", "delta2", "delta3"}
    classes = {name: value for name, value in found["semseg"].items() if name.startswith("IoU/")}
    assert len(classes) == 12
    seen = [value for value in classes.values() if value is not None]
    assert len(seen) < 12
    assert found["semseg"]["mIoU"] == pytest.approx(sum(seen) / 12)
    other = scores_of(finished, tmp_path / "right", "eval.absent_classes=ignore")
    assert other["semseg"] == {**found["semseg"], "mIoU": pytest.approx(sum(seen) / len(seen))}


def test_scores_at_the_images_own_size(finished: Finished, tmp_path: Path) -> None:
    """The tiny recipe's views are as large as its scenes, so that nothing changes but the folder."""
    found = scores_of(finished, tmp_path / "image", "eval.resolution=image", "eval.boundary=odsF")
    assert found == scores_of(finished, tmp_path / "view", "eval.boundary=odsF")


def test_live_teachers_are_built_for_a_loss_that_is_asked_for_alone(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []
    live = module.target_source
    monkeypatch.setattr(
        module, "target_source", lambda *args, **options: made.append(options) or live(*args, **options)
    )
    changes = ("distill=null", "finetune.steps=1", "finetune.tasks=[depth]")
    for wanted, kind, measured in (
        ("auto", "online", False),
        ("always", "online", True),
        ("never", "cached", False),
    ):
        out = tmp_path / f"{wanted}-{kind}"
        run_stages(
            finished.fresh(out, *changes, f"finetune.targets={kind}", f"eval.held_out_loss={wanted}"),
            ["finetune", "eval"],
        )
        (path,) = out.glob("eval-*/metrics.json")
        assert ("distill" in read_json(path)) == measured == bool(made), wanted
        made.clear()


def test_a_network_without_boundaries_counts_none(finished: Finished, tmp_path: Path) -> None:
    changes = ["distill=null", "finetune.alpha=0", "finetune.steps=1", "finetune.tasks=[depth]", "eval.boundary=odsF"]
    run_stages(finished.fresh(tmp_path, *changes), ["finetune", "eval"])
    (path,) = tmp_path.glob("eval-*/metrics.json")
    assert read_json(path).keys() == {"depth"}
    assert not (path.parent / "boundary.parquet").exists()


def test_a_gallery_of_none(finished: Finished, tmp_path: Path) -> None:
    recipe = finished.fresh(tmp_path, "eval.gallery=0", "distill=null", "finetune.alpha=0", "finetune.steps=1")
    run_stages(recipe, ["finetune", "eval"])
    (path,) = tmp_path.glob("eval-*/gallery.npz")
    with np.load(path, allow_pickle=False) as file:
        assert file.files == []


def test_an_unscored_metric_is_null(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.TaskMetrics, "compute", lambda _: {"depth": {"RMSE": float("nan")}})
    recipe = finished.fresh(tmp_path, "distill=null", "finetune.alpha=0", "finetune.steps=1", "finetune.tasks=[depth]")
    run_stages(recipe, ["finetune", "eval"])
    (path,) = tmp_path.glob("eval-*/metrics.json")
    assert json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse) == {"depth": {"RMSE": None}}


def test_a_finished_stage_does_nothing(
    finished: Finished, no_teacher: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "trained_to_score", no_teacher)
    before = tree_digests(finished.recipe.out)
    for plan in finished.recipe.runs[:2]:
        evaluate(plan.study, finished.recipe.out, label="test")
    assert tree_digests(finished.recipe.out) == before


def test_what_is_missing_is_said(finished: Finished, tmp_path: Path) -> None:
    def failing(match: str, *overrides: str) -> None:
        recipe = finished.fresh(tmp_path, *overrides)
        with pytest.raises(PipelineError, match=match):
            evaluate(recipe.runs[0].study, recipe.out, label="test")

    failing("eval needs data.eval", "data.eval=null")
    failing("eval needs a trained student", "distill=null", "finetune=null")
    with pytest.raises(NotDoneError, match=r"this stage is not done$"):
        evaluate(finished.fresh(tmp_path).runs[0].study, tmp_path, label="test")


def test_weights_that_changed_on_disk_are_refused(finished: Finished, tmp_path: Path) -> None:
    recipe = finished.fresh(tmp_path, "distill=null", "finetune.alpha=0", "finetune.steps=1")
    run_stages(recipe, ["finetune"])
    (path,) = tmp_path.glob("finetune-*/student.safetensors")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=str(path)):
        run_stages(recipe, ["eval"])


@pytest.mark.gpu
@pytest.mark.parametrize("override", ["distill.standardize=channel", "finetune.targets=online"])
def test_on_a_gpu_the_gallery_is_that_of_a_cpu(finished: Finished, tmp_path: Path, override: str) -> None:
    """Pixels, standards, live teachers and decoded maps all meet on the student's device."""
    found: list[dict[str, Any]] = []
    for device in ("cpu", "cuda"):
        changes = ("distill.steps=1", "finetune.steps=1", "eval.held_out_loss=always", override)
        recipe = finished.fresh(tmp_path / device, f"device={device}", *changes)
        run_stages(recipe, ["distill", "finetune", "eval"])
        with np.load(evaluate_dir(recipe.runs[0].study, recipe.out).path / "gallery.npz") as file:
            found.append({name: file[name] for name in file.files})
    assert found[0].keys() == found[1].keys() >= {"teacher/first/0", "student/first/0"}
    for name in (name for name in found[0] if name.startswith(("teacher/", "student/"))):
        np.testing.assert_allclose(found[0][name], found[1][name], rtol=0.05, atol=0.05, err_msg=name)


def test_predictions_as_maps() -> None:
    shown = decode_predictions(
        {
            "semseg": torch.tensor([0.0, 2.0, 1.0]).view(1, 3, 1, 1),
            "normals": torch.tensor([0.0, 0.0, 5.0]).view(1, 3, 1, 1),
            "sal": torch.tensor([0.0, 0.0]).view(1, 2, 1, 1),
            "edge": torch.zeros(1, 1, 1, 1),
            "depth": torch.full((1, 1, 1, 1), 7.0),
        }
    )
    assert shown["semseg"].tolist() == [[[1]]]
    assert shown["normals"].tolist() == [[[[0, 0, 1]]]]
    assert [float(shown[task].item()) for task in ("sal", "edge", "depth")] == [0.5, 0.5, 7.0]
    with pytest.raises(PipelineError, match="no way to show task 'poses'"):
        decode_predictions({"poses": torch.zeros(1, 1, 1, 1)})
