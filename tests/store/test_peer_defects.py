"""Defects that other systems' feature and logit caches have, one test each: what they lose in silence is said here.

Systems and places are in the first line of each test. Where a test of the same thing stands elsewhere, it is named.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_store

from store import disk
from store.codecs.registry import make_codec
from store.column import Column
from store.costs import Spent
from store.errors import CorruptShardError, FormatError, MissingColumnError, MissingRowsError, StoreError
from store.order import image_permutation
from store.rows import ViewRow
from store.spec import LevelSpec
from store.store import Store
from store.verify import verify
from store.viewset import ReadOptions


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return tiny_store.fill(tmp_path / "store")


@pytest.fixture
def column(store: Store) -> Column:
    return store.columns("t")[0]


def again(store: Store, **options: str) -> Column:
    """The column as another process would find it."""
    return Store.open(store.root.url, options=ReadOptions(**options)).columns("t")[0]


def test_join_compares_keys_and_images(store: Store, column: Column, tmp_path: Path):
    """Theia zips shuffled loaders of columns by position and compares no key; litData's parallel data set likewise."""
    other = tiny_store.write_views(Store.create(tmp_path / "other"), replace(tiny_store.view_spec(), order_seed=5))
    with pytest.raises(FormatError, match="part 0: its keys are not those of view set t"):
        column.check_join(other)
    folder = tmp_path / "store/views/t"
    for name in ("images/part-00000.tar", "index/part-00000.parquet", "commits/part-00000.json", "view_set.json"):
        (folder / name).write_bytes((tmp_path / "other/views/t" / name).read_bytes())
    with pytest.raises(FormatError, match="its keys are not those"):
        again(store).check_join(Store.open(store.root.url).view_set("t"))
    with pytest.raises(FormatError, match="its keys are not those"):
        store.read("t", columns=[column.name], rows=[0])


@pytest.mark.parametrize("backend", ["zarr", "webdataset"])
def test_resume_accepts_no_truncated_shard(tmp_path: Path, backend: str):
    """Theia's resume keeps every tar that opens: 10 % of random truncations pass its check. None passes here."""
    store = tiny_store.fill(tmp_path, backend=backend)
    shard = f"{store.columns('t')[0].folder}/{store.columns('t')[0].part_files(0)[0]}"
    for file, read in ((shard, read_row), ("views/t/images/part-00000.tar", read_image)):
        data = (tmp_path / file).read_bytes()
        for length in {*range(0, len(data), 97), *range(0, len(data), 512), len(data) - 1}:
            (tmp_path / file).write_bytes(data[:length])
            assert verify(store, paths=[file])
            with pytest.raises(CorruptShardError, match="rows 0 to 1"):
                read(store)
        (tmp_path / file).write_bytes(data)


def read_row(store: Store) -> object:
    return again(store, verify="size").read([0])


def read_image(store: Store) -> object:
    return Store.open(store.root.url, options=ReadOptions(verify="size")).view_set("t").read_rows([0])


def test_a_writer_that_died_leaves_no_part(store: Store, column: Column):
    """WebDataset's ShardWriter and Theia's TarWriter write in place: what a killed job wrote looks like a shard.

    At every operation: test_faults.py.
    """
    column.discard(1)
    real, written = disk.replace, []

    def die(source: Path, target: Path) -> None:
        if len(written) == 1:
            raise OSError(5, "Input/output error")
        written.append(target)
        real(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk, "replace", die)
        with pytest.raises(StoreError, match="Input/output error"):
            tiny_store.write_part(column, 1)
    assert len(written) == 1, "something of the part is there"
    assert again(store).missing_parts() == (1,)
    with pytest.raises(MissingRowsError, match="rows 2 to 3 are not committed"):
        again(store).read([2])


def test_columns_of_different_length_are_not_cut_to_the_shortest(store: Store, column: Column):
    """Theia, ml-4m and Megatron zip streams and stop at the shortest: the tail is lost in silence."""
    tiny_store.write_column(store, "b").discard(1)
    names = [item.name for item in store.columns("t")]
    with pytest.raises(MissingRowsError, match=r"columns/t/b-\w+: rows 2 to 3 are not committed"):
        store.read("t", columns=names, rows=range(4))


def test_a_missing_shard_shifts_nothing(store: Store, column: Column):
    """Megatron takes the "next" target: a missing shard moves every later one by a window."""
    before = column.read([3])
    column.discard(0)
    for after, expected in zip(again(store).read([3]), before, strict=True):
        np.testing.assert_array_equal(after["values"], expected["values"])
    with pytest.raises(MissingRowsError, match="rows 0 to 1"):
        again(store).read([0])


def test_a_shard_that_is_gone_is_no_fill_value(store: Store, column: Column):
    """zarr reads an absent chunk as zeros; MosaicML and WebDataset skip or stop. For every engine: test_column.py."""
    for path in column.part_files(0):
        store.root.local(f"{column.folder}/{path}").unlink()
    with pytest.raises(CorruptShardError, match="rows 0 to 1"):
        again(store).read([0])


def test_a_resumed_run_knows_what_earlier_ones_wrote(store: Store, column: Column):
    """RayGen's resumed run overwrites manifest.jsonl with its own part only; Theia's splits.json has counts alone."""
    column.discard(1)
    tiny_store.write_column(Store.open(store.root.url, options=tiny_store.OPTIONS))
    assert again(store).committed_parts() == (0, 1)
    assert again(store).summary().committed_rows == 4


def test_a_complete_part_is_not_made_again(store: Store, column: Column, monkeypatch: pytest.MonkeyPatch):
    """ml-dr and FKD test for the file when they write it, after the teacher has run; here a part is asked for first."""
    assert column.missing_parts() == ()
    assert store.view_set("t").missing_parts() == ()
    monkeypatch.setattr(type(column.backend), "pack", None)
    tiny_store.write_part(column, 0)


@pytest.mark.parametrize("codec", ["fp16", "int8", "fp32", "bf16", "int4"])
def test_indices_are_no_floats_that_round(tmp_path: Path, codec: str):
    """FKD stores class indices as fp16: above 2,048 they round, and 75 % of ImageNet-22k's are wrong.

    Labels, rows and draws are 64-bit integers of the index, whatever the codec of the features.
    """
    store = Store.create(tmp_path)
    assert make_codec(codec)
    views = store.create_view_set(tiny_store.view_spec())
    labels = [2049, 16_777_217, 21_840, (1 << 53) + 1]
    for part in (0, 1):
        rows = [tiny_store.view_row(views.spec, row) for row in views.spec.part_rows(part)]
        views.write_part(part, [replace(row, label=labels[row.row], draw={"top": labels[row.row]}) for row in rows])
    found = Store.open(tmp_path).view_set("t").read_rows(range(4))
    assert [row.label for row in found] == labels
    assert [row.draw["top"] for row in found] == labels


def test_half_floats_that_overflow_are_refused(column: Column):
    """noether PR 237 guards it, others write infinity: fp16 holds nothing above 65,504."""
    feat_NCHW = np.full((1, 2, 1, 2), 70_000, np.float32)
    with pytest.raises(StoreError, match=r"65504|finite|range"):
        make_codec("fp16").encode(feat_NCHW, level=0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(column: Column, value: float):
    """Nobody in the list checks what a teacher gives: one NaN and a column is poison."""
    feat_NCHW = np.full((1, 2, 1, 2), value, np.float32)
    with pytest.raises(StoreError, match="finite"):
        column.spec.codec.encode(feat_NCHW, level=0)


def test_files_that_are_here_already_are_checked_too(store: Store, column: Column):
    """MosaicML compares hashes when it downloads, if asked to, and never for raw files already on the disk."""
    path = store.root.local(f"{column.folder}/{column.part_files(0)[0]}")
    data = bytearray(path.read_bytes())
    data[3] ^= 16
    path.write_bytes(data)
    with pytest.raises(CorruptShardError, match="SHA-256"):
        again(store).read([0])


def test_nothing_that_exists_is_deleted_to_begin_again(store: Store, tmp_path: Path):
    """MosaicML's exist_ok=True deletes the folder; here a store is opened, and other files are refused."""
    before = tiny_store.tree(tmp_path)
    Store.create(tmp_path / "store")
    tiny_store.fill(tmp_path / "store")
    assert tiny_store.tree(tmp_path) == before
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.tex").write_text("precious")
    with pytest.raises(FormatError, match="found other files; choose another"):
        Store.create(tmp_path / "thesis")
    assert (tmp_path / "thesis/chapter.tex").read_text() == "precious"


def test_units_are_written_down_and_are_those_of_the_numbers(store: Store, column: Column):
    """RayGen's hours are seconds divided by 60. Seconds here are seconds, and add up."""
    column.discard(1)
    rows = column.view_set.spec.part_rows(1)
    levels = [
        column.spec.codec.encode(np.stack([tiny_store.features("a", row, level) for row in rows]), level=level)
        for level in (0, 1)
    ]
    column.write_part(1, levels, keys=column.view_set.keys(1), spent=Spent(7200.0))
    cost = json.loads(store.root.local(column.commits.cost_path(1)).read_text())
    assert cost["body"]["seconds"] == 7200.0
    assert column.summary().spent.total == pytest.approx(7200.0)


def test_another_batch_size_gives_the_same_rows(column: Column):
    """RayGen indexes a batch's list with the shard's index: with shards above the batch size rows come out empty."""
    feat_NCHW = np.stack([tiny_store.features("a", row, 0) for row in range(10)])
    whole = column.spec.codec.encode(feat_NCHW, level=0)
    for batch in (1, 3, 4, 10):
        pieces = [column.spec.codec.encode(feat_NCHW[first : first + batch], level=0) for first in range(0, 10, batch)]
        for name, values in whole.items():
            np.testing.assert_array_equal(np.concatenate([piece[name] for piece in pieces]), values)


def test_a_short_batch_is_refused(column: Column):
    """The same defect, seen by the writer: a part with rows missing, or with empty ones, is no part."""
    column.discard(0)
    good = [
        column.spec.codec.encode(np.stack([tiny_store.features("a", row, level) for row in (0, 1)]), level=level)
        for level in (0, 1)
    ]
    for short in ({**good[0], "values": good[0]["values"][:1]}, {**good[0], "values": good[0]["values"][:, :0]}):
        with pytest.raises(FormatError, match="level_0: expected int8"):
            column.write_part(0, [short, good[1]], keys=column.view_set.keys(0))


def test_an_image_more_is_another_view_set(store: Store):
    """ml-dr and TinyViT key by position in a listing: one file more shifts all. Keys and the source are on record."""
    spec = tiny_store.view_spec(images=5)
    with pytest.raises(FormatError, match=r"another images \(4 there, 5 asked\)"):
        store.create_view_set(spec)
    keys = [key for part in (0, 1) for key in store.view_set("t").keys(part)]
    order = image_permutation(4, order_seed=3)
    assert keys == [f"k{image}" for image in order]


def test_every_view_is_its_own_row_with_its_draw(tmp_path: Path):
    """RayGen computes the augmentation's parameters and stores them nowhere; yolonas mirrors one cached map for two."""
    store = tiny_store.fill(tmp_path)
    views = store.extend_view_set("t", views=2)
    for part in views.missing_parts():
        rows = [tiny_store.view_row(views.spec, row) for row in views.spec.part_rows(part)]
        views.write_part(part, [replace(row, draw={"flip": True, "top": row.row}) for row in rows])
    rows = Store.open(tmp_path).view_set("t").read_rows(range(8))
    assert {(row.key, row.view) for row in rows} == {(f"k{image}", view) for image in range(4) for view in (0, 1)}
    assert [dict(row.draw) for row in rows[4:]] == [{"flip": True, "top": row} for row in range(4, 8)]


def test_another_teacher_codec_or_preprocessing_is_another_column(store: Store, column: Column):
    """Theia, TinyViT and FKD know a teacher by its folder's name; Megatron hashes the run and neither weights nor k."""
    spec = column.spec
    others = [
        replace(spec, identity={"weights": "other"}),
        replace(spec, identity={"mean": [0.5, 0.5, 0.5]}),
        replace(spec, codec=make_codec("fp16")),
        replace(spec, levels=(LevelSpec(components=2, height=2, width=1), spec.levels[1])),
    ]
    assert len({item.name for item in (spec, *others)}) == 5
    for other in others:
        assert store.create_column(other).committed_parts() == ()
        with pytest.raises(MissingColumnError):
            store.column("t", replace(other, teacher="z").name)


def test_a_tar_member_of_another_row_is_not_taken(tmp_path: Path):
    """Theia's and WebDataset's readers take what comes next under whatever name it has."""
    store = tiny_store.fill(tmp_path, backend="webdataset")
    column = store.columns("t")[0]
    path = tmp_path / column.folder / column.part_files(0)[0]
    packed = io.BytesIO()
    with tarfile.open(path) as tar, tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as out:
        members = tar.getmembers()
        for member in [*members[len(members) // 2 :], *members[: len(members) // 2]]:
            out.addfile(member, tar.extractfile(member))
    path.write_bytes(packed.getvalue()[: path.stat().st_size])
    for verified in ("shard", "row", "size"):
        with pytest.raises(CorruptShardError):
            again(store, verify=verified).read([0])


def test_a_failed_move_is_no_success(column: Column, monkeypatch: pytest.MonkeyPatch):
    """TinyViT moves its finished folder with os.system("mv …") and ignores what that returns."""
    column.discard(0)

    def full(source: Path, target: Path) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(disk, "replace", full)
        with pytest.raises(StoreError, match="No space left on device"):
            tiny_store.write_part(column, 0)
    assert column.missing_parts() == (0,)


def test_several_writers_of_one_part_make_one(store: Store, column: Column):
    """FKD lets jobs overlap and both write in place; TinyViT keeps duplicates. Between processes: test_faults.py."""
    column.discard(0)
    column.discard(1)
    writers = [threading.Thread(target=tiny_store.write_column, args=(Store.open(store.root.url),)) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert verify(store) == []
    assert again(store).committed_parts() == (0, 1)


def test_an_image_that_cannot_be_read_keeps_its_row(tmp_path: Path):
    """RayGen warns and goes on, its tar a sample short; here the row stays, with the reason, and is excluded."""
    store = Store.create(tmp_path)
    views = store.create_view_set(tiny_store.view_spec())
    for part in (0, 1):
        rows = [tiny_store.view_row(views.spec, row) for row in views.spec.part_rows(part)]
        broken = ViewRow(row=rows[0].row, key=rows[0].key, view=0, files={}, error="broken JPEG")
        views.write_part(part, [broken, rows[1]])
    assert views.usable_rows().tolist() == [1, 3]
    assert [row.error for row in views.read_rows(range(4))] == ["broken JPEG", None, "broken JPEG", None]
    tiny_store.write_column(store)
    assert store.columns("t")[0].commits.load(0).excluded == (0,)
