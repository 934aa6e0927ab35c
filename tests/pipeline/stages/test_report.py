from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import PipelineError
from pipeline.stages.report import report
from tests.conftest import Finished
from tests.tiny_recipe import HINT, run_stages, tiny_recipe


def test_one_page_of_all_runs_from_files_alone(
    finished: Finished, tmp_path: Path, no_teacher: Callable[..., Any]
) -> None:
    path = tmp_path / "page.html"
    results = report(finished.recipe, path, hint=HINT)
    assert [row.name for row in results] == ["sak", "no-distill", "single-task"]
    page = path.read_text(encoding="utf-8")
    for part in ("sak", "no-distill", "single-task", "mIoU", "first", "second", "vit_tiny_patch16_224", "torch"):
        assert part in page
    # Self-contained: nothing is fetched when it is opened.
    for reference in ('src="http', "src='http", "@import", 'rel="stylesheet"'):
        assert reference not in page


def test_the_page_of_a_distillation_alone(finished: Finished, tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, ["finetune=null", "data.finetune=null", "distill.steps=2"], only="sak")
    run_stages(recipe)
    (row,) = report(recipe, tmp_path / "page.html", hint=HINT)
    assert row.dataset == ""
    assert "held-out distillation loss" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_an_unfinished_recipe_has_no_page(finished: Finished, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=f"not done .*; run: {HINT}"):
        report(finished.fresh(tmp_path / "out"), tmp_path / "page.html", hint=HINT)
    assert not (tmp_path / "page.html").exists()
