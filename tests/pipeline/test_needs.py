from __future__ import annotations

from pathlib import Path

from pipeline.needs import needs
from tests.tiny_recipe import tiny_recipe


def test_needs_follow_the_stages(tmp_path: Path) -> None:
    def purposes(*overrides: str) -> dict[str, tuple[bool, tuple[str, ...]]]:
        study = tiny_recipe(tmp_path, overrides, only="sak").runs[0].study
        return {need.purpose: (need.labels, need.teachers) for need in needs(study)}

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
