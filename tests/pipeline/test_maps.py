from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.recipes import Recipe
from pipeline.stages.extract import extract
from pipeline.targets import study_columns
from store.store import Store
from tests.tiny_recipe import tiny_recipe


def columns_of(recipe: Recipe, root: Path) -> dict[str, bytes]:
    """Files of every column that is not exact, by their place in the store."""
    study = recipe.runs[0].study
    extract([study])
    found = {}
    for view_set in Store.open(study.store).view_sets():
        for column in study_columns(study, view_set=view_set.spec).values():
            folder = root / "store" / column.folder
            found |= {
                f"{column.folder}/{path.relative_to(folder)}": path.read_bytes()
                for path in folder.rglob("*")
                if path.is_file() and "costs" not in path.parts
            }
    return found


@pytest.mark.parametrize("codec", ["int8", "{name: klt, rows: 6, error: 0.2}"])
def test_a_column_made_from_an_exact_one_is_the_one_a_teacher_makes(
    codec: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    live = columns_of(tiny_recipe(tmp_path / "live", [f"extract.codec={codec}"], only="sak"), tmp_path / "live")
    exact = tiny_recipe(tmp_path / "stored", ["extract.codec=fp32"], only="sak")
    extract([exact.runs[0].study])
    request.getfixturevalue("no_teacher")
    stored = columns_of(tiny_recipe(tmp_path / "stored", [f"extract.codec={codec}"], only="sak"), tmp_path / "stored")
    assert live == stored
    assert len(live) > 20


def test_an_exact_column_that_is_not_complete_is_no_source(tmp_path: Path) -> None:
    exact = tiny_recipe(tmp_path, ["extract.codec=fp32"], only="sak").runs[0].study
    extract([exact])
    for column in study_columns(exact, view_set=Store.open(exact.store).view_sets()[0].spec).values():
        column.discard(0)
    live = tiny_recipe(tmp_path, ["extract.codec=fp16"], only="sak").runs[0].study
    extract([live])
    for view_set in Store.open(live.store).view_sets():
        assert not any(column.missing_parts() for column in study_columns(live, view_set=view_set.spec).values())
