from __future__ import annotations

import dataclasses
import itertools
import os
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import features
from pipeline.columns import encode_part
from pipeline.errors import PipelineError
from pipeline.maps import LiveMaps
from pipeline.part_pixels import part_pixels
from pipeline.recipes import Recipe, recipe_from_mapping
from pipeline.stages import extract as module
from pipeline.stages.extract import extract
from pipeline.stages.inspect import discard_part, verify_store
from pipeline.targets import find_columns, study_columns, target_source
from store.column import Column
from store.errors import FormatError, StoreError
from store.store import Store
from store.viewset import ViewSet
from tests.conftest import Finished
from tests.fitted_codec import Centred, CentredFitter, register
from tests.tiny_recipe import files_of, run_stages, stored_bytes, tiny_mapping, tiny_recipe, tree_digests


def study_of(recipe: Recipe) -> Any:
    return recipe.runs[0].study


def test_two_fresh_extractions_give_the_same_bytes(finished: Finished, tmp_path: Path) -> None:
    run_stages(tiny_recipe(tmp_path), ["extract"])
    first, second = stored_bytes(finished.root / "store"), stored_bytes(tmp_path / "store")
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
    before = stored_bytes(tmp_path / "store")
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
    assert stored_bytes(tmp_path / "store") == before


def test_an_extraction_stopped_between_shards_goes_on(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class _Stop(Exception):
        pass

    real, count = Column.write_part, 0

    def stopping(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == 4:
            raise _Stop
        return real(*arguments, **options)

    monkeypatch.setattr(Column, "write_part", stopping)
    recipe = tiny_recipe(tmp_path)
    for _ in range(2):
        with pytest.raises(_Stop):
            run_stages(recipe, ["extract"])
        count = 2
    monkeypatch.setattr(Column, "write_part", real)
    run_stages(recipe, ["extract"])
    assert stored_bytes(tmp_path / "store") == stored_bytes(finished.root / "store")


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
        assert all(level["token_cosine"] == pytest.approx(1.0, abs=1e-6) for level in stats["fp32"])
        assert all(0.99 < level["token_cosine"] < 1 - 1e-7 and level["relative_error"] > 0 for level in stats["int8"])
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
    data["max_bad"] = 0.2
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
    real, scan = ViewSet.read_rows, ViewSet.usable_rows

    def noting(view_set: ViewSet, rows: Sequence[int]) -> Any:
        decoded.extend(rows)
        assert len(rows) <= 5, "no more than a batch at once"
        return real(view_set, rows)

    def scanning(view_set: ViewSet) -> Any:
        scans.append(view_set.name)
        return scan(view_set)

    monkeypatch.setattr(ViewSet, "read_rows", noting)
    monkeypatch.setattr(ViewSet, "usable_rows", scanning)
    study = study_of(tiny_recipe(tmp_path, only="sak"))
    extract([study])
    assert sorted(decoded) == sorted([*range(22), *range(12), *range(6)])
    assert not scans, "records tell how many rows are left out: nothing scans all rows, least of all for each part"


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
    before = stored_bytes(root)
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
    assert stored_bytes(root) == before


def _die(*_: object) -> int:
    os._exit(1)


def test_a_killed_worker_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "make_part", _die)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with pytest.raises(PipelineError, match=r"worker process was killed.*memory; lower extract\.workers \(now 2\)"):
        extract([study_of(tiny_recipe(tmp_path, ["extract.workers=2"], only="sak"))])


CENTRED = "extract.codec={name: centred, step: 0.01}"


def test_a_fitted_codec_is_fitted_once_to_the_first_usable_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitters = register(monkeypatch)
    study = study_of(tiny_recipe(tmp_path, [CENTRED], only="sak"))
    extract([study])
    assert len(fitters.made) == 6, "two teachers over three view sets"
    store = Store.open(study.store)
    for name in store.view_set_names():
        columns = store.columns(name)
        assert [column.missing_parts() for column in columns] == [(), ()]
        for column in columns:
            assert column.spec.codec.to_json() == {"name": "centred", "step": 0.01, "rows": 6}
            assert set(column.spec.codec.assets()) == {f"mean_{level}" for level in range(4)}
            seen = [fitter.sample(0, 2) for fitter in fitters.made]
            (sample,) = [one for one in seen if np.array_equal(one.mean((0, 2, 3)), asset(column, "mean_2"))]
            # The codec keeps features to half a step, so the sample's rows show in what is stored.
            np.testing.assert_allclose(column.read_floats(range(6))[2], sample, atol=0.0051)
            assert 0 < column.summary().stats["level_2"]["relative_error"] < 0.05
    for fitter in fitters.made:
        np.testing.assert_array_equal(fitter.sample(0, 0), fitter.sample(1, 0))
    before = tree_digests(Path(study.store))
    extract([study])
    assert len(fitters.made) == 6, "never fitted again"
    assert tree_digests(Path(study.store)) == before


def asset(column: Any, name: str) -> Any:
    return column.spec.codec.assets()[name]


def test_a_column_half_made_keeps_its_own_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fitters = register(monkeypatch)
    study = study_of(tiny_recipe(tmp_path, [CENTRED], only="sak"))
    extract([study])
    before = stored_bytes(Path(study.store))
    store = Store.open(study.store)
    for name in store.view_set_names():
        for column in store.columns(name):
            column.discard(1)
    # Other features now: a fit would give other assets, and so another column.
    monkeypatch.setattr(CentredFitter, "codec", lambda _: pytest.fail("fitted again"))
    extract([study])
    assert len(fitters.made) == 6
    assert stored_bytes(Path(study.store)) == before


def test_two_writers_end_with_one_fitted_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each alone would make a column of its own: their fits differ, as on other hardware."""
    register(monkeypatch)
    serial = itertools.count()

    def codec(fitter: CentredFitter) -> Centred:
        time.sleep(0.05)
        means = {f"mean_{level}": np.full(24, next(serial), np.float32) for level in range(4)}
        return Centred(step=0.01, rows=fitter.rows, fitted=means)

    monkeypatch.setattr(CentredFitter, "codec", codec)
    study = study_of(tiny_recipe(tmp_path, [CENTRED], only="sak"))
    study = dataclasses.replace(study, finetune=None, data=dataclasses.replace(study.data, eval=None))
    extract([dataclasses.replace(study, distill=dataclasses.replace(study.distill, targets="online"))])
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(extract, [study]) for _ in range(2)]:
            done.result()
    store = Store.open(study.store)
    (name,) = store.view_set_names()
    assert sorted(column.spec.teacher for column in store.columns(name)) == ["first", "second"]
    assert verify_store(Path(study.store)) == ((), False)


def test_without_locks_both_writers_take_the_first_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)
    study = study_of(tiny_recipe(tmp_path, [CENTRED, "data.eval=null", "finetune=null"], only="sak"))
    real, names = Store.create_column, []

    def raced(store: Store, spec: Any) -> Any:
        """Somebody else's fit of the same settings lands just before ours."""
        others = {name: values + 1 for name, values in spec.codec.assets().items()}
        codec = Centred(step=spec.codec.step, rows=spec.codec.rows, fitted=others)
        columns = [real(store, dataclasses.replace(spec, codec=codec)), real(store, spec)]
        names.append(sorted(column.name for column in columns))
        return columns[1]

    monkeypatch.setattr(Store, "create_column", raced)
    extract([study])
    monkeypatch.undo()
    register(monkeypatch)
    store = Store.open(study.store)
    (view_set,) = store.view_set_names()
    for first, other in names:
        assert store.column(view_set, first).missing_parts() == ()
        assert len(store.column(view_set, other).committed_parts()) == 0


def test_a_teacher_may_have_a_codec_of_its_own(tmp_path: Path) -> None:
    study = study_of(tiny_recipe(tmp_path, ["teachers.second.codec={name: int8, scale: float16}"], only="sak"))
    extract([study])
    store = Store.open(study.store)
    for view_set in store.view_sets():
        codecs = {column.spec.teacher: column.spec.codec.to_json() for column in store.columns(view_set.name)}
        assert codecs == {"first": {"name": "fp32"}, "second": {"name": "int8", "scale": "float16"}}
        assert set(study_columns(study, view_set=view_set.spec)) == {"first", "second"}


@pytest.mark.parametrize("grid", ["2", "[2, 3]"])
def test_pooled_targets_are_the_same_stored_and_live(tmp_path: Path, grid: str) -> None:
    options = [f"teachers.second.grid={grid}", "data.eval=null", "finetune=null"]
    study = study_of(tiny_recipe(tmp_path, options, only="sak"))
    extract([study])
    store = Store.open(study.store)
    (view_set,) = store.view_sets()
    stored_maps = target_source(study, view_set, kind="cached", device=torch.device("cpu"))
    live = target_source(study, view_set, kind="online", device=torch.device("cpu"))
    rows = np.array([3, 8, 1])
    pixels = features.load_pixels(view_set, rows.tolist())
    cached, online = (source.targets(source.read(rows), pixels) for source in (stored_maps, live))
    assert cached["second"][0].shape == (3, 24, 2, 2 if grid == "2" else 3)
    assert cached["first"][0].shape == (3, 24, 4, 4)
    for name in ("first", "second"):
        for one, other in zip(cached[name], online[name], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_rows_left_out_do_not_count_in_the_measured_error(tmp_path: Path) -> None:
    """A black row of a part would be measured like any other."""
    study = study_of(tiny_recipe(tmp_path, ["extract.codec=int8", "data.eval=null", "finetune=null"], only="sak"))
    extract([study])
    store = Store.open(study.store)
    (view_set,) = store.view_sets()
    teacher = module.load_teacher(study.teachers["first"].spec("first"))
    column = next(column for column in store.columns(view_set.name) if column.spec.teacher == "first")
    shown = part_pixels(view_set, 0, batch=5)
    assert shown.usable.all()
    kept = [
        encode_part(LiveMaps(teacher), column.spec, shown._replace(usable=usable), done=lambda _: None).stats
        for usable in (shown.usable, shown.usable & (torch.arange(8) < 3), shown.usable & False)
    ]
    assert kept[0] == column.commits.require([0])[0].stats
    assert kept[1] != kept[0]
    assert kept[1].keys() == kept[0].keys()
    assert kept[2] == {}


def test_klt_and_int4_columns_are_as_close_as_they_say(tmp_path: Path) -> None:
    codecs = ["teachers.first.codec={name: klt, error: 0.1, rows: 16}", "teachers.second.codec=int4"]
    study = study_of(tiny_recipe(tmp_path, [*codecs, "data.eval=null", "finetune=null"], only="sak"))
    extract([study])
    store = Store.open(study.store)
    (view_set,) = store.view_sets()
    rows = np.arange(view_set.spec.rows)
    pixels = features.load_pixels(view_set, rows.tolist())
    cached = target_source(study, view_set, kind="cached", device=torch.device("cpu"))
    live = target_source(study, view_set, kind="online", device=torch.device("cpu")).targets({}, pixels)
    for name, levels in cached.targets(cached.read(rows), pixels).items():
        column = find_columns(
            store, [study.teachers[name].spec(name)], view_set=view_set.spec, codecs={name: study.codec(name)}
        )[name]
        for index, (feat, back) in enumerate(zip(live[name], levels, strict=True)):
            error = float((feat - back).norm() / feat.norm())
            assert error == pytest.approx(column.summary().stats[f"level_{index}"]["relative_error"], rel=0.1)
            assert 0.01 < error < 0.15
