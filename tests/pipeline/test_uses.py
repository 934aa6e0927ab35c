from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipeline import uses as module
from pipeline.errors import PipelineError
from pipeline.identity import distill_dir, evaluate_dir, finetune_dir
from pipeline.recipes import Recipe
from pipeline.stages import distill as distilling
from pipeline.stages.distill import distill
from pipeline.stages.finetune import finetune
from pipeline.uses import USES_FILE
from store.column import Column
from store.errors import StoreError
from store.store import Store
from store.uses import Use, all_uses
from store.verify import verify
from tests.conftest import Finished
from tests.tiny_recipe import tiny_recipe


@pytest.fixture
def recipe(finished: Finished, tmp_path: Path) -> Recipe:
    """The run ``sak`` over a store of its own; nothing is trained."""
    shutil.copytree(finished.root / "store", tmp_path / "store")
    shutil.rmtree(tmp_path / "store/uses")
    return tiny_recipe(tmp_path, only="sak")


def columns(recipe: Recipe, kind: str) -> list[Column]:
    store = Store.open(recipe.runs[0].study.store)
    return [column for item in store.view_sets() if kind in item.name for column in store.columns(item.name)]


def change(column: Column) -> None:
    """Make part 1 again with other bytes, as a teacher on another device may."""
    column.discard(1)
    levels = column.read_part(0)
    column.write_part(1, levels, keys=column.view_set.keys(1))


def stop_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(distilling, "train", refuse)


def begin(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Start stage 1 and stop it before its first step; its folder."""
    study = recipe.runs[0].study
    with monkeypatch.context() as patch:
        stop_training(patch)
        with pytest.raises(KeyboardInterrupt):
            distill(study, recipe.out, label="test")
    return distill_dir(study, recipe.out).path


def test_every_stage_is_on_record_with_what_it_read(finished: Finished) -> None:
    study, out = finished.recipe.runs[0].study, finished.recipe.out
    store = Store.open(study.store)
    uses = {use.experiment: use for use in all_uses(store.root) if Path(use.folder).parent == out}
    for stage, kind in (
        (distill_dir(study, out), "unlabeled"),
        (finetune_dir(study, out), "train"),
        (evaluate_dir(study, out), "val"),
    ):
        use = uses[stage.path.name]
        (view_set,) = [item for item in store.view_sets() if kind in item.name]
        owners = [view_set, *store.columns(view_set.name)]
        assert set(use.commits) == {owner.folder for owner in owners}
        for owner in owners:
            parts = range(view_set.spec.parts)
            assert use.commits[owner.folder] == {part: owner.commits.load(part).digest() for part in parts}
        own = Use.parse((stage.path / USES_FILE).read_bytes(), where="")
        assert (own.experiment, own.commits) == (use.experiment, use.commits)
        recorded = stage.record()["uses"]
        assert isinstance(recorded, dict)
        assert {owner: item["parts"] for owner, item in recorded.items()} == {
            owner: len(parts) for owner, parts in use.commits.items()
        }
    assert verify(store) == []


def test_it_is_on_record_before_the_first_step(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    path = begin(recipe, monkeypatch)
    (use,) = all_uses(Store.open(recipe.runs[0].study.store).root)
    assert (use.experiment, use.folder) == (path.name, str(path.absolute()))


def test_a_resumed_stage_refuses_other_bytes_and_takes_the_same(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, finished: Finished
) -> None:
    path = begin(recipe, monkeypatch)
    column = columns(recipe, "unlabeled")[0]
    change(column)
    with pytest.raises(StoreError) as caught:
        distill(recipe.runs[0].study, recipe.out, label="test")
    said = str(caught.value)
    assert said.startswith(f"{path}: refuses to mix: {column.folder} part 1 holds other bytes than it read before")
    assert said.endswith(f"or delete {path} to train anew")
    column = columns(recipe, "unlabeled")[0]
    column.discard(1)
    (original,) = [
        item for item in Store.open(finished.root / "store").columns(column.view_set.name) if item.name == column.name
    ]
    stats = original.commits.load(1).stats
    column.write_part(1, original.read_part(1), keys=column.view_set.keys(1), stats=stats)
    assert distill(recipe.runs[0].study, recipe.out, label="test").done()


def test_the_next_stage_refuses_what_the_one_before_did_not_read(recipe: Recipe) -> None:
    study = recipe.runs[0].study
    stage = distill(study, recipe.out, label="test")
    change(columns(recipe, "unlabeled")[1])
    with pytest.raises(StoreError, match=rf"^{stage.path}: refuses to mix: columns/scenes-unlabeled"):
        finetune(study, recipe.out, label="test")
    assert not finetune_dir(study, recipe.out).done()


def test_a_damaged_record_of_a_stage_is_said(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    path = begin(recipe, monkeypatch)
    content = json.loads((path / USES_FILE).read_text())
    content["body"]["commits"] = {}
    (path / USES_FILE).write_text(json.dumps(content))
    with pytest.raises(PipelineError, match=r"uses.json: cannot be read .* delete its folder and rerun"):
        distill(recipe.runs[0].study, recipe.out, label="test")


def test_a_store_that_cannot_be_written_is_read_all_the_same(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        try:
            raise PermissionError(13, "Permission denied")
        except PermissionError as error:
            raise StoreError("uses: cannot be written (Permission denied)") from error

    monkeypatch.setattr(module, "save_use", refuse)
    path = begin(recipe, monkeypatch)
    assert (path / USES_FILE).exists()
    said = " ".join("".join(capsys.readouterr()).split())
    assert "not on record as a user of the store, so sak store gc will not know of it" in said
