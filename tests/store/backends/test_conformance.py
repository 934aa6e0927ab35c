"""What every backend promises, for every codec: a new one of either is tested by its line in the registry."""

from __future__ import annotations

import hashlib
import multiprocessing
import pickle
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import store_samples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from store import shards
from store.backends.registry import BACKENDS
from store.codecs.registry import CODECS
from store.column import Column
from store.commits import PartCommit
from store.errors import CorruptShardError, FormatError, MissingRowsError
from store.store import Store
from store.verify import verify
from store.viewset import ReadOptions
from tests.store.backends import columns

KINDS = [pytest.param(kind, id="-".join(kind)) for kind in product(BACKENDS, CODECS)]
FEW = [pytest.param((backend, "int8"), id=backend) for backend in BACKENDS]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[str, str]], Path]:
    """A complete store of each kind, made when first asked for; not to be changed."""
    made: dict[tuple[str, str], Path] = {}

    def make(kind: tuple[str, str]) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("pristine") / "store"
            columns.fill(made[kind], backend=kind[0], codec=kind[1])
        return made[kind]

    return make


def open_column(root: Path, *, verify: str = "shard", threads: int = 1) -> Column:
    (column,) = Store.open(root, options=ReadOptions(verify=verify, threads=threads)).columns("train")
    return column


def assert_rows(column: Column, rows: list[int], levels: tuple[int, ...] | None) -> None:
    read = column.read(rows, levels=levels)
    expected = columns.encoded(column.spec)
    for level, parts in zip(levels or (0, 1), read, strict=True):
        assert set(parts) == set(expected[level])
        for name, values in parts.items():
            assert values.dtype == expected[level][name].dtype
            np.testing.assert_array_equal(values, expected[level][name][rows])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("levels", [None, (0,), (1,), (1, 0)])
def test_rows_come_back_as_they_were_stored(
    pristine: Callable[[tuple[str, str]], Path], kind: tuple[str, str], levels: tuple[int, ...] | None
):
    column = open_column(pristine(kind))
    assert column.backend.name == kind[0]
    shuffled = np.random.default_rng(0).permutation(columns.ROWS).tolist()
    for rows in (list(range(columns.ROWS)), shuffled, [17, 3, 3, 8, 7, 17], [19], []):
        assert_rows(column, rows, levels)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(rows=st.lists(st.integers(0, 19), max_size=30), threads=st.sampled_from([1, 3]))
@pytest.mark.parametrize("kind", FEW)
def test_any_rows_in_any_order(
    pristine: Callable[[tuple[str, str]], Path], kind: tuple[str, str], rows: list[int], threads: int
):
    assert_rows(open_column(pristine(kind), threads=threads), rows, None)


@pytest.mark.parametrize("kind", KINDS)
def test_floats_are_the_codecs_own(pristine: Callable[[tuple[str, str]], Path], kind: tuple[str, str]):
    column = open_column(pristine(kind))
    expected = column.spec.decode_levels(dict(enumerate(columns.encoded(column.spec))))
    for levels in (None, [1], [1, 0]):
        for level, maps in zip(levels or [0, 1], column.read_floats(range(columns.ROWS), levels=levels), strict=True):
            np.testing.assert_array_equal(maps, expected[level])


@pytest.mark.parametrize("kind", KINDS)
def test_equal_input_gives_equal_bytes_with_any_number_of_threads(
    pristine: Callable[[tuple[str, str]], Path], kind: tuple[str, str], tmp_path: Path
):
    columns.fill(tmp_path / "again", backend=kind[0], codec=kind[1], threads=3)
    assert store_samples.tree(tmp_path / "again") == store_samples.tree(pristine(kind))


@pytest.mark.parametrize("codec", CODECS)
def test_content_and_identity_do_not_depend_on_the_backend(pristine: Callable[[tuple[str, str]], Path], codec: str):
    stored = [open_column(pristine((backend, codec))) for backend in BACKENDS]
    assert len({column.name for column in stored}) == 1
    for part in range(3):
        rows = stored[0].view_set.spec.part_rows(part)
        levels = columns.encoded(stored[0].spec, rows)
        content = {
            array.name: hashlib.sha256(levels[array.level][array.part].tobytes()).hexdigest()
            for array in stored[0].arrays
        }
        for column in stored:
            assert column.commits.load(part).content == content
            column.check_content(part)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_store_verifies(pristine: Callable[[tuple[str, str]], Path], kind: tuple[str, str]):
    assert verify(Store.open(pristine(kind))) == []


@pytest.mark.parametrize("kind", FEW)
def test_rows_without_an_image_are_marked_and_stored(
    pristine: Callable[[tuple[str, str]], Path], kind: tuple[str, str]
):
    column = open_column(pristine(kind))
    excluded = [row for part in range(3) for row in column.commits.load(part).excluded]
    assert len(excluded) == 2
    assert not np.any(column.read(excluded)[0]["values"])


DAMAGES = ("flip", "truncate", "extend", "missing", "folder", "swap", "duplicate")


def damage(folder: Path, column: Column, how: str) -> Iterator[None]:
    """Damage each file of part 1 in turn, and mend it again."""
    for mine, other in zip(column.part_files(1), column.part_files(0), strict=True):
        path, neighbour = folder / mine, folder / other
        data, theirs = path.read_bytes(), neighbour.read_bytes()
        changed = bytearray(data)
        changed[len(data) // 3] ^= 4
        path.unlink()
        if how == "folder":
            path.mkdir()
        elif how != "missing":
            swapped = {"swap": theirs, "duplicate": theirs}
            contents = {"flip": bytes(changed), "truncate": data[:-9], "extend": data + b"\0", **swapped}
            path.write_bytes(contents[how])
        if how == "swap":
            neighbour.write_bytes(data)
        yield
        if how == "folder":
            path.rmdir()
        path.write_bytes(data)
        neighbour.write_bytes(theirs)


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_never_read(
    pristine: Callable[[tuple[str, str]], Path], kind: tuple[str, str], how: str, tmp_path: Path
):
    root = Path(shutil.copytree(pristine(kind), tmp_path / "store"))
    sound = open_column(root)
    for _ in damage(root / sound.folder, sound, how):
        with pytest.raises(CorruptShardError, match=r"rows 8 to 15.*run sak store verify"):
            open_column(root).read(range(8, 16))
        errors = [finding for finding in verify(Store.open(root)) if finding.severity == "error"]
        assert range(8, 16) in [finding.rows for finding in errors]
    assert verify(Store.open(root)) == []


@pytest.mark.parametrize("kind", FEW)
def test_a_flip_after_the_shard_was_verified_is_never_read(
    pristine: Callable[[tuple[str, str]], Path], kind: tuple[str, str], tmp_path: Path
):
    """The rows' own checksums find it, wherever in a row's bytes it is."""
    root = Path(shutil.copytree(pristine(kind), tmp_path / "store"))
    column = open_column(root)
    path = root / column.folder / column.part_files(1)[0]
    column.read([12])
    shard = column._shards.find(f"{column.folder}/{column.part_files(1)[0]}")
    assert shard is not None
    extents = shard.extents["level_0"]
    data = bytearray(path.read_bytes())
    before = column.read([12])[0]["values"]
    for position in range(extents.offsets[4], extents.offsets[4] + extents.sizes[4]):
        data[position] ^= 16
        with open(path, "r+b") as file:
            file.write(data)
        with pytest.raises(CorruptShardError, match=r": row 12: .*run sak store verify"):
            column.read([12], levels=[0])
        data[position] ^= 16
    path.write_bytes(data)
    np.testing.assert_array_equal(open_column(root).read([12])[0]["values"], before)


@pytest.mark.parametrize("kind", FEW)
def test_rows_that_are_not_committed_are_refused(
    pristine: Callable[[tuple[str, str]], Path], kind: tuple[str, str], tmp_path: Path
):
    root = Path(shutil.copytree(pristine(kind), tmp_path / "store"))
    open_column(root).discard(1)
    with pytest.raises(MissingRowsError, match="rows 8 to 15 are not committed"):
        open_column(root).read([0, 8])
    assert_rows(open_column(root), [7, 16], None)


@pytest.mark.parametrize("kind", FEW)
def test_numbers_that_are_not_those_committed_are_found(
    pristine: Callable[[tuple[str, str]], Path], kind: tuple[str, str], tmp_path: Path
):
    root = Path(shutil.copytree(pristine(kind), tmp_path / "store"))
    path = root / open_column(root).commits.path(1)
    commit = PartCommit.parse(path.read_bytes(), where="")
    wrong = {**commit.content, "level_1": "0" * 64}
    fields = {name: getattr(commit, name) for name in PartCommit.__dataclass_fields__}
    path.write_bytes(PartCommit(**{**fields, "content": wrong}).render())
    with pytest.raises(CorruptShardError, match=r"part-00001\.json: rows 8 to 15: the numbers of level_1"):
        open_column(root).check_content(1)


@pytest.mark.parametrize("kind", FEW)
def test_threads_share_a_column_and_digest_each_file_once(
    pristine: Callable[[tuple[str, str]], Path], kind: tuple[str, str]
):
    name = open_column(pristine(kind)).name
    column, root = columns.counted(pristine(kind), name, verify="shard", threads=2)
    with ThreadPoolExecutor(8) as threads:
        reads = [threads.submit(column.read, range(columns.ROWS)) for _ in range(16)]
        values = [read.result()[0]["values"] for read in reads]
    for other in values[1:]:
        np.testing.assert_array_equal(other, values[0])
    assert sorted(root.digests) == sorted(
        {f"{column.folder}/{path}" for p in range(3) for path in column.part_files(p)}
    )


def read_in_child(column: Column, pipe: Connection) -> None:
    pipe.send([parts["values"].tobytes() for parts in column.read(range(columns.ROWS))])


@pytest.mark.parametrize("kind", FEW)
def test_readers_travel_to_other_processes(pristine: Callable[[tuple[str, str]], Path], kind: tuple[str, str]):
    """Also to forked ones, in which the threads of the parent are gone."""
    column = open_column(pristine(kind), threads=2)
    expected = [parts["values"].tobytes() for parts in column.read(range(columns.ROWS))]
    assert [part["values"].tobytes() for part in pickle.loads(pickle.dumps(column)).read(range(20))] == expected
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=read_in_child, args=(column, theirs))
    child.start()
    try:
        assert ours.poll(30), "the forked reader hangs"
        assert ours.recv() == expected
    finally:
        child.kill()
        child.join()


@pytest.mark.parametrize("kind", FEW)
def test_a_column_that_exists_keeps_its_backend(
    pristine: Callable[[tuple[str, str]], Path], kind: tuple[str, str], tmp_path: Path
):
    root = Path(shutil.copytree(pristine(kind), tmp_path / "store"))
    column = open_column(root)
    for backend in BACKENDS:
        assert Store.open(root).create_column(column.spec, backend=backend).backend.name == kind[0]
    with pytest.raises(FormatError, match="expected a backend, one of zarr, webdataset, got 'hdf5'"):
        Store.open(root).create_column(column.spec, backend="hdf5")


# What is read, counted.


def frame_bytes(column: Column, rows: list[int], names: list[str]) -> int:
    """Stored bytes of rows of some arrays."""
    total = 0
    for row in rows:
        part = row // columns.ROWS_PER_SHARD
        for array in column.arrays:
            if array.name in names:
                shard = column._shards.find(f"{column.folder}/{column.backend.path(array, part)}")
                assert shard is not None
                total += shard.extents[array.name].sizes[row - part * columns.ROWS_PER_SHARD]
    return total


@pytest.mark.parametrize("kind", KINDS)
def test_reads_touch_no_other_bytes(pristine: Callable[[tuple[str, str]], Path], kind: tuple[str, str]):
    name = open_column(pristine(kind)).name
    column, root = columns.counted(pristine(kind), name)
    level_1 = [array.name for array in column.arrays if array.level == 1]
    root.take()
    column.read([9], levels=[1])
    opened = root.take()
    wanted = {f"{column.folder}/{column.backend.path(array, 1)}" for array in column.arrays if array.level == 1}
    assert {path for path, _ in opened} == wanted, "no file of another part, nor of another level that has its own"
    # What it takes to find rows: the shard's index, or the tar's headers and its end.
    lookup = {"zarr": len(wanted) * (16 * 8 + 4), "webdataset": 8 * len(column.arrays) * 512 + 1024}[kind[0]]

    def between(rows: list[int]) -> range:
        """What may be read beside the rows: in a tar the header between two arrays of a row."""
        return range(len(rows) * (len(level_1) - 1) * column.backend.gap + 1)

    assert sum(size for _, size in opened) - lookup - frame_bytes(column, [9], level_1) in between([9])
    for rows in ([9], [15, 8], [11, 9, 13]):  # none are neighbours
        column.read(rows, levels=[1])
        assert sum(size for _, size in root.take()) - frame_bytes(column, rows, level_1) in between(rows)


@pytest.mark.parametrize("kind", FEW)
def test_a_whole_part_is_one_pass_over_each_file(
    pristine: Callable[[tuple[str, str]], Path], kind: tuple[str, str], monkeypatch: pytest.MonkeyPatch
):
    name = open_column(pristine(kind)).name
    column, root = columns.counted(pristine(kind), name)
    column.read([8])
    root.take()
    column.read(range(8, 16))
    reads = root.take()
    assert sorted(path for path, _ in reads) == sorted(f"{column.folder}/{path}" for path in column.part_files(1))
    # Larger parts are read in pieces, so that memory stays bounded.
    monkeypatch.setattr(shards, "RUN_BYTES", 300)
    assert_rows(column, list(range(8, 16)), None)
    pieces = root.take()
    largest = max(max(extents.sizes) for shard in column._shards._open.values() for extents in shard.extents.values())
    assert len(pieces) > len(reads)
    assert max(size for _, size in pieces) <= 300 + largest
    gaps = {"zarr": 0, "webdataset": len(pieces) * column.backend.gap}[kind[0]]
    assert sum(size for _, size in reads) - gaps <= sum(size for _, size in pieces) <= sum(size for _, size in reads)


@pytest.mark.parametrize("kind", FEW)
def test_prefetched_shards_are_open_and_verified(pristine: Callable[[tuple[str, str]], Path], kind: tuple[str, str]):
    name = open_column(pristine(kind)).name
    column, root = columns.counted(pristine(kind), name, verify="shard")
    column.prefetch([0, 2])
    expected = {f"{column.folder}/{path}" for part in (0, 2) for path in column.part_files(part)}
    column.read([0, 16])
    assert set(root.digests) == expected
    assert len(root.digests) == len(expected), "what is being prefetched is waited for, not read again"
    with pytest.raises(MissingRowsError):
        column.prefetch([3])


@pytest.mark.parametrize("kind", FEW)
def test_prefetching_keeps_to_its_limit(pristine: Callable[[tuple[str, str]], Path], kind: tuple[str, str]):
    (column,) = Store.open(pristine(kind), options=ReadOptions(prefetch_bytes=10)).columns("train")
    column.prefetch([0, 1])
    assert not column._shards._open
    with pytest.raises(FormatError, match="threads: expected an integer, at least 1, got 0"):
        ReadOptions(threads=0)
