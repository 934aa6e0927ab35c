"""Fixtures of several packages. Heavy imports are inside them, so that tests of the store load no torch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from pipeline.recipes import Recipe

__all__ = ["Finished", "finished", "no_teacher"]

# The same examples in every run: what passed once passes for everybody. `--hypothesis-profile explore` draws new ones;
# what it finds goes into the test as an example.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("explore", derandomize=False, deadline=None)
settings.load_profile("repeatable")


class Finished:
    """The tiny recipe, all stages of all runs done; read only. ``fresh`` shares its store, not its results."""

    def __init__(self, root: Path) -> None:
        from tests.tiny_recipe import run_stages, tiny_recipe

        self.root = root
        self.recipe = tiny_recipe(root)
        run_stages(self.recipe)

    def fresh(self, out: Path, *overrides: str, only: str = "sak") -> Recipe:
        """The recipe with another output folder, overrides, and one of its runs."""
        from tests.tiny_recipe import tiny_recipe

        return tiny_recipe(self.root, [f"out={out}", *overrides], only=only)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """See ``Finished``."""
    return Finished(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def no_teacher(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Every way to a teacher's network raises; so does what is returned."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a teacher was built")

    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in ("sak", "pipeline") and hasattr(module, "load_teacher"):
            monkeypatch.setattr(module, "load_teacher", refuse)
    monkeypatch.setattr("sak.teachers.model._build", refuse)
    return refuse
