from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline.bench.contender import BenchError
from pipeline.bench.extraction import made_image
from pipeline.bench.extraction_tables import extraction_json, extraction_notes
from pipeline.stages.bench_extract import bench_extract, named_plan, study_plan
from tests.sak_process import sak
from tests.tiny_recipe import tiny_mapping, tiny_recipe


def test_teachers_of_a_recipe_are_measured_alone_and_together(tmp_path: Path) -> None:
    study = tiny_recipe(tmp_path, ["extract.codec=int8"], only="sak").runs[0].study
    plan = replace(study_plan(study), images=6, shard=4, rounds=2, folder=tmp_path, projected=3600)
    assert (plan.size, plan.batch, plan.threads) == ((32, 32), 5, 1)
    result = bench_extract(plan)
    found = extraction_json(result)
    assert [line["name"] for line in found["lines"]] == ["second", "first", "all of them"]
    for line in found["lines"]:
        assert len(line["rounds"]) == 2
        assert 0 < line["of_bare_range"][0] <= line["of_bare"] <= line["of_bare_range"][1]
        assert line["projected_hours"] == pytest.approx(1 / line["rows_per_second"])
        assert all(line["milliseconds_per_row"][step] > 0 for step in ("read", "forward", "encode", "measure", "write"))
        moved = line["bytes_per_row"]
        assert moved["written_bytes"] == pytest.approx(line["stored_bytes_per_row"])
        assert moved["read_bytes"] > moved["written_bytes"]
        assert moved["device_bytes"] == moved["host_bytes"] == 0
    one, other, both = (line["stored_bytes_per_row"] for line in found["lines"])
    assert both == pytest.approx(one + other)
    assert "kB a row counted where they cross" in extraction_notes(result)[-1]
    assert not list(tmp_path.iterdir()), "what was written is removed"


def test_teachers_by_name_take_the_settings_of_a_recipe() -> None:
    plan = named_plan(
        ["dinov2_vits14", "vit_tiny_patch16_224.augreg_in21k", "scenes-geometry"],
        overrides=["extract.precision=bf16", "extract.batch=auto", "extract.codec={name: klt, error: 0.2}"],
    )
    assert [item.spec.name for item in plan.wanted] == [
        "dinov2_vits14",
        "vit_tiny_patch16_224-augreg_in21k",
        "scenes-geometry",
    ]
    assert {item.spec.precision for item in plan.wanted} == {"bf16"}
    assert [item.codec for item in plan.wanted] == [{"name": "klt", "error": 0.2}] * 3
    assert (plan.batch, plan.fits) == (32, True)


def test_images_look_like_photographs_to_a_png() -> None:
    image = made_image((64, 48), seed=(0, 1))
    assert (image.shape, image.dtype) == ((64, 48, 3), np.uint8)
    assert np.array_equal(image, made_image((64, 48), seed=(0, 1)))
    assert not np.array_equal(image, made_image((64, 48), seed=(0, 2)))


def test_the_command_prints_a_table_or_json(tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(tiny_mapping(tmp_path)), encoding="utf-8")
    options = ["--images", "4", "--rounds", "1", "--dir", str(tmp_path), "--codec", "fp16"]
    done = sak("bench", "extract", str(recipe), "distill.steps=2", *options, cwd=tmp_path)
    assert done.code == 0, done.err
    for text in ("of bare", "second", "all of them", "fp16", "batches of 5, 1 rounds"):
        assert text in done.out
    named = sak("bench", "extract", "--teacher", "scenes-geometry", "--size", "96", *options, "--json", cwd=tmp_path)
    (line,) = json.loads(named.out)["lines"]
    assert (line["name"], line["codec"]["name"]) == ("scenes-geometry", "fp16")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ([], "expected a recipe or some --teacher NAME, and not both"),
        (["--teacher", "no_such"], "no_such"),
        (["--teacher", "scenes-geometry", "--dir", "nowhere"], "nowhere: expected a folder to write to"),
    ],
)
def test_mistakes_are_one_line(options: list[str], problem: str, tmp_path: Path) -> None:
    done = sak("bench", "extract", *options, cwd=tmp_path)
    assert done.code == 2
    assert problem in done.err
    assert done.err.count("\n") == 1


def test_a_plan_that_measures_nothing_is_refused(tmp_path: Path) -> None:
    plan = study_plan(tiny_recipe(tmp_path, only="sak").runs[0].study)
    with pytest.raises(BenchError, match="rounds: expected at least 1, got 0"):
        replace(plan, rounds=0)
    with pytest.raises(BenchError, match="expected at least one, got none"):
        replace(plan, wanted=())
