"""One conformance suite over every kind of root, then what only object stores have."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import store_samples
from s3_server import Proxy

from store import object_client
from store.column import Column
from store.errors import (
    ConflictError,
    CorruptShardError,
    FormatError,
    MissingRowsError,
    StoreError,
    UnreachableError,
)
from store.object_root import ObjectRoot
from store.root import temporary_name
from store.roots import open_root
from store.store import Store
from store.verify import Finding, verify
from store.viewset import ReadOptions

FILL = "import sys; sys.path[:0] = sys.argv[2:]; import store_samples; store_samples.fill(sys.argv[1])"
PATHS = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[:-1],
    "flipped": lambda data: data[:3] + bytes([data[3] ^ 1]) + data[4:],
    "lengthened": lambda data: data + b"x",
}


def contents(place: str) -> dict[str, str]:
    """Digest of everything but costs."""
    root = open_root(place)
    return {path: root.digest(path) for path in root.files() if "/costs/" not in path}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "store"
    store_samples.fill(folder)
    return folder


@pytest.fixture(scope="module")
def whole(original: Path) -> dict[str, str]:
    return contents(str(original))


def planted(place: str, original: Path) -> Column:
    """A copy of a whole store; quicker than writing it durably."""
    root = open_root(place)
    if isinstance(root, ObjectRoot):
        for path in open_root(original).files():
            root._client.put(f"{place.split('/', 3)[3]}/{path}", (original / path).read_bytes(), create=True)
    else:
        shutil.copytree(original, place)
    return reopened(place)


@pytest.fixture
def column(place: str, original: Path) -> Column:
    return planted(place, original)


def errors(place: str) -> list[Finding]:
    return [finding for finding in verify(Store.open(place)) if finding.severity == "error"]


def reopened(place: str, **options: object) -> Column:
    return Store.open(place, options=ReadOptions(**options)).columns("train")[0]  # type: ignore[arg-type]


def shard(column: Column, part: int) -> str:
    return f"{column.folder}/{column.backend.path(column.arrays[0], part)}"


# Every kind of root.


def test_a_store_is_the_same_bytes_wherever_it_is(place: str, whole: dict[str, str]):
    store_samples.fill(place)
    assert contents(place) == whole
    assert errors(place) == []
    assert store_samples.fill(place).missing_parts() == ()


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
def test_rows_come_back_as_written(place: str, column: Column, cache_bytes: int):
    found = reopened(place, cache_bytes=cache_bytes)
    rows = [17, 3, 3, 9]
    for level, feats in enumerate(found.read_floats(rows)):
        expected = column.spec.codec.decode(
            column.spec.codec.encode(np.stack([store_samples.features(row, level) for row in rows]), level=level),
            level=level,
        )
        np.testing.assert_array_equal(feats, expected)
    assert found.view_set.read_rows(rows) == [store_samples.view_row(found.view_set.spec, row) for row in rows]


def test_columns_of_tars_are_read_and_written(place: str, original: Path):
    made = Store.create(place)
    views = made.create_view_set(store_samples.view_spec())
    source = reopened(str(original))
    for part in range(3):
        views.write_part(part, source.view_set.read_part(part))
    column = made.create_column(store_samples.column_spec(), backend="webdataset")
    for part in range(3):
        store_samples.write_column_part(column, part)
    assert errors(place) == []
    for mine, theirs in zip(reopened(place).read([17, 3, 9]), source.read([17, 3, 9]), strict=True):
        assert all(np.array_equal(mine[name], theirs[name]) for name in theirs)
    column.discard(1)
    store_samples.write_column_part(reopened(place), 1)
    assert errors(place) == []


def test_columns_can_be_sent_to_other_processes(place: str, column: Column):
    sent = pickle.loads(pickle.dumps(column))
    np.testing.assert_array_equal(sent.read([5])[0]["values"], column.read([5])[0]["values"])


def test_what_a_dead_writer_left_is_discarded_by_the_command(place: str, column: Column, whole: dict[str, str]):
    """Its objects cannot be written over, and it has no record."""
    inspect = pytest.importorskip("pipeline.stages.inspect")
    name = f"{column.view_set.name}/{column.name}"
    open_root(place).remove(column.commits.path(1))
    left = reopened(place).commits.obstacles(1)
    if open_root(place).overwrites:
        assert left == []
    else:
        assert f"{column.folder}/level_0/c/1/0/0/0" in left
        assert "would discard part 1" in inspect.discard_part(place, name, 1, dry_run=True)
        assert reopened(place).commits.obstacles(1) == left
        assert "discarded part 1" in inspect.discard_part(place, name, 1, dry_run=False)
        assert reopened(place).commits.obstacles(1) == []
    with pytest.raises(MissingRowsError, match="expected a committed part, got 1"):
        inspect.discard_part(place, name, 1, dry_run=False)
    store_samples.write_column_part(reopened(place), 1)
    assert contents(place) == whole


def test_a_discarded_part_is_gone_and_can_be_made_again(place: str, column: Column, whole: dict[str, str]):
    column.discard(1)
    with pytest.raises(MissingRowsError, match="rows 8 to 15"):
        reopened(place).read([9])
    # Where objects are created once its files go too; a local folder keeps them until they are made again.
    left = [column.commits.path(1)] if open_root(place).overwrites else []
    assert [(finding.path, finding.unrecorded) for finding in errors(place)] == [(path, True) for path in left]
    assert reopened(place).committed_parts() == (0, 2)
    store_samples.fill(place)
    assert contents(place) == whole


def test_leftovers_of_a_dead_writer_are_completed(place: str, column: Column, whole: dict[str, str]):
    root = open_root(place)
    root.remove(column.commits.path(1))
    root.remove(column.view_set.commits.path(2))
    root.remove(f"{column.folder}/{column.backend.path(column.arrays[1], 1)}")
    # Without locks a writer may still be at work on files that are so young.
    missed = {column.commits.path(1), column.view_set.commits.path(2)} if root.overwrites else set()
    assert {finding.path for finding in errors(place)} == {column.commits.path(2), *missed}, "its images are missing"
    assert {finding.path for finding in errors(place) if finding.unrecorded} == missed
    store_samples.fill(place)
    assert contents(place) == whole


@pytest.mark.parametrize("change", sorted(CHANGES))
def test_changed_objects_are_never_read_and_always_found(place: str, column: Column, change: str):
    root = open_root(place)
    for path in (shard(column, 1), "views/train/images/part-00001.tar", column.commits.path(2)):
        data = root.read_bytes(path, max_bytes=1 << 20)
        root.write_atomic(path, CHANGES[change](data), replace=True)
    assert {shard(column, 1), column.commits.path(2)} <= {finding.path for finding in errors(place)}
    assert any("images/part-00001" in finding.path for finding in errors(place))
    found = reopened(place)
    with pytest.raises(CorruptShardError, match="rows 8 to 15"):
        found.read([9], levels=[0])
    with pytest.raises(CorruptShardError, match="rows 8 to 15"):
        found.view_set.read_rows([9])
    with pytest.raises(StoreError, match="part-00002"):
        found.read([17])
    assert found.read([1])


def test_missing_objects_are_named(place: str, column: Column):
    root = open_root(place)
    root.remove(shard(column, 1))
    root.remove("views/train/images/part-00001.tar")
    assert {finding.problem for finding in errors(place) if "level" in finding.path} == {"missing"}
    with pytest.raises(CorruptShardError, match=r"level_0/c/1.*rows 8 to 15: cannot be read"):
        reopened(place).read([9])
    with pytest.raises(CorruptShardError, match=r"part-00001.tar: rows 8 to 15: cannot be read"):
        reopened(place).view_set.read_rows([9])


def test_the_first_of_several_threads_wins(place: str, column: Column):
    column.discard(1)
    writers = [reopened(place) for _ in range(4)]
    rows = column.view_set.spec.part_rows(1)
    keys, levels = column.view_set.keys(1), store_samples.encoded(column.spec, rows)
    found: list[tuple[int, object]] = []

    def write(number: int) -> None:
        commit = writers[number].write_part(1, levels, keys=keys, stats={"number": number})
        found.append((number, commit.stats["number"]))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({number for _, number in found}) == 1
    assert len(found) == 4
    assert reopened(place).commits.require([1])[0].stats["number"] == found[0][1]
    assert errors(place) == []


def test_writers_of_different_bytes_never_mix(place: str, column: Column):
    column.discard(1)
    rows = column.view_set.spec.part_rows(1)
    keys = column.view_set.keys(1)
    outcomes: list[str] = []

    def write(number: int) -> None:
        levels = [
            {name: values + np.asarray(number, values.dtype) for name, values in parts.items()}
            for parts in store_samples.encoded(column.spec, rows)
        ]
        try:
            outcomes.append(reopened(place).write_part(1, levels, keys=keys).digest())
        except ConflictError:
            outcomes.append("refused")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(outcomes) - {"refused"}) == 1
    assert len(outcomes) == 3
    assert errors(place) == []


def test_two_processes_writing_one_store_end_with_the_same_store(place: str, whole: dict[str, str]):
    command = [sys.executable, "-c", FILL, place, *PATHS]
    writers = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(2)]
    assert [(writer.communicate()[1], writer.returncode) for writer in writers] == [(b"", 0)] * 2
    assert contents(place) == whole
    assert errors(place) == []


def test_a_killed_writer_is_completed(place: str, whole: dict[str, str]):
    with subprocess.Popen([sys.executable, "-c", FILL, place, *PATHS]) as writer:
        root = open_root(place)
        for _ in range(500):
            if root.exists("columns") or writer.poll() is not None:
                break
            time.sleep(0.02)
        writer.send_signal(signal.SIGKILL)
    if root.exists("views/train/view_set.json"):
        assert errors(place) == []
    store_samples.fill(place)
    assert contents(place) == whole


@pytest.mark.parametrize("path", ["/etc/passwd", "..", "a/../b", "a//b", "a/", "", ".", ".a", "a\\b", "a%2e", "é"])
def test_odd_paths_are_refused(place: str, path: str):
    root = open_root(place)
    for call in (
        root.where,
        root.open,
        root.digest,
        root.names,
        root.stamp,
        root.exists,
        root.remove,
        root.remove_tree,
    ):
        with pytest.raises(FormatError, match="plain relative path"):
            call(path)
    with pytest.raises(FormatError, match="plain relative path"):
        root.write_atomic(path, b"")


def test_reading_and_listing(place: str):
    root = open_root(place)
    assert (root.exists("a"), root.stamp("a")) == (False, None)
    assert [*root.names("a"), *root.folders("a"), *root.files()] == []
    for path in ("a/b/x", "a/b/y", "a/c", "z"):
        root.write_atomic(path, path.encode())
    assert [root.exists(path) for path in ("a", "a/b/x", "a/b/z", "a/b/x/y")] == [True, True, False, False]
    assert (root.names("a"), root.folders("a"), root.files("a")) == (["b", "c"], ["b"], ["a/b/x", "a/b/y", "a/c"])
    assert root.files() == ["a/b/x", "a/b/y", "a/c", "z"] == sorted(root.listing())
    assert root.read_bytes("a/c", max_bytes=3) == b"a/c"
    with pytest.raises(CorruptShardError, match="at most 2 bytes, got 3"):
        root.read_bytes("a/c", max_bytes=2)
    with pytest.raises(CorruptShardError, match="cannot be read"):
        root.digest("a/d")
    with pytest.raises(FileNotFoundError):
        root.open("a/d")
    file = root.open("a/b/x")
    assert (file.size, file.read(0, 3), file.read(3, 99), file.read(9, 1)) == (5, b"a/b", b"/x", b"")
    assert (file.digest(), file.stamp.size) == (root.digest("a/b/x"), 5)
    file.close()
    file.close()
    root.remove("a/c")
    root.remove("a/c")
    root.remove_tree("a")
    root.remove_tree("a")
    assert root.files() == ["z"]


def test_only_an_empty_place_can_become_a_store(place: str):
    open_root(place).write_atomic("thesis.tex", b"precious")
    with pytest.raises(FormatError, match="choose another"):
        Store.create(place)


# Object stores.


def test_objects_are_created_once(bucket: str):
    root = open_root(bucket)
    root.write_atomic("a", b"first")
    root.write_atomic("a", b"first")
    with pytest.raises(ConflictError, match=r"store/a: another writer's object .* sak store discard"):
        root.write_atomic("a", b"other")
    assert root.read_bytes("a", max_bytes=9) == b"first"
    root.write_atomic("a", b"other", replace=True)
    assert root.read_bytes("a", max_bytes=9) == b"other"


def test_a_part_discarded_while_it_is_written_is_not_committed(
    bucket: str, original: Path, monkeypatch: pytest.MonkeyPatch
):
    column = planted(bucket, original)
    column.discard(1)
    write, other = ObjectRoot.write_atomic, reopened(bucket)

    def interrupted(root: ObjectRoot, relative: str, data: bytes, /, *, replace: bool = False) -> None:
        if "/costs/" in relative:
            other.discard(1)
        write(root, relative, data, replace=replace)

    with monkeypatch.context() as patch:
        patch.setattr(ObjectRoot, "write_atomic", interrupted)
        with pytest.raises(StoreError, match="discarded while its part was being written"):
            store_samples.write_column_part(column, 1)
    assert reopened(bucket).committed_parts() == (0, 2)


def test_leftovers_of_other_bytes_are_refused_until_discarded(bucket: str, original: Path, whole: dict[str, str]):
    column = planted(bucket, original)
    column.discard(1)
    root = open_root(bucket)
    assert not [path for path in root.files() if "00001" in path.split("columns/")[-1] and "columns" in path]
    root.write_atomic(shard(column, 1), b"of a teacher that is not deterministic")
    with pytest.raises(ConflictError, match="sak store discard"):
        store_samples.fill(bucket)
    reopened(bucket).discard(1)
    store_samples.fill(bucket)
    assert contents(bucket) == whole


@pytest.mark.parametrize("status", [403, 503])
def test_interrupted_anywhere_and_resumed_equals_uninterrupted(
    proxied: Proxy, bucket: str, whole: dict[str, str], status: int, monkeypatch: pytest.MonkeyPatch
):
    """A writer that loses the service after so many requests, again and again."""
    monkeypatch.setattr(object_client, "_RETRIES", 0)
    runs, left = 0, 0

    def spoil(method: str, path: str, headers: dict[str, str]) -> int | None:
        nonlocal left
        left -= method == "PUT"
        return status if left < 0 else None

    proxied.spoil = spoil
    for runs in range(40):
        left = 8 + runs % 3
        try:
            store_samples.fill(bucket)
            break
        except UnreachableError:
            left = 1000
        if open_root(bucket).stamp("store.json") is not None:
            assert errors(bucket) == []
    assert 4 <= runs < 39
    left = 1000
    assert contents(bucket) == whole


def test_a_request_whose_answer_is_lost_is_sent_again_without_harm(proxied: Proxy, bucket: str):
    root = open_root(bucket)
    root.write_atomic("warm", b"")
    lost = iter([503])
    proxied.after = lambda method, path: next(lost, None) if method == "PUT" else None
    root.write_atomic("a", b"content")
    assert (root.read_bytes("a", max_bytes=99), next(lost, None)) == (b"content", None)


def test_content_damaged_on_its_way_is_not_kept(proxied: Proxy, bucket: str):
    root = open_root(bucket)
    root.write_atomic("warm", b"")
    proxied.send = lambda path, body: body.replace(b"content", b"CONTENT")
    with pytest.raises((StoreError, UnreachableError), match="store/a: "):
        root.write_atomic("a", b"content")
    assert root.stamp("a") is None


def test_a_service_without_conditional_writes_is_refused(proxied: Proxy, bucket: str, monkeypatch: pytest.MonkeyPatch):
    def spoil(method: str, path: str, headers: dict[str, str]) -> None:
        headers.pop("if-none-match", None)
        headers.pop("If-None-Match", None)

    proxied.spoil = spoil
    with pytest.raises(StoreError, match="the service ignores If-None-Match"):
        Store.create(bucket)
    assert open_root(bucket).files() == []


def test_a_service_that_is_away_is_no_damage(
    proxied: Proxy, bucket: str, original: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(object_client, "_RETRIES", 0)
    planted(bucket, original)
    column = reopened(bucket)
    proxied.spoil = lambda *_: 503
    for call in (
        lambda: column.read([1]),
        lambda: Store.open(bucket),
        lambda: verify(Store(column._root, options=ReadOptions())),
    ):
        with pytest.raises(UnreachableError, match=r"cannot be (read|listed) .*; check the network"):
            call()


def test_an_object_replaced_while_it_is_read_is_noticed(bucket: str):
    root = open_root(bucket, cache_bytes=0)
    root.write_atomic("a", b"first")
    file = root.open("a")
    root.write_atomic("a", b"other", replace=True)
    with pytest.raises(OSError, match="replaced since it was opened"):
        file.read(0, 5)
    root.remove("a")
    with pytest.raises(OSError, match="removed since it was opened"):
        file.read(0, 5)


def test_a_row_touches_no_other_bytes(proxied: Proxy, bucket: str, original: Path):
    planted(bucket, original)
    column = reopened(bucket, cache_bytes=0, verify="row")
    column.commits.require([1])
    asked: list[str] = []
    proxied.spoil = lambda method, path, headers: asked.append(path) if method == "GET" else None
    before = proxied.received
    column.read([9, 10], levels=[1])
    received = proxied.received - before
    shards = {f"{column.folder}/{column.backend.path(array, 1)}": array for array in column.arrays if array.level == 1}
    assert {path.split("/store/", 1)[1].split("?")[0] for path in asked} == set(shards)
    sizes = {path: len(open_root(bucket).read_bytes(path, max_bytes=1 << 20)) for path in shards}
    index = 8 * 16 + 4
    assert len(shards) * index < received < sum(sizes.values()) * 3 // 4
    assert column._root.traffic.received >= received


def test_a_shard_is_fetched_whole_once_for_all_processes(proxied: Proxy, bucket: str, original: Path, tmp_path: Path):
    planted(bucket, original)
    asked: list[str] = []
    proxied.spoil = lambda method, path, headers: asked.append(path) if method == "GET" and "/c/" in path else None
    for rows in ([8, 9], [15], [12]):
        reopened(bucket).read(rows, levels=[0])
    assert len(asked) == 2  # values and scales of one part
    code = "import sys, store; store.open(sys.argv[1]).columns('train')[0].read([10], levels=[0])"
    subprocess.run([sys.executable, "-c", code, bucket], check=True, cwd=PATHS[1])
    assert len(asked) == 2
    column = reopened(bucket)
    assert sum(path.stat().st_size for path in (tmp_path / "cache").glob("objects/*/*")) == sum(
        column.commits.require([1])[0].objects[column.backend.path(array, 1)].size
        for array in column.arrays
        if array.level == 0
    )


def test_damage_on_the_way_is_found_and_not_kept(proxied: Proxy, bucket: str, original: Path):
    planted(bucket, original)
    proxied.receive = lambda path, body: body[:-1] + b"?" if body and "/c/1/" in path else body
    with pytest.raises(CorruptShardError, match="rows 8 to 15"):
        reopened(bucket).read([9])
    proxied.receive = lambda path, body: body
    assert reopened(bucket).read([9])


@pytest.mark.parametrize(
    "url", ["s3://", "s3://b", "s3://bucket/../x", "s3://bucket//x", "s3://u@bucket/x", "s3://bucket/x?y"]
)
def test_odd_urls_are_refused(url: str):
    with pytest.raises(FormatError, match="expected"):
        open_root(url)


def test_odd_keys_are_listed_as_strays_and_never_opened(proxied: Proxy, bucket: str, original: Path):
    """Keys that only other programs make: the listing that the service gives names one."""
    planted(bucket, original)
    (key,) = [path for path in open_root(bucket).files() if path == "store.json"]
    proxied.receive = lambda path, body: body.replace(b"/store.json<", b"/..x/store.json<")
    assert "..x/store.json" in open_root(bucket).files()
    assert [finding.stray for finding in errors(bucket) if finding.path.startswith("..x")] == [True]
    proxied.receive = lambda path, body: body.replace(b"/store.json<", b"//store.json<")
    with pytest.raises(UnreachableError, match=r"cannot be listed \(a name with empty or dotted parts"):
        open_root(bucket).files()
    assert key


def test_probes_of_dead_processes_are_removed(bucket: str, original: Path):
    planted(bucket, original)
    root = open_root(bucket)
    assert isinstance(root, ObjectRoot)
    host = temporary_name().split("-")[1]
    dead = f".tmp-{host}-4194305-0"
    living = f".tmp-elsewhere-{os.getpid()}-0"
    for name in (dead, living):
        root._client.put(f"{bucket.split('/', 3)[3]}/{name}", b"", create=True)
    assert root.abandoned() == [dead]
    Store.create(bucket)
    assert [path for path in root.files() if path.startswith(".")] == [living]


def test_a_forked_process_is_told_not_to_hang(bucket: str, original: Path):
    planted(bucket, original)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            open_root(bucket).files()
        except UnreachableError as error:
            os.write(writer, str(error).encode())
        os._exit(0)
    os.close(writer)
    assert b"start worker processes with spawn" in os.read(reader, 4096)
    os.close(reader)
    assert os.waitpid(child, 0)[1] == 0


def test_without_obstore_the_extra_is_named(bucket: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(StoreError, match=r"pip install 'sak-distill\[s3\]'"):
        Store.open(bucket)


def test_there_is_no_local_path(bucket: str, original: Path):
    column = planted(bucket, original)
    with pytest.raises(StoreError, match="expected a store in a local folder"):
        column.view_set.tar_path(0)
    with pytest.raises(StoreError, match="expected a store in a local folder"):
        reopened(bucket, engine="zarr").read([1])


def test_a_copy_that_is_fetched_again_is_verified_again(proxied: Proxy, bucket: str, original: Path, tmp_path: Path):
    planted(bucket, original)
    column = reopened(bucket)
    column._shards._capacity = 1
    column.read([9], levels=[0])
    column.read([17], levels=[0])
    shutil.rmtree(tmp_path / "cache")
    proxied.receive = lambda path, body: body[:-1] + b"?" if body and "/c/1/" in path else body
    with pytest.raises(CorruptShardError, match=r"rows 8 to 15: .*SHA-256 differs"):
        column.read([9], levels=[0])
