"""What follows from measurements: choices, recipe lines, projected bytes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import PipelineError
from pipeline.fidelity import Measured
from pipeline.rates import LossKind, Rate
from pipeline.recipes import recipe_from_mapping
from pipeline.report.tuning import render_tuning, write_tuning
from pipeline.tuning import (
    CANDIDATES,
    TeacherRates,
    TuneOptions,
    Tuning,
    ViewRows,
    chosen,
    codec_text,
    recipe_line,
    refined,
    tuning_json,
    verdict_lines,
)
from store.codecs.registry import CODECS, choice_json
from tests.tiny_recipe import tiny_mapping


def rate(choice: Any, bits: float, cosine: float) -> Rate:
    measured = Measured(cosine, cosine, 0.1, 1 - cosine)
    return Rate(
        codec=choice_json(choice), measured=measured, levels=(measured,) * 4, bits=bits, row_bytes=1000 * bits,
        asset_bytes=10, encode=1.5, decode=2.5, unpack=3.5,
    )  # fmt: skip


def teacher(name: str, *rates: Rate) -> TeacherRates:
    return TeacherRates(name, 8000, 12, 5, rates, {"int4": "odd <components>"})


KLT = {"name": "klt", "error": 0.2}
TUNING = Tuning(
    TuneOptions(),
    LossKind(),
    "a <device>",
    (
        teacher("one", rate("int8", 8, 0.9999), rate("int4", 4, 0.989), rate(KLT, 1.5, 0.97)),
        teacher("two", rate("int8", 7, 0.9999), rate("int4", 3, 0.98), rate(KLT, 1.2, 0.99)),
    ),
    (ViewRows("train-crop", 100, ("one", "two")), ViewRows("val", 10, ("two",)), ViewRows("other", 9, ())),
)


def test_every_teacher_gets_the_cheapest_and_all_get_what_is_good_enough_for_all() -> None:
    found = chosen(TUNING)
    assert {name: item.name for name, item in found.each.items() if item} == {"one": "int4", "two": "klt"}
    assert found.one is not None
    assert {name: item.name for name, item in found.one.items()} == {"one": "int8", "two": "int8"}


def test_the_lines_say_what_to_write_and_what_it_takes() -> None:
    lines = verdict_lines(TUNING)
    assert lines[0] == "one: teachers.one.codec=int4  (token_cosine >= 0.988: 4.00 bits a value, 4.00 kB an image)"
    assert lines[1].startswith("two: 'teachers.two.codec={name: klt, error: 0.2}'  (")
    assert lines[2] == "one for every teacher: extract.codec=int8  (15.0 kB an image)"
    assert lines[3:] == ["train-crop: 520 kB for 100 rows of one, two", "val: 12.0 kB for 10 rows of two"]
    hopeless = TUNING._replace(options=TuneOptions(fidelity=0.99999))
    assert verdict_lines(hopeless) == [
        f"{name}: no codec reaches token_cosine >= 0.99999; the best is int8 with 0.9999" for name in ("one", "two")
    ]
    by_loss = verdict_lines(TUNING._replace(options=TuneOptions(metric="loss", fidelity=0.05)))
    assert "klt" in by_loss[0]
    assert "loss <= 0.05" in by_loss[0]


@pytest.mark.parametrize("choice", [*CANDIDATES, {"name": "fp16", "clip": True}, {"name": "klt", "chain": False}])
def test_a_recipe_line_means_the_codec_that_was_measured(tmp_path: Path, choice: Any) -> None:
    override = recipe_line(choice_json(choice), teacher="second").strip("'")
    study = recipe_from_mapping(tiny_mapping(tmp_path), overrides=[override]).study
    assert choice_json(study.codec("second")) == choice_json(choice)
    assert study.codec("first") == "fp32"


def test_only_what_is_not_usual_is_written() -> None:
    assert codec_text(choice_json("int8")) == codec_text({"name": "int8", "scale": "float32"}) == "int8"
    assert codec_text(choice_json({"name": "int4", "rotate": False})) == "{name: int4, rotate: false}"


def test_candidates_try_every_codec() -> None:
    assert {choice_json(choice)["name"] for choice in CANDIDATES} == set(CODECS)


def klt(error: float) -> Rate:
    """One minus the cosine is half the squared error, as it is for small errors."""
    return rate({"name": "klt", "error": error}, 1 / error, 1 - error**2 / 2)


def test_refining_aims_just_within_what_is_asked() -> None:
    rates = (rate("int8", 8, 0.9999), klt(0.1), klt(0.2), klt(0.4))
    options = TuneOptions(fidelity=0.988)
    between = refined(rates, options=options)
    assert between is not None
    exact = math.sqrt(2 * 0.012)
    assert 0.95 * exact < between["error"] < exact
    assert between == {**choice_json("klt"), "error": between["error"]}
    assert refined((klt(0.1), klt(0.12)), options=options) is None
    assert refined((klt(0.3), klt(0.4)), options=options) is None
    assert refined((rate("int8", 8, 0.9999),), options=options) is None


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"metric": "cosine"}, "--metric: expected one of token_cosine, image_cosine, loss, got 'cosine'"),
        ({"rows": 0}, "--rows and --fit-rows: expected at least 1, got 0 and 64"),
        ({"metric": "loss"}, "with --metric loss give the greatest loss"),
        ({"fidelity": 1.0}, "expected a cosine below 1"),
        ({"fidelity": 0.0}, "expected a cosine below 1"),
        ({"metric": "loss", "fidelity": math.nan}, "or a loss above 0, got nan"),
    ],
)
def test_options_are_checked(options: dict[str, Any], fault: str) -> None:
    with pytest.raises(PipelineError, match=fault):
        TuneOptions(**options)


def test_the_json_holds_every_number() -> None:
    found = json.loads(json.dumps(tuning_json(TUNING)))
    assert (found["metric"], found["fidelity"], found["device"]) == ("token_cosine", 0.988, "a <device>")
    one = found["teachers"]["one"]
    assert [item["codec"]["name"] for item in one["rates"]] == ["int8", "int4", "klt"]
    assert [item["front"] for item in one["rates"]] == [True] * 3
    assert one["chosen"] == choice_json("int4")
    assert one["rates"][1]["measured"]["token_cosine"] == 0.989
    assert found["one_for_all"] == choice_json("int8")
    assert found["projected"]["train-crop"] == {"rows": 100, "bytes": 100 * 5200 + 20}


def test_the_page_shows_every_codec_and_escapes_what_it_is_given(tmp_path: Path) -> None:
    text = render_tuning(TUNING, title="<b>study")
    assert text == render_tuning(TUNING, title="<b>study")
    assert "&lt;b&gt;study" in text
    assert "a &lt;device&gt;" in text
    assert "odd &lt;components&gt;" in text
    assert "<b>study" not in text
    assert text.count("<circle") == 6
    assert text.count("<svg") == 2
    assert "5.20 kB an image instead of 32.0 kB in fp16" in text
    for line in verdict_lines(TUNING):
        assert line.split(":")[0] in text
    path = write_tuning(TUNING, tmp_path / "page.html", title="study")
    assert path.read_text(encoding="utf-8") == render_tuning(TUNING, title="study")
    hopeless = render_tuning(TUNING._replace(options=TuneOptions(fidelity=0.99999)), title="study")
    assert "No codec reaches a token_cosine of 0.99999" in hopeless
