from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config_eval import EvalConfig
from pipeline.errors import RecipeError
from tests.tiny_recipe import tiny_recipe


@pytest.mark.parametrize(
    ("key", "value"),
    [("absent_classes", "drop"), ("held_out_loss", "yes"), ("resolution", "half"), ("boundary", "F"), ("save", "")],
)
def test_a_choice_that_is_none_is_refused(key: str, value: str) -> None:
    with pytest.raises(ValueError, match=key):
        EvalConfig(**{key: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (["eval.held_out_loss=never", "finetune=null"], "leaves nothing to score where there is no stage 2"),
        (
            ["eval.resolution=image", "data.eval.view.kind=center"],
            "for data.eval.view of kind full, got center",
        ),
        (["eval.resolution=image", "data.eval.view.kind=padded"], "padded views are at the image's own size already"),
    ],
)
def test_what_means_nothing_together_is_refused(tmp_path: Path, overrides: list[str], match: str) -> None:
    with pytest.raises(RecipeError, match=match):
        tiny_recipe(tmp_path, overrides, only="sak")


@pytest.mark.parametrize(
    ("overrides", "targets"),
    [
        ([], "cached"),
        (["finetune.alpha=0"], None),
        (["finetune.targets=online"], None),
        (["finetune.targets=online", "eval.held_out_loss=always"], "online"),
        (["finetune=null", "distill.targets=online"], "online"),
        (["eval.held_out_loss=never"], None),
        (["eval.held_out_loss=always", "finetune.alpha=0"], None),
    ],
)
def test_where_scoring_takes_its_targets(tmp_path: Path, overrides: list[str], targets: str | None) -> None:
    assert tiny_recipe(tmp_path, overrides, only="sak").runs[0].study.scored_targets == targets
