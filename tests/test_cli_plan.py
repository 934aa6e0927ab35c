"""``sak extract --dry-run`` and budgets as processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.sak_process import finished_run, sak, write_recipe
from tests.tiny_recipe import files_of, tree_digests


def test_a_dry_run_writes_nothing_and_prints_a_plan(tmp_path: Path) -> None:
    write_recipe(tmp_path)
    before = files_of(tmp_path)
    done = sak("extract", "tiny.yaml", "--dry-run", cwd=tmp_path)
    assert done.code == 0, done.err
    assert files_of(tmp_path) == before
    assert "…" not in done.out
    for word in ("scenes-unlabeled-random_resized_crop", "first", "second", "total", "pay-back: ", "memory: ", "GMAC"):
        assert word in done.out


def test_a_dry_run_leaves_a_finished_store_byte_for_byte(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    folder = finished_run(tmp_path_factory, tmp_path / "copy")[0]
    before = tree_digests(folder)
    done = sak("extract", "tiny.yaml", "data.distill.views=2", "--dry-run", "--json", cwd=folder)
    assert done.code == 0, done.err
    assert tree_digests(folder) == before
    found = json.loads(done.out)
    assert [(item["rows_missing"], item["rows"]) for item in found["views"]] == [(16, 32), (0, 8), (0, 4)]
    assert found["totals"]["seconds_columns"] > 0


@pytest.mark.parametrize("plan", [["--dry-run", "--no-calibrate"], []])
@pytest.mark.parametrize(
    ("budget", "part"),
    [
        (["--max-disk", "10kB"], "of disk in "),
        (["extract.max_disk=10kB"], "over the 10.0 kB of extract.max_disk"),
        (["--max-memory", "1MiB"], "over the 1.05 MB of extract.max_memory"),
    ],
)
def test_over_a_budget_nothing_is_done(tmp_path: Path, plan: list[str], budget: list[str], part: str) -> None:
    write_recipe(tmp_path)
    done = sak("extract", "tiny.yaml", *budget, *plan, cwd=tmp_path)
    assert done.code == 2
    (line,) = done.err.splitlines()
    assert line.startswith("sak: extract needs ")
    assert part in line
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--max-disk", "much"], "extract.max_disk: expected bytes such as 2TB"),
        (["--json"], "need --dry-run"),
        (["--dry-run", "--images-per-s", "0"], "--images-per-s: expected more than 0"),
    ],
)
def test_a_mistaken_option_is_named(tmp_path: Path, arguments: list[str], part: str) -> None:
    write_recipe(tmp_path)
    done = sak("extract", "tiny.yaml", *arguments, cwd=tmp_path)
    assert done.code == 2
    assert part in done.err
