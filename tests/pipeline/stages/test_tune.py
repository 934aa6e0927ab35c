"""Tuning on the tiny recipe: disjoint samples, bounded memory, no store, and rates as extraction finds them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from pipeline import samples
from pipeline.commands.store import store_app
from pipeline.errors import PipelineError
from pipeline.fidelity import column_fidelity
from pipeline.rates import meets
from pipeline.stages import tune as module
from pipeline.stages.extract import extract
from pipeline.stages.tune import rate_table, tune
from pipeline.tuning import TuneOptions, Tuning, chosen, codec_text, recipe_line, tuning_json
from pipeline.viewsets import draw_rows
from store.codecs.registry import choice_json
from store.store import Store
from tests.fitted_codec import register
from tests.tiny_recipe import tiny_mapping, tiny_recipe

FEW = ("fp32", "int8", {"name": "klt", "error": 0.05}, {"name": "klt", "error": 0.3})


def study_of(root: Path, *overrides: str) -> Any:
    return tiny_recipe(root, overrides, only="sak").runs[0].study


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Tuning:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CANDIDATES", FEW)
        root = tmp_path_factory.mktemp("tune")
        found = tune(study_of(root), options=TuneOptions(rows=5, fidelity=0.99))
        assert not list(root.iterdir()), "no store is written"
        return found


def test_every_candidate_is_measured_on_every_teacher(tuned: Tuning) -> None:
    assert [item.teacher for item in tuned.teachers] == ["second", "first"]
    for item in tuned.teachers:
        texts = [codec_text(rate.codec) for rate in item.rates]
        assert {"fp32", "int8", "{name: klt, error: 0.05}", "{name: klt, error: 0.3}"} <= set(texts)
        # And one more, fitted between the two that enclose what is asked.
        (between,) = set(texts) - {codec_text(choice_json(choice)) for choice in FEW}
        assert between.startswith("{name: klt, error: 0.")
        assert [rate.bits for rate in item.rates] == sorted((rate.bits for rate in item.rates), reverse=True)
        assert (item.rows, item.fit_rows) == (5, 17)
        assert item.values == 4 * 24 * 16
    assert {views.rows for views in tuned.views} == {22, 12, 6}


def test_the_choice_is_good_enough_and_shown(tuned: Tuning) -> None:
    found = chosen(tuned)
    for item in tuned.teachers:
        rate = found.each[item.teacher]
        assert rate is not None
        assert meets(rate, metric="token_cosine", fidelity=0.99)
        console = Console(width=200, file=io.StringIO(), record=True)
        console.print(rate_table(tuned, item))
        text = console.export_text()
        (line,) = [line for line in text.splitlines() if "chosen" in line]
        assert codec_text(rate.codec) in line
        assert all(codec_text(other.codec) in text for other in item.rates)
    json.dumps(tuning_json(tuned))


def test_what_tuning_says_is_what_extraction_finds(tuned: Tuning, tmp_path: Path) -> None:
    """int8 needs no fit and the sample is a part of the set, so bits and errors are close."""
    study = study_of(tmp_path, recipe_line(choice_json("int8")), "data.eval=null", "finetune=null")
    extract([study])
    store = Store.open(study.store)
    for column in store.columns(store.view_set_names()[0]):
        item = next(item for item in tuned.teachers if item.teacher == column.spec.teacher)
        rate = next(rate for rate in item.rates if rate.name == "int8")
        found = column_fidelity(column, column.summary())["mean"]
        assert rate.bits == pytest.approx(found["bits_per_value"], rel=0.05)
        assert rate.measured.relative_error == pytest.approx(found["relative_error"], rel=0.1)
        assert rate.measured.token_cosine == pytest.approx(found["token_cosine"], abs=1e-5)


def test_no_image_is_both_fitted_to_and_measured_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fitters = register(monkeypatch)
    monkeypatch.setattr(module, "CANDIDATES", ({"name": "centred", "rows": 9},))
    keys: list[set[str]] = []

    def noting(*arguments: Any, **options: Any) -> Any:
        rows = draw_rows(*arguments, **options)
        keys.append({row.key for row in rows})
        return rows

    monkeypatch.setattr(samples, "draw_rows", noting)
    study = study_of(tmp_path, "data.distill.views=3", "extract.codec={name: centred, rows: 9}")
    (found,) = tune(study, options=TuneOptions(rows=50, teachers=("first",))).teachers
    assert (found.rows, found.fit_rows) == (5, 9), "a quarter of 22 images is held out, and 9 were wanted"
    held_out, *fitted = keys
    assert len(held_out) == 5
    assert sum(map(len, fitted)) == 9
    assert not held_out & set().union(*fitted)
    (fitter,) = fitters.made
    assert len(fitter.sample(0, 0)) == 9


def test_large_maps_are_held_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CANDIDATES", ("fp32",))
    monkeypatch.setattr(module, "KEEP_BYTES", 2 * 4 * 4 * 24 * 16 + 1)
    (found,) = tune(study_of(tmp_path), options=TuneOptions(rows=5, teachers=("first",))).teachers
    assert found.rows == 2


def test_a_codec_that_cannot_hold_the_maps_is_told_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CANDIDATES", ("fp32", "fp16"))
    monkeypatch.setattr(module, "run_teacher", lambda teacher, pixels: [1e6 * feat for feat in teacher(pixels)])
    (found,) = tune(study_of(tmp_path), options=TuneOptions(rows=2, teachers=("first",))).teachers
    assert [rate.name for rate in found.rates] == ["fp32"]
    assert "65504" in found.refused["fp16"]


def test_the_recipes_own_codec_and_loss_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CANDIDATES", ("fp32",))
    study = study_of(tmp_path, "extract.codec={name: fp16, clip: true}", "distill.loss=cos", "distill.cosine=token")
    found = tune(study, options=TuneOptions(rows=2, teachers=("first",)))
    assert len(found.views) == 3
    assert len(tune(study_of(tmp_path, "eval.codec=fp32"), options=TuneOptions(rows=2, teachers=("first",))).views) == 2
    assert found.loss == ("cos", "token")
    assert [rate.codec for rate in found.teachers[0].rates] == [{"name": "fp32"}, {"name": "fp16", "clip": True}]


@pytest.mark.parametrize(
    ("overrides", "teachers", "fault"),
    [
        ((), ("third",), r"--teacher: expected some of second, first, got \['third'\]"),
        (("data.distill.source.images=1", "data.eval=null", "finetune=null"), (), "expected at least 2 images"),
    ],
)
def test_what_cannot_be_tuned_is_refused(
    tmp_path: Path, overrides: tuple[str, ...], teachers: tuple[str, ...], fault: str
) -> None:
    with pytest.raises(PipelineError, match=fault):
        tune(study_of(tmp_path, *overrides), options=TuneOptions(teachers=teachers))


def test_the_command_prints_what_to_write_and_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CANDIDATES", ("fp32", "int8"))
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(tiny_mapping(tmp_path)), encoding="utf-8")
    arguments = ["tune", str(recipe), "extract.codec=fp32", "--rows", "3", "--teacher", "second", "--fidelity", "0.99"]
    files = ["--json", str(tmp_path / "found.json"), "--out", str(tmp_path / "found.html")]
    done = CliRunner().invoke(store_app, [*arguments, *files], catch_exceptions=False)
    assert done.exit_code == 0
    lines = done.output.splitlines()
    assert any(line.startswith("second: teachers.second.codec=int8  (token_cosine >= 0.99: ") for line in lines)
    assert "one for every teacher: extract.codec=int8" in lines
    assert any("for 22 rows of second" in line for line in lines)
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert list(found["teachers"]) == ["second"]
    assert "<svg" in (tmp_path / "found.html").read_text(encoding="utf-8")
