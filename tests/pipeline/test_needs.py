from __future__ import annotations

from pathlib import Path

from pipeline.needs import needs
from tests.tiny_recipe import tiny_recipe


def test_needs_follow_the_stages(tmp_path: Path) -> None:
    def purposes(*overrides: str) -> dict[str, tuple[bool, tuple[str, ...]]]:
        study = tiny_recipe(tmp_path, overrides, only="sak").runs[0].study
        return {need.purpose: (need.labels, tuple(need.teachers)) for need in needs(study)}

    both = ("second", "first")
    assert purposes() == {"distill": (False, both), "finetune": (True, both), "eval": (True, both)}
    assert purposes("finetune.alpha=0") == {"distill": (False, both), "finetune": (True, ()), "eval": (True, ())}
    assert purposes("distill=null", "finetune.alpha=0") == {"finetune": (True, ()), "eval": (True, ())}
    assert purposes("finetune=null") == {"distill": (False, both), "eval": (False, both)}
    assert purposes("distill.targets=online", "student.teachers=[second]") == {
        "distill": (False, ()),
        "finetune": (True, ("second",)),
        "eval": (True, ("second",)),
    }
    assert purposes("finetune.targets=online")["eval"] == (True, ())
    assert purposes("eval.held_out_loss=never") == {
        "distill": (False, both),
        "finetune": (True, both),
        "eval": (True, ()),
    }


def test_scores_may_have_their_own_codec(tmp_path: Path) -> None:
    overrides = ["extract.codec=int8", "teachers.first.codec=fp16", "eval.codec=fp32"]
    study = tiny_recipe(tmp_path, overrides, only="sak").runs[0].study
    codecs = {need.purpose: dict(need.teachers) for need in needs(study)}
    assert codecs["distill"] == codecs["finetune"] == {"second": "int8", "first": "fp16"}
    assert codecs["eval"] == {"second": "fp32", "first": "fp32"}
    assert study.scored.scored == study.scored
