from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline import makers, maps
from pipeline.config import Study
from pipeline.errors import PipelineError
from pipeline.recipes import Recipe
from pipeline.runtime import torch_threads
from pipeline.stages import recompute as module
from pipeline.stages.inspect import verify_store
from pipeline.stages.recompute import FLOAT_NOISE, MARGIN, allowed_error, recompute, sample_rows
from store.store import Store
from tests.conftest import Finished
from tests.tiny_recipe import run_stages, tiny_recipe, tree_digests

CODECS = {
    "fp32": "extract.codec=fp32",
    "int8": "extract.codec=int8",
    "klt": "extract.codec={name: klt, error: 0.15}",
}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Recipe]:
    """One extraction for each codec; read only."""
    found = {}
    for name, codec in CODECS.items():
        found[name] = tiny_recipe(tmp_path_factory.mktemp(name), [codec, "data.eval=null", "finetune=null"], only="sak")
        run_stages(found[name], ["extract"])
    return found


def study_of(recipe: Recipe) -> Study:
    return recipe.runs[0].study


def cells(found: Any, column: str) -> list[str]:
    (cells,) = [list(item.cells) for item in found.table.columns if item.header == column]
    return cells


@pytest.mark.parametrize("codec", CODECS)
def test_what_the_teachers_give_again_is_what_is_stored(stores: dict[str, Recipe], codec: str) -> None:
    study = study_of(stores[codec])
    before = tree_digests(Path(study.store))
    found = recompute(study.store, [study], rows=5)
    assert (found.lines, found.failed) == ((), False)
    assert cells(found, "level") == ["0", "1", "2", "3"] * 2
    assert {name.split("/")[1].split("-")[0] for name in cells(found, "column")} == {"first", "second"}
    for measured, recorded, allowed in zip(
        cells(found, "relative error"), cells(found, "recorded"), cells(found, "allowed"), strict=True
    ):
        assert float(measured) <= 1.25 * float(recorded) + 1e-3
        assert float(allowed) >= FLOAT_NOISE
        assert (float(recorded) > 0) == (codec != "fp32")
    assert all(float(cosine) > 0.9 for cosine in cells(found, "cosine"))
    # Another batch size may turn the last bit of a float, and so now and then a rounding.
    assert all(float(share.rstrip("%")) > 99 or codec == "fp32" for share in cells(found, "equal numbers"))
    assert tree_digests(Path(study.store)) == before


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("harm", ["exchanged", "nudged"])
def test_weights_exchanged_behind_the_identity_are_found(
    stores: dict[str, Recipe], codec: str, harm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every byte is as recorded: only the teacher itself can tell."""
    real = makers.load_teacher

    def other(spec: Any, **options: Any) -> Any:
        if spec.name != "second":
            return real(spec, **options)
        if harm == "exchanged":
            return real(dataclasses.replace(spec, random=7), **options)
        teacher = real(spec, **options)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in teacher.parameters():
                weight += 0.3 * weight.std(correction=0) * torch.randn(weight.shape, generator=generator)
        return teacher

    monkeypatch.setattr(makers, "load_teacher", other)
    study = study_of(stores[codec])
    found = recompute(study.store, [study], rows=5)
    assert found.failed
    assert len(found.lines) == 4
    for index, line in enumerate(found.lines):
        assert "/second-" in line
        assert f"level_{index}: its features differ from what the teacher gives now by a relative error of" in line
    assert verify_store(study.store) == ((), False)


def test_a_teacher_of_other_shapes_is_said(stores: dict[str, Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    real = makers.load_teacher

    def other(spec: Any, **options: Any) -> Any:
        return real(dataclasses.replace(spec, overrides={**spec.overrides, "embed_dim": 32}), **options)

    monkeypatch.setattr(makers, "load_teacher", other)
    study = study_of(stores["int8"])
    found = recompute(study.store, [study], rows=2)
    assert [line.split(": ", 2)[2] for line in found.lines] == [
        "the teacher gives maps of other shapes now; its weights were exchanged"
    ] * 2


def test_images_that_changed_since_are_found(stores: dict[str, Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    real = module.draw_rows

    def other(data: Any, spec: Any, *, numbers: Any) -> Any:
        rows = real(data, spec, numbers=numbers)
        return [
            dataclasses.replace(row, files=dict(row.files) | {"png": b"?"}, label=3) if row.row > 10 else row
            for row in rows
        ]

    monkeypatch.setattr(module, "draw_rows", other)
    study = study_of(stores["int8"])
    found = recompute(study.store, [study], rows=4)
    assert found.failed
    assert len(found.lines) == 2
    assert all(" its png, label are not what the source gives now" in line for line in found.lines)


def test_a_recipe_of_another_store_is_refused(stores: dict[str, Recipe], finished: Finished) -> None:
    changes = ["teachers.second.random=3", "teachers.first.random=4", "data.distill.seed=5", "data.finetune.seed=5"]
    other = study_of(tiny_recipe(finished.root, [*changes, "data.eval.seed=5"], only="sak"))
    with pytest.raises(PipelineError, match="holds nothing that this recipe makes"):
        recompute(study_of(stores["int8"]).store, [other], rows=2)


def test_features_without_a_recorded_error_are_not_judged(
    stores: dict[str, Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_recorded", lambda *_: {})
    study = study_of(stores["int8"])
    found = recompute(study.store, [study], rows=2)
    assert found.failed
    assert all("no error of its codec is on record" in line for line in found.lines)


@given(st.integers(1, 60), st.integers(1, 80))
def test_a_sample_is_spread_over_all_rows(rows: int, count: int) -> None:
    usable = np.arange(rows) * 3
    sample = sample_rows(usable, count)
    assert len(sample) == min(rows, count)
    assert sample == sorted(set(sample))
    assert set(sample) <= set(usable.tolist())
    # Nowhere more than twice as thin as everywhere.
    gaps = np.diff([-3 * rows / len(sample), *sample, 3 * rows * (1 + 1 / len(sample))])
    assert gaps.max() <= 3 * 2 * (rows / len(sample)) + 3


@given(st.floats(0, 1), st.floats(0, 4))
def test_what_is_allowed_follows_the_record(recorded: float, own: float) -> None:
    allowed = allowed_error(recorded=recorded, own=own)
    assert MARGIN * recorded + FLOAT_NOISE <= allowed <= 2 * MARGIN * recorded + FLOAT_NOISE


def test_store_opens_no_teacher_that_it_has_no_column_of(
    stores: dict[str, Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = stores["int8"]
    study = study_of(recipe)
    names: list[str] = []
    real = makers.load_teacher

    def noting(spec: Any, **options: Any) -> Any:
        names.append(spec.name)
        return real(spec, **options)

    monkeypatch.setattr(makers, "load_teacher", noting)
    other = tiny_recipe(Path(study.store).parent, [CODECS["int8"], "teachers.second.random=5"], only="sak")
    assert not recompute(study.store, [study_of(other)], rows=2).failed
    assert names == ["first"] * len(Store.open(study.store).view_set_names())


def test_teachers_run_on_as_many_threads_as_in_extraction(
    stores: dict[str, Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    real = maps.run_teacher

    def noting(*arguments: Any) -> Any:
        seen.append(torch.get_num_threads())
        return real(*arguments)

    monkeypatch.setattr(maps, "run_teacher", noting)
    study = study_of(stores["int8"])
    with torch_threads(3):
        assert not recompute(study.store, [dataclasses.replace(study, threads=2)], rows=2).failed
        assert torch.get_num_threads() == 3
    assert set(seen) == {2}
