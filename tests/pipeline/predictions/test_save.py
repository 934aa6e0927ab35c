from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

import cli
from pipeline.config import Study
from pipeline.distributed import Ranks
from pipeline.errors import DataError, PipelineError
from pipeline.identity import evaluate_dir
from pipeline.loader import load_samples
from pipeline.predictions import saver as module
from pipeline.predictions.formats import encode_map, read_map
from pipeline.predictions.save import save_predictions
from pipeline.predictions.saver import Saver
from pipeline.recipes import Recipe
from pipeline.stagedir import read_json
from pipeline.stages.boundary import Folders, score_folders
from pipeline.stages.evaluate import evaluate
from pipeline.students import Normalise
from pipeline.tensors import to_tensors
from pipeline.trained import trained_to_score
from pipeline.viewsets import complete_views
from store.rows import IndexRow
from store.viewset import ViewSet
from tests.conftest import Finished
from tests.tiny_recipe import files_of, run_stages, tree_digests

TASKS = ("semseg", "human_parts", "sal", "normals", "edge", "depth")
QUICK = ("distill=null", "finetune.alpha=0", "finetune.steps=1")


class _Stop(Exception):
    pass


def recipe_in(finished: Finished, out: Path, *overrides: str) -> Recipe:
    return finished.fresh(out, *QUICK, *overrides)


def scored(recipe: Recipe) -> Path:
    """Train if that is not done, score, and give the score's folder."""
    run_stages(recipe, ["finetune", "eval"])
    return evaluate_dir(recipe.runs[0].study, recipe.out).path


def bytes_of(folder: Path) -> dict[str, str]:
    return {name: digest for name, (digest, _) in tree_digests(folder).items()}


def views(study: Study) -> ViewSet:
    assert study.data.eval is not None
    return complete_views(study, study.data.eval, labels=True)


@pytest.fixture(scope="module")
def saved(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    """Predictions that were written while the network was scored; read only."""
    recipe = recipe_in(finished, tmp_path_factory.mktemp("saved"), "eval.save=true", "eval.boundary=odsF")
    return recipe, scored(recipe) / "predictions"


def test_every_map_of_every_image_is_what_the_network_says(saved: tuple[Recipe, Path]) -> None:
    recipe, folder = saved
    study = recipe.runs[0].study
    view_set = views(study)
    student = trained_to_score(study, recipe.out, device=torch.device("cpu")).student
    normalise = Normalise(mean=study.student.mean, std=study.student.std)
    rows = view_set.usable_rows().tolist()
    wanted = {f"{task}/{row.key}.png" for row in view_set.read_rows(rows) for task in TASKS}
    assert {*files_of(folder)} == wanted | {"predictions.json", "sheets/0001.jpg"}
    with torch.inference_mode():
        for row in rows:
            (sample,) = load_samples(view_set, [row], tasks=())
            output = student(normalise(to_tensors([sample]).pixels), with_aligned=False).tasks
            for task in TASKS:
                with Image.open(folder / task / f"{sample.key}.png") as image:
                    difference = np.array(image).astype(int) - encode_map(task, output[task][0])
                assert np.abs(difference).max() <= (0 if task in ("semseg", "human_parts") else 1), task


def test_the_record_tells_how_to_read_them(saved: tuple[Recipe, Path]) -> None:
    record: Any = read_json(saved[1] / "predictions.json")
    assert {*record["tasks"]} == {*TASKS}
    assert "16-bit millimetres" in record["tasks"]["depth"]["format"]
    assert record["tasks"]["semseg"]["classes"][3] == "person"
    assert record["trained"].startswith("finetune-")


def test_the_boundary_folder_is_scored_as_it_is(saved: tuple[Recipe, Path], tmp_path: Path) -> None:
    """With the counts of the evaluation itself."""
    recipe, folder = saved
    view_set = views(recipe.runs[0].study)
    (tmp_path / "labels" / "val").mkdir(parents=True)  # keys of scenes begin with their split
    for sample in load_samples(view_set, view_set.usable_rows().tolist(), tasks=["edge"]):
        Image.fromarray(sample.labels["edge"]).save(tmp_path / "labels" / f"{sample.key}.png")
    folders = Folders(predictions=folder / "edge" / "val", labels=tmp_path / "labels" / "val")
    record: Any = read_json(folder.parent / "stage.json")
    found = score_folders(
        folders, out=tmp_path / "out", protocol="sak", max_dist=record["boundary"]["max_dist"], workers=1
    )
    metrics: Any = read_json(folder.parent / "metrics.json")
    assert 100 * found.scores.odsF == pytest.approx(metrics["edge"]["odsF"], abs=1e-9)


def test_what_was_scored_before_is_saved_without_scoring_it_again(
    finished: Finished, saved: tuple[Recipe, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = recipe_in(finished, tmp_path, "eval.boundary=odsF")
    before = tree_digests(scored(plain))
    asked = recipe_in(finished, tmp_path, "eval.boundary=odsF", f"eval.save={tmp_path}/maps")
    folder = scored(asked)
    assert tree_digests(folder) == before
    said = " ".join(capsys.readouterr().err.split())
    assert "eval is done" in said
    assert f"predictions of 6 images saved in {tmp_path}/maps/sak" in said
    assert bytes_of(tmp_path / "maps" / "sak") == bytes_of(saved[1])
    # Once more: nothing is run, nothing is written.
    again = tree_digests(tmp_path / "maps")
    run_stages(asked, ["eval"])
    assert tree_digests(tmp_path / "maps") == again
    assert "are there already" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("files", [1, 13])
def test_stopped_and_resumed_gives_the_same_files(
    finished: Finished, saved: tuple[Recipe, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    recipe = recipe_in(finished, tmp_path, "eval.boundary=odsF", "eval.save=true")
    run_stages(recipe, ["finetune"])
    real, count = module.write_whole, 0

    def counted(path: Path, data: bytes) -> None:
        nonlocal count
        count += 1
        if count > files:
            raise _Stop
        real(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_whole", counted)
        with pytest.raises(_Stop):
            scored(recipe)
    folder = scored(recipe) / "predictions"
    assert bytes_of(folder) == bytes_of(saved[1])


def test_a_folder_of_another_network_or_of_other_files_is_refused(finished: Finished, tmp_path: Path) -> None:
    save = f"eval.save={tmp_path}/maps"
    scored(recipe_in(finished, tmp_path / "one", save))
    with pytest.raises(PipelineError, match=r"maps/sak: holds other predictions \(their trained differ\)"):
        scored(recipe_in(finished, tmp_path / "other", save, "seed=1"))
    (tmp_path / "mine" / "sak").mkdir(parents=True)
    (tmp_path / "mine" / "sak" / "thesis.txt").touch()
    with pytest.raises(PipelineError, match="mine/sak: holds other files than predictions"):
        scored(recipe_in(finished, tmp_path / "one", f"eval.save={tmp_path}/mine"))


def test_a_key_that_leaves_the_folder_is_refused_before_anything_is_computed(
    saved: tuple[Recipe, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    view_set = views(saved[0].runs[0].study)
    real = view_set.index(0)[0]
    row = IndexRow(**{name: getattr(real, name) for name in real.__dataclass_fields__ if name != "key"}, key="../../x")
    monkeypatch.setattr(view_set, "index", lambda _: (row,))
    with pytest.raises(DataError, match=r"image key '../../x'.*the part '\.\.'"):
        Saver(tmp_path / "maps", view_set, tasks=TASKS, rows=[0])
    assert not (tmp_path / "maps").exists()


def test_a_student_without_tasks_has_nothing_to_save(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = [f"data.{name}.source.images=4" for name in ("distill", "eval")]
    alone = ["finetune=null", "distill.steps=1", "distill.batch=2", "distill.targets=online", f"store={tmp_path}/store"]
    recipe = finished.fresh(tmp_path, *few, *alone, "eval.save=true")
    run_stages(recipe, ["extract", "distill", "eval"])
    assert "without tasks has no predictions" in " ".join(capsys.readouterr().err.split())
    assert not [*tmp_path.glob("eval-*/predictions")]


def test_saving_is_no_part_of_a_scores_identity(finished: Finished, tmp_path: Path) -> None:
    folders = {
        evaluate_dir(recipe_in(finished, tmp_path, *save).runs[0].study, tmp_path).path
        for save in ([], ["eval.save=true"], ["eval.save=maps"])
    }
    assert len(folders) == 1


def test_maps_have_the_size_of_the_image_not_of_the_view(finished: Finished, tmp_path: Path) -> None:
    """Views of 32 x 32 of scenes that were rendered at 24 x 40."""
    recipe = recipe_in(
        finished, tmp_path, "eval.save=true", "data.eval.source.size=[24, 40]", f"store={tmp_path}/store"
    )
    run_stages(recipe, ["extract"])
    folder = scored(recipe) / "predictions"
    for path in folder.glob("*/*.png"):
        assert read_map(path.parent.name, path).shape[:2] == (24, 40)
    study = recipe.runs[0].study
    assert evaluate(study, recipe.out, label="sak").done()


def test_by_command(saved: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(dict(saved[0].resolved), sort_keys=False), encoding="utf-8")
    done = CliRunner().invoke(cli.app, ["eval", str(recipe), "--save-to", str(tmp_path / "my maps")])
    assert done.exit_code == 0, done.output
    assert bytes_of(tmp_path / "my maps" / "sak") == bytes_of(saved[1])


def test_heads_on_frozen_teachers_are_run_again_on_their_stored_maps(finished: Finished, tmp_path: Path) -> None:
    frozen = ["student.paths=frozen"]
    scored(recipe_in(finished, tmp_path, *frozen))
    while_scoring = scored(recipe_in(finished, tmp_path / "other", *frozen, "eval.save=true")) / "predictions"
    scored(recipe_in(finished, tmp_path, *frozen, f"eval.save={tmp_path}/maps"))
    assert bytes_of(tmp_path / "maps" / "sak") == bytes_of(while_scoring)


def test_heads_on_maps_that_are_stored_otherwise_predict_otherwise(finished: Finished, tmp_path: Path) -> None:
    save = ["student.paths=frozen", f"store={tmp_path}/store", f"eval.save={tmp_path}/maps"]
    scored_after_extraction = recipe_in(finished, tmp_path, *save)
    run_stages(scored_after_extraction, ["extract"])
    scored(scored_after_extraction)
    coarse = recipe_in(finished, tmp_path, *save, "eval.codec=int8")
    run_stages(coarse, ["extract"])
    with pytest.raises(PipelineError, match=r"maps/sak: holds other predictions \(their maps differ\)"):
        scored(coarse)


def test_of_what_was_scored_before_each_rank_saves_its_share(
    finished: Finished, saved: tuple[Recipe, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three batches: the second of two ranks has two, and leaves the only sheet to the first."""
    plain = recipe_in(finished, tmp_path, "eval.boundary=odsF", "eval.batch=2")
    scored(plain)
    study = recipe_in(finished, tmp_path, "eval.boundary=odsF", "eval.batch=2", "eval.save=true").runs[0].study
    stage = evaluate_dir(study, plain.out)
    monkeypatch.setattr(Ranks, "total", lambda _, value: value)
    for rank, files in ((1, 4 * 6 + 1), (0, 6 * 6 + 2)):
        save_predictions(study, plain.out, stage, label="sak", ranks=Ranks(rank=rank, world=2))
        assert len(files_of(stage.path / "predictions")) == files
    assert files_of(stage.path / "predictions") == files_of(saved[1])
