"""Frozen teachers as feature extractors: heads trained on the maps of a store, through every stage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import PipelineError, RecipeError
from pipeline.identity import evaluate_dir, finetune_dir
from pipeline.loader import load_samples
from pipeline.needs import needs
from pipeline.preflight import preflight
from pipeline.recipes import Recipe
from pipeline.results import results_table
from pipeline.runs import substudies
from pipeline.stagedir import read_json
from pipeline.stages import finetune as module
from pipeline.stages.export import export
from pipeline.stages.report import report
from pipeline.targets import target_source
from pipeline.tensors import to_tensors
from pipeline.tracking import read_metrics
from pipeline.trained import trained_student
from pipeline.viewsets import complete_views
from sak.metrics import TaskMetrics
from sak.weights import load_weights
from tests.conftest import Finished
from tests.tiny_recipe import run_stages

FROZEN = ["distill=null", "finetune.alpha=0", "student.paths=frozen"]
CPU = torch.device("cpu")


def frozen(finished: Finished, out: Path, *overrides: str) -> Recipe:
    return finished.fresh(out, *FROZEN, *overrides)


def folder_of(recipe: Recipe) -> Path:
    return finetune_dir(recipe.runs[0].study, recipe.out).path


class _Stop(Exception):
    pass


def test_it_trains_and_scores_from_columns_alone(
    finished: Finished, tmp_path: Path, no_teacher: Callable[..., Any]
) -> None:
    recipe = frozen(finished, tmp_path, "finetune.steps=12", "finetune.lr=5e-3")
    run_stages(recipe)
    losses = read_metrics(folder_of(recipe) / "metrics.jsonl")
    assert {"semseg", "human_parts", "sal", "normals", "edge", "depth", "total"} < losses[0].keys()
    assert "distill" not in losses[0]
    assert np.mean([line["total"] for line in losses[-3:]]) < losses[0]["total"]
    (row,) = report(recipe, tmp_path / "page.html")
    assert row.metrics.keys() == {"semseg", "human_parts", "sal", "normals", "edge", "depth"}
    assert row.parameters == read_parameters(recipe)["total"]
    assert "semseg" in str([column.header for column in results_table([row]).columns])


def read_parameters(recipe: Recipe) -> dict[str, int]:
    record: Any = finetune_dir(recipe.runs[0].study, recipe.out).record()
    found: dict[str, int] = record["parameters"]
    return found


def test_its_scores_are_those_of_its_heads_on_the_stored_maps(finished: Finished, tmp_path: Path) -> None:
    recipe = frozen(finished, tmp_path, "finetune.tasks=[semseg,depth]")
    run_stages(recipe, ["finetune", "eval"])
    study = recipe.runs[0].study
    assert study.data.eval is not None
    view_set = complete_views(study, study.data.eval, labels=True)
    network, _ = trained_student(finetune_dir(study, tmp_path), device=CPU)
    source = target_source(study, view_set, kind="cached", device=CPU)
    rows = view_set.usable_rows()
    pixels, labels = to_tensors(load_samples(view_set, rows.tolist(), tasks=("semseg", "depth")))
    metrics = TaskMetrics("scenes", ("semseg", "depth"))
    metrics.update(network(source.targets(source.read(rows), pixels)).tasks, labels)
    found: Any = read_json(evaluate_dir(study, tmp_path).path / "metrics.json")
    for task, values in metrics.compute().items():
        assert found[task] == pytest.approx(values, rel=1e-5), task


def test_stopped_and_resumed_equals_uninterrupted(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = frozen(finished, tmp_path / "whole")
    run_stages(whole, ["finetune"])
    cut = frozen(finished, tmp_path / "cut")
    real, calls = module.task_losses, iter(range(100))

    def counted(*arguments: Any, **keywords: Any) -> Any:
        if next(calls) == 4:
            raise _Stop
        return real(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(module, "task_losses", counted)
        with pytest.raises(_Stop):
            run_stages(cut, ["finetune"])
    run_stages(cut, ["finetune"])
    assert folder_of(cut).name == folder_of(whole).name
    for name in ("metrics.jsonl", "student.safetensors"):
        assert (folder_of(cut) / name).read_bytes() == (folder_of(whole) / name).read_bytes(), name


def test_live_teachers_give_what_the_store_gives(finished: Finished, tmp_path: Path) -> None:
    states = []
    for kind in ("cached", "online"):
        recipe = frozen(finished, tmp_path / kind, f"finetune.targets={kind}", "finetune.steps=2")
        run_stages(recipe, ["finetune"])
        states.append(load_weights(folder_of(recipe) / "student.safetensors"))
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("option", ["student.head=light", "finetune.weighting=uncertainty", "finetune.crops=fresh"])
def test_options_of_stage_2_are_its_too(finished: Finished, tmp_path: Path, option: str) -> None:
    live = ["finetune.targets=online"] if option == "finetune.crops=fresh" else []
    recipe = frozen(finished, tmp_path, option, *live, "finetune.steps=2", "finetune.tasks=[depth,semseg]")
    run_stages(recipe, ["finetune", "eval"])
    found: Any = read_json(evaluate_dir(recipe.runs[0].study, tmp_path).path / "metrics.json")
    assert found.keys() == {"semseg", "depth"}


def test_its_folder_is_named_by_what_it_depends_on(finished: Finished, tmp_path: Path) -> None:
    def name(*overrides: str) -> str:
        return folder_of(frozen(finished, tmp_path, *overrides)).name

    bare = name()
    for same in ("student.down_ratio=2", "student.overrides.depth=5", "student.noise=pixel", "student.freeze=stem"):
        assert name(same) == bare, same
    others = [
        "seed=1",
        "student.head=light",
        "student.teachers=[first]",
        "student.overrides.embed_dim=48",
        "finetune.lr=1e-2",
    ]
    names = {name(other) for other in others} | {bare}
    assert len(names) == 1 + len(others)
    plain_student = finished.fresh(tmp_path, "distill=null", "finetune.alpha=0", "student.paths=none")
    assert folder_of(plain_student).name not in names


def test_one_teacher_or_all_of_them(finished: Finished, tmp_path: Path) -> None:
    widths = {}
    for chosen in ("[first]", "[first,second]"):
        recipe = frozen(finished, tmp_path, f"student.teachers={chosen}", "finetune.steps=1", "finetune.tasks=[depth]")
        run_stages(recipe, ["finetune"])
        state = load_weights(folder_of(recipe) / "student.safetensors")
        widths[chosen] = {key.split(".")[3] for key in state if key.startswith("readers.depth.norms.")}
        assert ("readers.depth.joins.0.weight" in state) == (chosen != "[first]")  # 24 is the heads' width, 48 is not
    assert widths == {"[first]": {"first"}, "[first,second]": {"first", "second"}}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["student.paths=frozen", "finetune.alpha=0"],
            r"frozen teachers learn nothing in stage 1; set distill to null",
        ),
        (["student.paths=frozen", "distill=null"], r"nothing to align to teachers; set finetune\.alpha to 0"),
        ([*FROZEN, "student.teachers=[]"], r"frozen needs at least one teacher"),
        ([*FROZEN, "finetune.crops=fresh"], r"finetune\.crops: no stored map knows fresh views"),
        ([*FROZEN, "finetune.lora={}"], r"share no trained weights between tasks; drop finetune\.lora"),
        ([*FROZEN, "finetune.weighting=gradnorm"], r"set finetune\.weighting to fixed or uncertainty"),
        ([*FROZEN, "student.paths=thawed"], r"student\.paths: .*'adapters', 'none' or 'frozen'"),
    ],
)
def test_what_makes_no_sense_is_refused(finished: Finished, tmp_path: Path, overrides: list[str], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        finished.fresh(tmp_path, *overrides)


def test_before_any_work_nothing_is_wrong_with_it(finished: Finished, tmp_path: Path) -> None:
    study = frozen(finished, tmp_path, "student.overrides.patch_size=7").runs[0].study  # of no stem that could be built
    preflight([("frozen", study)], tmp_path, stages=["finetune", "eval"])
    assert [sorted(need.teachers) for need in needs(study)] == [["first", "second"]] * 2


def test_one_network_a_task_reads_the_same_columns(finished: Finished, tmp_path: Path) -> None:
    (plan,) = frozen(finished, tmp_path, "finetune.tasks=[depth]", "finetune.steps=1").runs
    apart = plan._replace(split_tasks=True)
    assert [(label, study) for label, study in substudies(apart)] == [("sak/depth", plan.study)]


def test_its_heads_can_be_exported_and_a_stem_cannot(finished: Finished, tmp_path: Path) -> None:
    recipe = frozen(finished, tmp_path, "finetune.tasks=[depth]", "finetune.steps=1")
    run_stages(recipe, ["finetune"])
    study = recipe.runs[0].study
    assert export(study, tmp_path, tmp_path / "heads.safetensors", what="student", dtype="fp16") > 0
    with pytest.raises(PipelineError, match=r"trains heads alone and has none; export student$"):
        export(study, tmp_path, tmp_path / "stem.safetensors", what="stem", dtype="fp16")


def test_light_heads_learnt_weights_and_fresh_views_with_live_teachers(finished: Finished, tmp_path: Path) -> None:
    """What stage 2 offers beside a stem holds for heads on maps too."""
    options = ["student.head=light", "finetune.weighting=uncertainty", "finetune.lr_scales={heads: 2}"]
    cached = frozen(finished, tmp_path, *options, "finetune.steps=3")
    live = frozen(finished, tmp_path, *options, "finetune.steps=3", "finetune.crops=fresh", "finetune.targets=online")
    for recipe in (cached, live):
        run_stages(recipe, ["finetune"])
    one, other = (read_metrics(folder_of(recipe) / "metrics.jsonl") for recipe in (cached, live))
    for line, same in zip(one, other, strict=True):  # a first view is the stored one
        assert line == pytest.approx(same, rel=1e-4)
    assert one[-1]["weight/semseg"] != 1
    assert any(name.startswith("heads.edge.refine") for name in load_weights(folder_of(cached) / "student.safetensors"))
