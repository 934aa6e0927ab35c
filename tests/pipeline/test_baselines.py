"""The baselines differ from SAK's own recipe in what makes them baselines, and in nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.identity import plain
from pipeline.needs import needs
from pipeline.recipes import Recipe, load_recipe

FOLDER = Path(__file__).resolve().parents[2] / "workflows"
# What a baseline may change of the study, key by key.
ABOUT = {"distill", "finetune.alpha", "student.paths", "student.teachers", "student.freeze"}
KINDS = {"sak", "plain", "multi-task", "single-task", "frozen-all", "frozen-plain"}


def recipe_of(name: str) -> Recipe:
    return load_recipe(FOLDER / f"{name}.yaml")


def differing(one: object, other: object, path: str = "") -> set[str]:
    """Dotted keys in which two studies differ; a stage that one of them has not is one key."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return {key for name in one for key in differing(one[name], other[name], f"{path}.{name}".lstrip("."))}
    return set() if one == other else {path}


@pytest.mark.parametrize("data", ["pascal", "nyud"])
def test_the_papers_baselines_change_nothing_else(data: str) -> None:
    recipe = recipe_of(f"baselines_{data}")
    published = plain(recipe_of(f"sak_bb_{data}").study)
    runs = {plan.name: plan for plan in recipe.runs}
    assert runs.keys() == KINDS | {f"{kind}-{name}" for kind in ("only", "frozen") for name in recipe.study.teachers}
    assert plain(runs["sak"].study) == published
    for name, plan in runs.items():
        assert differing(plain(plan.study), published) <= ABOUT, name
    assert [name for name, plan in runs.items() if plan.split_tasks] == ["single-task"]
    assert recipe.baselines == ("single-task",)


@pytest.mark.parametrize("layout", ["pascal", "nyud"])
def test_those_of_the_study_change_nothing_else(layout: str) -> None:
    recipe = recipe_of("study_scenes")
    runs = {plan.name: plan.study for plan in recipe.runs}
    own = plain(runs[f"sak-{layout}"])
    for kind in KINDS - {"sak"} | {f"{kind}-{name}" for kind in ("only", "frozen") for name in recipe.study.teachers}:
        assert differing(plain(runs[f"{kind}-{layout}"]), own) <= ABOUT, kind
    assert {name.rpartition("-")[0] for name in runs if name.endswith("-pascal")} == {
        name.rpartition("-")[0] for name in runs if name.endswith("-nyud")
    }


def test_what_each_reads_of_the_teachers() -> None:
    found = {
        plan.name: {need.purpose: tuple(need.teachers) for need in needs(plan.study)}
        for plan in recipe_of("baselines_pascal").runs
    }
    every = ("dinov2", "clip", "sam")
    assert found["sak"] == found["plain"] == {"distill": every, "finetune": every, "eval": every}
    assert found["multi-task"] == found["single-task"] == {"finetune": (), "eval": ()}
    assert found["only-sam"] == dict.fromkeys(("distill", "finetune", "eval"), ("sam",))
    assert found["frozen-sam"] == dict.fromkeys(("finetune", "eval"), ("sam",))
    assert found["frozen-all"] == dict.fromkeys(("finetune", "eval"), every)
    assert found["frozen-plain"] == {"distill": every, "finetune": (), "eval": ()}
