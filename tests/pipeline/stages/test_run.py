from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import cli
from pipeline import trained
from pipeline.errors import PipelineError
from pipeline.stages import distill, extract, finetune
from pipeline.stages.run import STAGES, run_stage
from pipeline.trainer import Trainer
from tests.conftest import Finished
from tests.tiny_recipe import files_of, run_stages, tiny_mapping, tiny_recipe, tree_digests


def test_everything_again_does_no_work(
    finished: Finished, no_teacher: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in ((distill, "train"), (finetune, "train"), (extract, "make_part"), (trained, "build_student")):
        monkeypatch.setattr(module, name, no_teacher)
    before = tree_digests(finished.root)
    run_stages(finished.recipe)
    after = tree_digests(finished.root)
    # The recipe as it was run is written again, with the same bytes; nothing else is touched.
    assert {name for name in after if after[name] != before.get(name)} <= {"out/recipe.yaml"}
    assert {name: digest for name, (digest, _) in after.items()} == {
        name: digest for name, (digest, _) in before.items()
    }


def test_two_fresh_runs_agree_to_the_byte(finished: Finished, tmp_path: Path) -> None:
    run_stages(tiny_recipe(tmp_path))
    timed = ("stage.json", "seconds.json", "recipe.yaml", "results.json", "events.jsonl", "speeds.jsonl")
    for folder in ("out", "store"):
        one, other = finished.root / folder, tmp_path / folder
        made = [name for name in files_of(one) if "/costs/" not in name and not name.startswith("uses/")]
        names = [name for name in made if Path(name).name not in timed]
        assert sum(name.endswith("metrics.jsonl") for name in names) == (5 if folder == "out" else 0)
        for name in names:
            assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_an_unknown_stage_lists_those_there_are(finished: Finished) -> None:
    with pytest.raises(PipelineError, match="expected one of extract, distill, finetune, eval"):
        run_stage("fly", finished.recipe, finished.recipe.runs)


def test_stages_are_run_in_order() -> None:
    assert STAGES == ("extract", "distill", "finetune", "eval")


@pytest.mark.parametrize(
    ("error", "where"), [(torch.OutOfMemoryError("CUDA out of memory"), "the GPU"), (MemoryError(), "this machine")]
)
def test_want_of_memory_names_the_key_to_lower(
    error: Exception, where: str, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(distill, "train", fail)
    recipe = finished.fresh(tmp_path)
    with pytest.raises(PipelineError, match=rf"distill: {where} ran out of memory; lower distill\.batch"):
        run_stage("distill", recipe, recipe.runs)


def test_sigterm_in_the_last_step_of_a_run_begins_no_other(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a batch system sends it: what is done is kept, the command ends well, and the same one goes on."""
    mapping = tiny_mapping(finished.root) | {"out": str(tmp_path / "out"), "baselines": []}
    mapping["runs"] = {"first": {}, "second": {"set": {"seed": 1}}}
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump(mapping), encoding="utf-8")
    real, signals = Trainer.step, [signal.SIGTERM]

    def step(self: Trainer, number: int, *arguments: Any, **options: Any) -> Any:
        if number == self.plan.steps - 1 and signals:
            os.kill(os.getpid(), signals.pop())
        return real(self, number, *arguments, **options)

    monkeypatch.setattr(Trainer, "step", step)
    monkeypatch.setattr(sys, "argv", ["sak", "distill", str(path)])
    for made in (1, 2):
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0
        assert len(list((tmp_path / "out").glob("distill-*"))) == made
        assert ("sak: first: distill: stopped at step 6 of 6 as asked" in capsys.readouterr().err) == (made == 1)


def test_checkpoints_left_by_a_kill_at_the_end_are_tidied(finished: Finished, tmp_path: Path) -> None:
    recipe = finished.fresh(tmp_path)
    run_stages(recipe, ["distill", "finetune"])
    folders = [*recipe.out.glob("distill-*"), *recipe.out.glob("finetune-*")]
    assert len(folders) == 2
    assert not list(recipe.out.glob("*/checkpoints"))
    for folder in folders:
        (folder / "checkpoints").mkdir()
    run_stages(recipe, ["distill", "finetune"])
    assert not list(recipe.out.glob("*/checkpoints"))
