from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import makers, maps, mending, viewsets
from pipeline.config import Study
from pipeline.errors import DataError
from pipeline.runtime import torch_threads
from pipeline.stages.extract import extract
from pipeline.stages.inspect import verify_store
from pipeline.stages.repair import repair_store
from store import disk
from store.document import render_document
from store.errors import FormatError, StoreError
from store.fingerprint import digest_json
from store.store import Store
from store.transfer import export_column, import_column
from tests.conftest import Finished
from tests.fitted_codec import register
from tests.tiny_recipe import run_stages, tiny_recipe, tree_digests


@pytest.fixture
def root(finished: Finished, tmp_path: Path) -> Path:
    """A store to damage."""
    shutil.copytree(finished.root / "store", tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def studies(tmp_path: Path) -> list[Study]:
    """What made it."""
    return [tiny_recipe(tmp_path, only="sak").runs[0].study]


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the teachers that a repair builds."""
    names: list[str] = []
    real = makers.load_teacher

    def noting(spec: Any, **options: Any) -> Any:
        names.append(spec.name)
        return real(spec, **options)

    monkeypatch.setattr(makers, "load_teacher", noting)
    return names


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def one(root: Path, pattern: str) -> Path:
    return sorted(root.glob(pattern))[-1]


def codec_of(column: Path) -> str:
    name: str = json.loads((column / "column.json").read_text())["body"]["spec"]["codec"]["name"]
    return name


def contents(root: Path) -> dict[str, str]:
    """Digests of a store's files, without what its making cost."""
    return {name: digest for name, (digest, _) in tree_digests(root).items() if "/costs/" not in name}


def changed(before: dict[str, tuple[str, int]], root: Path) -> set[str]:
    """Files that were written to, without what their making cost."""
    after = tree_digests(root)
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} - {
        name for name in after if "/costs/" in name
    }


COLUMN = "columns/*unlabeled*/second-*"
VIEWS = "views/*unlabeled*"
CASES = {
    "a shard": (f"{COLUMN}/level_1/c/1/**/0", flip, ["second"], "remade columns/"),
    "a shard is gone": (f"{COLUMN}/level_1/c/1/**/0", Path.unlink, ["second"], "remade columns/"),
    "a shard is cut short": (
        f"{COLUMN}/level_1/c/1/**/0",
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        ["second"],
        "remade columns/",
    ),
    "a column's record": (f"{COLUMN}/commits/part-00001.json", flip, ["second"], "remade columns/"),
    "a column's record is gone": (f"{COLUMN}/commits/part-00001.json", Path.unlink, ["second"], "remade columns/"),
    "images": (f"{VIEWS}/images/part-00001.tar", flip, [], "remade views/"),
    "images are gone": (f"{VIEWS}/images/part-00001.tar", Path.unlink, [], "remade views/"),
    "an index": (f"{VIEWS}/index/part-00001.parquet", flip, [], "remade views/"),
    "a view set's record": (f"{VIEWS}/commits/part-00001.json", flip, [], "remade views/"),
    "a view set's record is gone": (f"{VIEWS}/commits/part-00001.json", Path.unlink, [], "remade views/"),
    "a column's description": (f"{COLUMN}/column.json", flip, [], "rewrote the description of columns/"),
    "a column's description is gone": (f"{COLUMN}/column.json", Path.unlink, [], "rewrote the description of columns/"),
    "an array's description": (f"{COLUMN}/level_2/zarr.json", flip, [], "rewrote the description of columns/"),
    "a view set's description": (f"{VIEWS}/view_set.json", flip, [], "rewrote the description of views/"),
    "a view set's description is gone": (
        f"{VIEWS}/view_set.json",
        Path.unlink,
        [],
        "rewrote the description of views/",
    ),
    "the store's description": ("store.json", lambda path: path.write_text("{"), [], "wrote store.json anew"),
    "the store's description is gone": ("store.json", Path.unlink, [], "wrote store.json anew"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_damaged_is_made_again_and_nothing_else(
    root: Path, studies: list[Study], built: list[str], case: str
) -> None:
    pattern, harm, teachers, says = CASES[case]
    before = contents(root)
    path = one(root, pattern)
    harm(path)
    times = tree_digests(root)
    part = {path.relative_to(root).as_posix()}
    # A part is made whole: those files of it that were sound are written again, as they were.
    if "part-00001" in pattern or "/c/1/" in pattern:
        owner = one(root, COLUMN if "columns" in pattern else VIEWS).relative_to(root).as_posix()
        names = [name for name in before if name.startswith(f"{owner}/")]
        part = {name for name in names if "part-00001" in name or "/c/1/" in name}
    planned = repair_store(root, studies, dry_run=True)
    assert planned.failed == (pattern == "store.json")
    assert tree_digests(root) == times
    assert built == []
    done = repair_store(root, studies)
    assert done.failed is False, done.lines
    assert done.lines[0].startswith(says)
    assert len(done.lines) == 1
    assert contents(root) == before
    assert changed(times, root) == part
    assert built == teachers
    assert verify_store(root) == ((), False)


def test_a_sound_store_is_left_alone(
    root: Path, studies: list[Study], no_teacher: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree_digests(root)
    assert repair_store(root, studies) == ((), False)
    assert tree_digests(root) == before


def test_images_are_mended_without_a_teacher(root: Path, studies: list[Study], no_teacher: Callable[..., Any]) -> None:
    flip(one(root, f"{VIEWS}/images/part-00002.tar"))
    assert repair_store(root, studies).failed is False


def test_everything_at_once(root: Path, studies: list[Study], built: list[str]) -> None:
    before = contents(root)
    swapped = [one(root, f"{COLUMN}/level_0/c/{part}/**/0") for part in (0, 1)]
    first, second = (path.read_bytes() for path in swapped)
    swapped[0].write_bytes(second)
    swapped[1].write_bytes(first)
    shutil.rmtree(one(root, "views/*train*"))
    one(root, "columns/*train*/first-*/commits/part-00000.json").unlink()
    one(root, "columns/*val*/second-*/column.json").unlink()
    flip(one(root, "columns/*val*/second-*/level_3/c/0/**/0"))
    flip(one(root, f"{VIEWS}/images/part-00001.tar"))
    flip(one(root, f"{COLUMN}/costs/part-00000.json"))
    done = repair_store(root, studies)
    assert done.failed is False, done.lines
    assert contents(root) == before
    assert verify_store(root) == ((), False)
    assert sorted(built) == ["first", "second"]


def test_what_is_left_by_a_dead_writer_is_named_and_deleted_when_asked(root: Path, studies: list[Study]) -> None:
    before = contents(root)
    dead = one(root, COLUMN) / ".tmp-nowhere-1-1"
    stray = one(root, VIEWS) / "images" / "part-00000.tar.bak"
    (root / "dangling").symlink_to("/nowhere")
    dead.write_bytes(b"?")
    stray.write_bytes(b"?")
    os.utime(dead, (1, 1))
    shown = repair_store(root, studies)
    assert shown.failed
    assert [line.split(":")[0] for line in shown.lines] == ["info", "error", "error", "remedy", "remedy"]
    planned = repair_store(root, studies, dry_run=True, delete_stray=True)
    assert [line for line in planned.lines if line.startswith("would delete")]
    assert stray.exists()
    done = repair_store(root, studies, delete_stray=True)
    assert not dead.exists()
    assert not stray.exists()
    # A link that leads outside is for its owner to remove.
    assert done.failed
    assert [line for line in done.lines if line.startswith("error")] == [
        "error: dangling: a link; only plain files belong in a store"
    ]
    (root / "dangling").unlink()
    assert contents(root) == before
    assert repair_store(root, studies) == ((), False)


def test_what_the_recipe_cannot_make_is_left_as_it_is(finished: Finished, tmp_path: Path, studies: list[Study]) -> None:
    root = tmp_path / "store"
    shutil.copytree(finished.root / "store", root)
    flip(one(root, f"{COLUMN}/level_1/c/1/**/0"))
    flip(one(root, f"{COLUMN}/column.json".replace("unlabeled", "val")))
    flip(one(root, "views/*val*/images/part-00001.tar"))
    times = tree_digests(root)
    other = tiny_recipe(tmp_path, ["teachers.second.random=3", "data.eval.seed=9"], only="sak").runs[0].study
    done = repair_store(root, [other])
    assert done.failed
    refused = [line for line in done.lines if line.startswith("not repaired")]
    assert "no data of the recipe makes it" in refused[0]
    assert "part 1, rows 8-15: no teacher and codec of the recipe makes it" in refused[-1]
    assert sum(line.startswith("remedy: ") for line in done.lines) == 2
    assert changed(times, root) <= {name for name in times if name.endswith("/column.json")}


def test_images_that_changed_are_not_mended_under_columns_that_cannot_be(
    root: Path, tmp_path: Path, studies: list[Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Remade rows differ from those that a column was made from: only where it can be made again too."""
    flip(one(root, f"{VIEWS}/images/part-00001.tar"))
    real = mending.remake_part

    def other(root: str, name: str, part: int, data: Any, **options: Any) -> Any:
        def drawn(*arguments: Any, **options: Any) -> Any:
            return [dataclasses.replace(row, label=77) for row in draw(*arguments, **options)]

        draw = viewsets.draw_rows
        with monkeypatch.context() as patch:
            patch.setattr(viewsets, "draw_rows", drawn)
            return real(root, name, part, data, **options)

    monkeypatch.setattr(mending, "remake_part", other)
    times = tree_digests(root)
    fewer = tiny_recipe(tmp_path, ["teachers.second.random=3"], only="sak").runs[0].study
    done = repair_store(root, [fewer])
    assert done.failed
    assert any("other rows than a column over it was made from" in line for line in done.lines)
    assert changed(times, root) == set()
    done = repair_store(root, studies)
    assert all(line.startswith("error: uses/") for line in done.lines if line.startswith("error: ")), done.lines
    remade = [line for line in done.lines if "remade" in line]
    assert [line.split("/")[0] for line in remade] == ["remade views", "remade columns", "remade columns"]
    assert all("refuse to go on" in line for line in remade)
    assert done.failed, "experiments that read the bytes of before are still on record"
    shutil.rmtree(root / "uses")
    assert verify_store(root) == ((), False)


def test_columns_are_mended_where_the_images_are_gone(
    root: Path, tmp_path: Path, studies: list[Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object, **__: object) -> None:
        raise DataError("photos: expected a folder, found none")

    monkeypatch.setattr("pipeline.makers.view_set_spec", gone)
    flip(one(root, f"{COLUMN}/level_1/c/1/**/0"))
    assert repair_store(root, studies).failed is False
    flip(one(root, f"{VIEWS}/images/part-00001.tar"))
    done = repair_store(root, studies)
    assert done.failed
    assert any("data.distill: photos: expected a folder, found none" in line for line in done.lines)


CENTRED = "extract.codec={name: centred, step: 0.01}"


@pytest.fixture
def fitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[Study]]:
    """A store whose codec was fitted, and what made it."""
    register(monkeypatch)
    recipe = tiny_recipe(tmp_path, [CENTRED, "data.eval=null", "finetune=null"], only="sak")
    run_stages(recipe, ["extract"])
    return tmp_path / "store", [recipe.runs[0].study]


def test_a_fitted_codec_is_fitted_again_and_taken_when_it_is_the_same(
    fitted: tuple[Path, list[Study]], built: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, studies = fitted
    before = contents(root)
    asset = one(root, "columns/*/second-*/codec_mean_1/c/0")
    flip(asset)
    done = repair_store(root, studies)
    assert done.failed is False, done.lines
    assert (contents(root), built) == (before, ["second"])
    # On another machine it may come out as another, and then this column is not it.
    flip(asset)
    one(root, "columns/*/second-*/column.json").unlink()
    times = tree_digests(root)
    other = tiny_recipe(root.parent, [CENTRED.replace("0.01", "0.02"), "data.eval=null", "finetune=null"], only="sak")
    done = repair_store(root, [other.runs[0].study])
    assert done.failed
    assert any("cannot be made alone" in line for line in done.lines)
    assert tree_digests(root) == times
    assert repair_store(root, studies).failed is False
    assert contents(root) == before


def test_a_newer_store_is_not_written_over(root: Path, studies: list[Study]) -> None:
    def newer(kind: str) -> bytes:
        content = json.loads(render_document(kind, {}))
        content["format_version"] = 2
        del content["sha256"]
        return json.dumps(content | {"sha256": digest_json(content)}).encode()

    record = one(root, f"{COLUMN}/commits/part-00001.json")
    record.write_bytes(newer("commit"))
    times = tree_digests(root)
    done = repair_store(root, studies)
    assert done.failed
    assert any("is of a newer sak; upgrade this one" in line for line in done.lines)
    assert tree_digests(root) == times
    (root / "store.json").write_bytes(newer("store"))
    with pytest.raises(FormatError, match="upgrade sak"):
        repair_store(root, studies)
    with pytest.raises(StoreError, match="expected a store"):
        repair_store(root.parent / "nothing", studies)


@pytest.mark.parametrize("exact_too", [False, True])
def test_a_column_is_made_from_the_exact_one_where_that_is_sound(
    root: Path, studies: list[Study], built: list[str], exact_too: bool
) -> None:
    both = [
        *studies,
        *(dataclasses.replace(study, extract=dataclasses.replace(study.extract, codec="int8")) for study in studies),
    ]
    extract(both[1:])
    before = contents(root)
    exact, coded = sorted(root.glob(COLUMN), key=lambda path: codec_of(path) != "fp32")
    assert codec_of(coded) == "int8"
    for column in (exact, coded) if exact_too else (coded,):
        flip(one(column, "level_1/c/1/**/0"))
    done = repair_store(root, both)
    assert done.failed is False, done.lines
    assert len(done.lines) == 1 + exact_too
    assert contents(root) == before
    assert built == ["second"] * exact_too


def test_an_exact_column_of_other_images_is_no_source(root: Path, studies: list[Study], built: list[str]) -> None:
    """Its numbers are sound, and of the images of before."""
    coded = [dataclasses.replace(study, extract=dataclasses.replace(study.extract, codec="int8")) for study in studies]
    extract(coded)
    store = Store.open(root)
    view_set = next(item for item in store.view_sets() if "unlabeled" in item.name)
    rows = view_set.read_part(1)
    view_set.discard(1)
    view_set.write_part(1, [dataclasses.replace(row, label=77) for row in rows])
    repair_store(root, coded)
    assert sorted(built) == ["first", "second"]
    fresh = Store.open(root)
    for column in fresh.columns(view_set.name):
        if column.spec.codec.name == "int8":
            column.check_join_part(fresh.view_set(view_set.name), 1)


def test_a_killed_repair_is_finished_by_the_next(
    root: Path, studies: list[Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at each of the writes and removals that a repair makes."""

    class _Stop(BaseException):
        pass

    before = contents(root)
    left = 0

    def stopping(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                raise _Stop
            return real(*arguments)

        return call

    ended = 0
    for stop in range(1, 100, 5):
        flip(one(root, f"{COLUMN}/level_1/c/1/**/0"))
        one(root, f"{VIEWS}/commits/part-00001.json").unlink()
        left = stop
        with monkeypatch.context() as patch:
            for name in ("replace", "unlink", "fsync"):
                patch.setattr(disk, name, stopping(getattr(disk, name)))
            try:
                repair_store(root, studies)
            except _Stop:
                pass
            else:
                ended = stop
        done = repair_store(root, studies, delete_stray=True)
        assert done.failed is False, done.lines
        assert contents(root) == before
        if ended:
            break
    assert ended > 20


def test_a_column_of_tars_is_repaired_as_one(
    finished: Finished, tmp_path: Path, studies: list[Study], built: list[str]
) -> None:
    root = tmp_path / "store"
    shutil.copytree(finished.root / "store", root)
    store = Store.open(root)
    view_set = next(name for name in store.view_set_names() if "val" in name)
    name = next(name for name in store.column_names(view_set) if name.startswith("first-"))
    export_column(store.column(view_set, name), tmp_path / "export")
    shutil.rmtree(root / "columns" / view_set / name)
    import_column(store, tmp_path / "export", backend="webdataset")
    shutil.rmtree(root / "uses")  # of experiments that read the other files
    before = contents(root)
    flip(one(root, f"columns/{view_set}/{name}/shards/part-00001.tar"))
    # What its backend is shows in its parts; what it holds, in the column of the same name over other views.
    one(root, f"columns/{view_set}/{name}/column.json").unlink()
    done = repair_store(root, studies)
    assert done.failed is False, done.lines
    assert (contents(root), built) == (before, ["first"])


def test_parts_of_a_view_set_are_made_by_workers(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(root)
    for path in root.glob(f"{VIEWS}/images/*.tar"):
        flip(path)
    study = tiny_recipe(tmp_path, ["extract.workers=2"], only="sak").runs[0].study
    done = repair_store(root, [study])
    assert done.failed is False, done.lines
    assert sorted(line.split(",")[0][-6:] for line in done.lines) == ["part 0", "part 1", "part 2"]
    assert contents(root) == before


def test_columns_over_images_that_cannot_be_made_again_are_each_named(root: Path, tmp_path: Path) -> None:
    flip(one(root, f"{VIEWS}/images/part-00001.tar"))
    for teacher in ("first", "second"):
        flip(one(root, f"columns/*unlabeled*/{teacher}-*/level_1/c/1/**/0"))
    flip(one(root, f"{COLUMN}/level_1/c/2/**/0"))
    study = tiny_recipe(tmp_path, ["data.distill.seed=4"], only="sak").runs[0].study
    done = repair_store(root, [study])
    assert done.failed
    assert sum(line.startswith("not repaired: columns/") and "part 1" in line for line in done.lines) == 2
    assert sum(line.startswith("remade columns/") and "part 2" in line for line in done.lines) == 1


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Rows and torch's threads of each call of a teacher, which has memory for three rows."""
    seen: list[tuple[int, int]] = []
    real = maps.run_teacher

    def noting(teacher: Any, pixels: Any) -> Any:
        seen.append((len(pixels), torch.get_num_threads()))
        if len(pixels) > 3:
            raise torch.OutOfMemoryError
        return real(teacher, pixels)

    monkeypatch.setattr(maps, "run_teacher", noting)
    return seen


def test_a_column_is_remade_as_memory_allows_on_as_many_threads_as_before(
    root: Path, tmp_path: Path, batches: list[tuple[int, int]]
) -> None:
    before = contents(root)
    flip(one(root, f"{COLUMN}/level_1/c/1/**/0"))
    study = tiny_recipe(tmp_path, ["extract.batch=auto", "threads=1"], only="sak").runs[0].study
    with torch_threads(2):
        done = repair_store(root, [study])
        assert torch.get_num_threads() == 2
    assert done.failed is False, done.lines
    assert contents(root) == before
    assert {threads for _, threads in batches} == {1}
    assert max(rows for rows, _ in batches) > 3 >= batches[-1][0]


def test_a_column_that_memory_does_not_hold_is_left_with_the_reason(
    root: Path, studies: list[Study], batches: list[tuple[int, int]]
) -> None:
    flip(one(root, f"{COLUMN}/level_1/c/1/**/0"))
    done = repair_store(root, studies)
    assert done.failed
    assert any(line.startswith("not repaired: columns/") for line in done.lines)
