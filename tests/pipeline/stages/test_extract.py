from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.errors import PipelineError
from pipeline.recipes import Recipe, recipe_from_mapping
from pipeline.stages import extract as module
from pipeline.stages.extract import extract
from pipeline.stages.inspect import discard_part, verify_store
from store.errors import FormatError, StoreError
from store.store import Store
from store.viewset import ViewSet
from tests.conftest import Finished
from tests.tiny_recipe import files_of, run_stages, tiny_mapping, tiny_recipe, tree_digests


def study_of(recipe: Recipe) -> Any:
    return recipe.runs[0].study


def stored(root: Path) -> dict[str, bytes]:
    """Bytes of a store, without what its making cost."""
    return {name: (root / name).read_bytes() for name in files_of(root) if "/costs/" not in name}


def test_two_fresh_extractions_give_the_same_bytes(finished: Finished, tmp_path: Path) -> None:
    run_stages(tiny_recipe(tmp_path), ["extract"])
    first, second = stored(finished.root / "store"), stored(tmp_path / "store")
    assert first.keys() == second.keys()
    # Float noise of another thread count would show here: both runs have one.
    assert [name for name in first if first[name] != second[name]] == []
    assert any(name.endswith(".tar") for name in first)
    assert sum("columns/" in name for name in first) > 24


def test_done_again_it_touches_nothing(
    finished: Finished, no_teacher: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a shard was made again")

    monkeypatch.setattr("pipeline.stages.extract.make_part", refuse)
    before = tree_digests(finished.root / "store")
    extract([plan.study for plan in finished.recipe.runs])
    assert tree_digests(finished.root / "store") == before


def test_only_missing_shards_are_made(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(finished.root / "store", tmp_path / "store")
    recipe = tiny_recipe(tmp_path)
    before = stored(tmp_path / "store")
    store = Store.open(tmp_path / "store")
    view_set = next(item for item in store.view_sets() if "unlabeled" in item.name)
    second = next(column for column in store.columns(view_set.name) if column.spec.teacher == "second")
    second.discard(2)
    built: list[str] = []
    real = module.load_teacher

    def noting(spec: Any, **options: Any) -> Any:
        built.append(spec.name)
        return real(spec, **options)

    monkeypatch.setattr(module, "load_teacher", noting)
    times = tree_digests(tmp_path / "store")
    extract([recipe.runs[0].study])
    assert built == ["second"]
    after = tree_digests(tmp_path / "store")
    changed = {name for name in after if after[name] != times.get(name)}
    assert changed
    assert all("/second-" in name and ("00002" in name or "/2/" in name or "c/2" in name) for name in changed), changed
    assert stored(tmp_path / "store") == before


def test_an_extraction_stopped_between_shards_goes_on(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class _Stop(Exception):
        pass

    real, count = module._write_part, 0

    def stopping(*arguments: Any, **options: Any) -> None:
        nonlocal count
        count += 1
        if count == 4:
            raise _Stop
        real(*arguments, **options)

    monkeypatch.setattr(module, "_write_part", stopping)
    recipe = tiny_recipe(tmp_path)
    for _ in range(2):
        with pytest.raises(_Stop):
            run_stages(recipe, ["extract"])
        count = 2
    monkeypatch.setattr(module, "_write_part", real)
    run_stages(recipe, ["extract"])
    assert stored(tmp_path / "store") == stored(finished.root / "store")


def test_another_codec_makes_other_columns_of_the_same_views(finished: Finished, tmp_path: Path) -> None:
    shutil.copytree(finished.root / "store", tmp_path / "store")
    before = {name for name in files_of(tmp_path / "store") if name.startswith("views/")}
    extract([study_of(tiny_recipe(tmp_path, ["extract.codec=int8"], only="sak"))])
    store = Store.open(tmp_path / "store")
    for view_set in store.view_sets():
        columns = store.columns(view_set.name)
        assert {(column.spec.teacher, column.spec.codec.name) for column in columns} == {
            (teacher, codec) for teacher in ("first", "second") for codec in ("fp32", "int8")
        }
        sizes = {column.spec.codec.name: column.summary().bytes for column in columns}
        assert sizes["int8"] < sizes["fp32"] / 2
        stats = {column.spec.codec.name: column.summary().stats.values() for column in columns}
        assert all(level["cosine"] == pytest.approx(1.0, abs=1e-6) for level in stats["fp32"])
        assert all(0.99 < level["cosine"] < 1 - 1e-7 and level["relative_error"] > 0 for level in stats["int8"])
    assert {name for name in files_of(tmp_path / "store") if name.startswith("views/")} == before


def test_rows_left_out_are_left_out_of_columns_too(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(5):
        Image.new("RGB", (40, 40), (number * 40, 9, 9)).save(photos / f"p{number}.jpg")
    (photos / "p3.jpg").write_bytes(b"\xff\xd8 torn")
    mapping = tiny_mapping(tmp_path)
    source = {"name": "imagefolder", "root": str(photos), "split": "all"}
    data = {"source": source, "view": {"kind": "full", "size": 32}, "rows_per_shard": 4, "on_error": "skip"}
    mapping |= {"data": {"distill": data}, "finetune": None, "runs": {}, "baselines": []}
    study = recipe_from_mapping(mapping).runs[0].study
    extract([study])
    store = Store.open(study.store)
    (view_set,) = store.view_sets()
    assert len(view_set.usable_rows()) == 4
    assert [column.missing_parts() for column in store.columns(view_set.name)] == [(), ()]


def test_runs_of_other_seeds_read_the_same_rows(
    finished: Finished, tmp_path: Path, no_teacher: Callable[..., Any]
) -> None:
    mapping = tiny_mapping(finished.root) | {"out": str(tmp_path), "baselines": []}
    mapping["runs"] = {"one": {}, "two": {"set": {"seed": 7}}}
    before = tree_digests(finished.root / "store")
    extract([plan.study for plan in recipe_from_mapping(mapping).runs])
    extract([study_of(tiny_recipe(finished.root, ["seed=8"]))])
    assert tree_digests(finished.root / "store") == before


def test_a_folder_that_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "diary.txt").write_text("private", encoding="utf-8")
    with pytest.raises(FormatError, match="choose another"):
        extract([study_of(tiny_recipe(tmp_path, only="sak"))])
    assert issubclass(FormatError, StoreError)


def test_every_row_is_decoded_once_for_all_teachers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    scans: list[str] = []
    real, scan = module.load_samples, ViewSet.usable_rows

    def noting(view_set: ViewSet, rows: Sequence[int], /, *, tasks: Sequence[str]) -> Any:
        decoded.extend(rows)
        assert len(rows) <= 5, "no more than a batch at once"
        return real(view_set, rows, tasks=tasks)

    def scanning(view_set: ViewSet) -> Any:
        scans.append(view_set.name)
        return scan(view_set)

    monkeypatch.setattr(module, "load_samples", noting)
    monkeypatch.setattr(ViewSet, "usable_rows", scanning)
    study = study_of(tiny_recipe(tmp_path, only="sak"))
    extract([study])
    assert sorted(decoded) == sorted([*range(22), *range(12), *range(6)])
    assert len(scans) == len(set(scans)) == 3, "a scan of all rows for each view set, and none for each part"


def test_a_codec_with_options_makes_its_own_column(finished: Finished, tmp_path: Path) -> None:
    shutil.copytree(finished.root / "store", tmp_path / "store")
    study = study_of(tiny_recipe(tmp_path, ["extract.codec={name: fp16, clip: true}"], only="sak"))
    extract([study])
    store = Store.open(tmp_path / "store")
    for name in store.view_set_names():
        codecs = [column.spec.codec.to_json() for column in store.columns(name)]
        assert codecs.count({"name": "fp16", "clip": True}) == 2


@pytest.mark.parametrize(
    "damaged",
    [
        "columns/*unlabeled*/second-*/level_1/c/1/**/0",
        "columns/*unlabeled*/second-*/commits/part-00001.json",
        "views/*unlabeled*/images/part-00001.tar",
        "views/*unlabeled*/index/part-00001.parquet",
        "views/*unlabeled*/commits/part-00001.json",
        "columns/*unlabeled*/second-*/column.json",
        "columns/*unlabeled*/second-*/level_2/zarr.json",
        "views/*unlabeled*/view_set.json",
    ],
)
def test_damage_is_mended_as_verify_says(finished: Finished, tmp_path: Path, damaged: str) -> None:
    root = tmp_path / "store"
    shutil.copytree(finished.root / "store", root)
    before = stored(root)
    path = sorted(root.glob(damaged))[-1]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    verdict = verify_store(root)
    assert verdict.failed
    assert any(path.relative_to(root).as_posix() in line for line in verdict.lines)
    (remedy,) = [line for line in verdict.lines if line.startswith("remedy: ")]
    assert remedy == verdict.lines[-1]
    if "00001" in damaged or "c/1" in damaged:
        words = remedy.split(",")[0].split()
        assert words[1:5] == ["sak", "store", "discard", str(root)]
        planned = discard_part(root, words[5], int(words[6]), dry_run=True)
        assert planned.startswith("would discard part 1 of ")
        assert path.read_bytes() == data
        assert discard_part(root, words[5], 1, dry_run=False).startswith("discarded part 1 of ")
    else:
        file = "column.json" if "zarr.json" in damaged else "this file"
        assert f"delete {file}" in remedy or f"{file};" in remedy
        (path.parent.parent / file if "zarr.json" in damaged else path).unlink()
    extract([study_of(tiny_recipe(tmp_path, only="sak"))])
    assert verify_store(root) == ((), False)
    assert stored(root) == before


def _die(*_: object) -> int:
    os._exit(1)


def test_a_killed_worker_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "make_part", _die)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with pytest.raises(PipelineError, match=r"worker process was killed.*memory; lower extract\.workers \(now 2\)"):
        extract([study_of(tiny_recipe(tmp_path, ["extract.workers=2"], only="sak"))])
