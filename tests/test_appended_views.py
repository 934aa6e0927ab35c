"""A recipe asks for more views, and for fewer: real processes over one store, which grows and never changes."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from tests.sak_process import Outcome, SakProcess, sak, stage_folders, until, write_recipe
from tests.tiny_recipe import stored_bytes

# 10 images in shards of 4: each view ends with a short one. A codec fitted to at most 64 rows, of which a view has 10.
RECIPE = """\
name: tiny
out: out
store: store
threads: 1
data:
  distill:
    source: {name: scenes, split: unlabeled, images: 10, size: 32}
    view: {kind: random_resized_crop, size: 32, area: [0.5, 1.0]}
    rows_per_shard: 4
  eval:
    source: {name: scenes, split: val, images: 3, size: 32}
    view: {kind: full, size: 32}
    rows_per_shard: 2
teachers:
  first:
    timm: vit_tiny_patch16_224
    random: 1
    overrides: &tiny {patch_size: 8, embed_dim: 24, depth: 4, num_heads: 2}
extract: {workers: 1, codec: {name: klt, error: 0.2, rows: 64}}
student: {stem: vit_tiny_patch16_224, overrides: *tiny}
distill: {steps: 8, batch: 4}
track: {log_every: 1, tensorboard: false}
"""
THREE = "data.distill.views=3"


def ran(*arguments: str, cwd: Path) -> Outcome:
    done = sak(arguments[0], "tiny.yaml", *arguments[1:], cwd=cwd)
    assert done.code == 0, done.err
    return done


def results(folder: Path) -> dict[str, bytes]:
    """What two equal runs have in common: weights, curves, scores, and which bytes of the store they read."""
    names = ("student.safetensors", "metrics.jsonl", "metrics.json", "uses.json")
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.glob("*/*") if path.name in names
    }
    assert len(found) >= 5
    return found


def records(folder: Path) -> int:
    return len(list(folder.glob("store/**/commits/*.json")))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one view; not to be changed."""
    folder = tmp_path_factory.mktemp("one")
    write_recipe(folder, RECIPE)
    ran("run", cwd=folder)
    return folder


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that had three views from the beginning; not to be changed."""
    folder = tmp_path_factory.mktemp("three")
    write_recipe(folder, RECIPE)
    assert "->" not in ran("extract", THREE, cwd=folder).err
    return folder


def test_more_views_change_nothing_and_fewer_read_as_if_there_were_no_more(
    one: Path, three: Path, tmp_path: Path
) -> None:
    shutil.copytree(one, tmp_path, dirs_exist_ok=True)
    before = stored_bytes(tmp_path / "store")
    assert "views: 1 -> 3, 2 new ones to make" in " ".join(ran("extract", THREE, cwd=tmp_path).err.split())
    after = stored_bytes(tmp_path / "store")
    changed = {path.rsplit("/", 1)[-1] for path in before if after[path] != before[path]}
    assert changed == {"view_set.json", "column.json", "zarr.json"}
    assert all("unlabeled" in path for path in after if after[path] != before.get(path))
    # Neither the codec nor anything else knows how many views there were when it was made.
    assert after == stored_bytes(three / "store")
    again = ran("run", cwd=tmp_path)
    assert again.err.count("skipped") == 4
    assert results(tmp_path / "out") == results(one / "out")
    ran("run", "out=anew", cwd=tmp_path)
    assert results(tmp_path / "anew") == results(one / "out")
    assert stored_bytes(tmp_path / "store") == after
    listed = sak("store", "ls", "store", cwd=tmp_path).out
    assert listed.count("3/3") >= 2
    assert "every committed byte" in sak("store", "verify", "store", cwd=tmp_path).out


def test_a_run_over_more_views_is_another_run(one: Path, tmp_path: Path) -> None:
    shutil.copytree(one, tmp_path, dirs_exist_ok=True)
    refused = sak("distill", "tiny.yaml", THREE, cwd=tmp_path)
    assert refused.code == 2
    assert "is incomplete (6 shards missing)" in " ".join(refused.err.split())
    ran("run", THREE, cwd=tmp_path)
    assert len(stage_folders(tmp_path, "distill")) == 2
    # Two of the three views, against a store that never had more.
    ran("run", "data.distill.views=2", "out=of-three", cwd=tmp_path)
    shutil.rmtree(tmp_path / "store")
    ran("run", "data.distill.views=2", "out=of-two", cwd=tmp_path)
    assert results(tmp_path / "of-three") == results(tmp_path / "of-two")


@pytest.mark.parametrize("after", [1, 8])
def test_killed_while_views_are_appended_ends_as_if_nothing_had_happened(
    after: int, one: Path, three: Path, tmp_path: Path
) -> None:
    shutil.copytree(one, tmp_path, dirs_exist_ok=True)
    wanted = records(tmp_path) + after  # of 6 parts of views and 6 of the column
    process = SakProcess("extract", "tiny.yaml", THREE, cwd=tmp_path)
    until(lambda: records(tmp_path) >= wanted, process=process)
    process.send(signal.SIGKILL)
    assert process.wait().code == -signal.SIGKILL
    assert records(tmp_path) < records(three), "the kill came too late to test anything"
    # Files of a part in the making have no record, which verify cannot tell from a record that was deleted.
    found = sak("store", "verify", "store", cwd=tmp_path).out.splitlines()
    errors = [line for line in found if line.startswith("error: ")]
    assert [line for line in errors if "left by a writer that died" not in line] == []
    # Half a view more is no view more to who asks for one.
    ran("run", "out=anew", cwd=tmp_path)
    assert results(tmp_path / "anew") == results(one / "out")
    ran("extract", THREE, cwd=tmp_path)
    assert stored_bytes(tmp_path / "store") == stored_bytes(three / "store")


def test_a_recipe_of_one_view_repairs_all_of_them(three: Path, tmp_path: Path) -> None:
    shutil.copytree(three, tmp_path, dirs_exist_ok=True)
    (views,) = (tmp_path / "store/views").glob("*unlabeled*")
    (views / "view_set.json").unlink()
    (views / "images/part-00008.tar").write_bytes(b"")
    (column,) = (tmp_path / "store/columns" / views.name).iterdir()
    (column / "level_1/c/4/0").unlink()
    repaired = sak("store", "repair", "store", "tiny.yaml", cwd=tmp_path)
    assert repaired.code == 0, repaired.out + repaired.err
    assert stored_bytes(tmp_path / "store") == stored_bytes(three / "store")
