from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from store import disk, object_cache
from store.errors import StoreError
from store.object_cache import CachedFile, Fetch, ObjectCache, cache_folder
from store.object_client import ReplacedError
from store.root import Stamp, temporary_name

ROOT = Path(__file__).parents[2]


class Remote:
    """Objects of given sizes; counts what is asked of them."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def content(self, size: int) -> bytes:
        return bytes(range(256)) * (size // 256) + bytes(size % 256)

    def open(
        self, cache: ObjectCache, name: str, size: int, etag: str = "e", sha256: str | None = None
    ) -> CachedFile | None:
        def blocks(start: int, stop: int) -> bytes:
            self.asked.append((start, stop))
            return self.content(size)[start:stop]

        return cache.open(name, Stamp(etag, size, 0), fetch=Fetch(blocks, sha256))


@pytest.fixture
def remote() -> Remote:
    return Remote()


def held(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("objects/*/*"))


def entry(folder: Path) -> Path:
    (path,) = folder.glob("objects/*/*")
    return path


def opened(file: CachedFile | None) -> CachedFile:
    assert file is not None
    return file


def test_an_object_is_fetched_once_and_read_from_the_disk_after(tmp_path: Path, remote: Remote):
    for cache in (ObjectCache(tmp_path, limit=5000), ObjectCache(tmp_path, limit=5000)):
        for _ in range(2):
            file = opened(remote.open(cache, "a", 1000))
            assert (file.size, file.read(0, 1000), file.read(990, 50)) == (1000, remote.content(1000), bytes(10))
            assert file.digest() == entry(tmp_path).name[65:]
            file.close()
    assert remote.asked == [(0, 1000)]


def test_a_copy_of_other_content_than_expected_is_given_and_not_kept(tmp_path: Path, remote: Remote):
    cache = ObjectCache(tmp_path, limit=5000)
    file = opened(remote.open(cache, "a", 1000, sha256="0" * 64))
    assert (file.digest() != "0" * 64, file.read(0, 1000)) == (True, remote.content(1000))
    assert held(tmp_path) == 0
    right = file.digest()
    for _ in range(2):
        opened(remote.open(cache, "a", 1000, sha256=right)).close()
    assert len(remote.asked) == 2


def test_another_version_of_an_object_is_another_object(tmp_path: Path, remote: Remote):
    cache = ObjectCache(tmp_path, limit=5000)
    opened(remote.open(cache, "a", 1000, etag="old")).close()
    opened(remote.open(cache, "a", 1000, etag="new")).close()
    assert len(remote.asked) == 2


@pytest.mark.parametrize("spoil", [lambda data: data[:-1], lambda data: data[:7] + b"?" + data[8:], lambda data: b""])
def test_a_damaged_copy_is_fetched_again(tmp_path: Path, remote: Remote, spoil: Callable[[bytes], bytes]):
    opened(remote.open(ObjectCache(tmp_path, limit=5000), "a", 1000)).close()
    entry(tmp_path).write_bytes(spoil(entry(tmp_path).read_bytes()))
    assert opened(remote.open(ObjectCache(tmp_path, limit=5000), "a", 1000)).read(0, 1000) == remote.content(1000)
    assert len(remote.asked) == 2


def test_a_copy_damaged_under_a_running_process_is_fetched_again(tmp_path: Path, remote: Remote):
    cache = ObjectCache(tmp_path, limit=5000)
    opened(remote.open(cache, "a", 1000)).close()
    entry(tmp_path).write_bytes(bytes(1000))
    assert opened(remote.open(cache, "a", 1000)).read(0, 1000) == remote.content(1000)


def test_the_least_recently_opened_make_room(tmp_path: Path, remote: Remote):
    cache = ObjectCache(tmp_path, limit=3000)
    for name in ("a", "b", "c", "a", "d"):
        opened(remote.open(cache, name, 1000)).close()
        assert held(tmp_path) <= 3000
        time.sleep(0.002)  # file systems tell times apart by a clock tick
    before = len(remote.asked)
    for name in ("a", "c", "d"):
        opened(remote.open(cache, name, 1000)).close()
    assert len(remote.asked) == before
    opened(remote.open(cache, "b", 1000)).close()
    assert len(remote.asked) == before + 1


def test_what_is_open_is_never_evicted(tmp_path: Path, remote: Remote):
    cache = ObjectCache(tmp_path, limit=2000)
    first, second = opened(remote.open(cache, "a", 1000)), opened(remote.open(cache, "b", 1000))
    assert remote.open(cache, "c", 1000) is None
    second.close()
    opened(remote.open(cache, "c", 1000)).close()
    assert first.read(0, 1000) == remote.content(1000)
    assert opened(remote.open(cache, "a", 1000)).read(0, 1) == remote.content(1)
    assert [size for _, size in remote.asked] == [1000, 1000, 1000]
    assert held(tmp_path) == 2000


def test_what_another_process_has_open_is_never_evicted(tmp_path: Path, remote: Remote):
    code = (
        "import sys; from pathlib import Path\n"
        "from store.object_cache import Fetch, ObjectCache; from store.root import Stamp\n"
        "cache = ObjectCache(Path(sys.argv[1]), limit=1500)\n"
        "file = cache.open('a', Stamp('e', 1000, 0), fetch=Fetch(lambda start, stop: bytes(stop - start)))\n"
        "print('open', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"open\n"
        cache = ObjectCache(tmp_path, limit=1500)
        assert remote.open(cache, "b", 1000) is None
        other.communicate(b"")
    opened(remote.open(cache, "b", 1000)).close()
    assert held(tmp_path) == 1000


def test_what_is_larger_than_the_limit_is_not_fetched(tmp_path: Path, remote: Remote):
    assert remote.open(ObjectCache(tmp_path, limit=999), "a", 1000) is None
    assert remote.asked == []


def test_several_threads_fetch_an_object_once(tmp_path: Path, remote: Remote):
    caches = [ObjectCache(tmp_path, limit=5000) for _ in range(4)]
    found: list[bytes] = []

    def read(cache: ObjectCache) -> None:
        file = opened(remote.open(cache, "a", 1000))
        found.append(file.read(0, 1000))
        file.close()

    threads = [threading.Thread(target=read, args=(cache,)) for cache in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [remote.content(1000)] * 4
    assert remote.asked == [(0, 1000)]


def test_a_download_holds_few_blocks_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(object_cache, "_BLOCK", 100)
    alive, most = set[int](), [0]
    write = disk.write

    def fetch(start: int, stop: int) -> bytes:
        alive.add(start)
        most[0] = max(most[0], len(alive))
        return bytes([start // 100]) * (stop - start)

    def written(descriptor: int, data: bytes | memoryview) -> int:
        alive.discard(int(data[0]) * 100)
        return write(descriptor, data)

    monkeypatch.setattr(disk, "write", written)
    file = opened(ObjectCache(tmp_path, limit=5000).open("a", Stamp("e", 2050, 0), fetch=Fetch(fetch)))
    assert file.read(0, 2050) == b"".join(bytes([block]) * 100 for block in range(21))[:2050]
    assert 1 <= most[0] <= 5


def test_what_a_dead_process_was_fetching_goes_and_what_a_living_one_fetches_counts(tmp_path: Path, remote: Remote):
    cache = ObjectCache(tmp_path, limit=2000)
    opened(remote.open(cache, "a", 500)).close()
    half = entry(tmp_path).with_name(temporary_name())
    half.write_bytes(bytes(1500))
    opened(remote.open(cache, "b", 500)).close()
    assert not half.exists()
    assert held(tmp_path) == 1000
    half.write_bytes(bytes(1500))
    descriptor = disk.open_read(half)
    disk.flock(descriptor, object_cache.fcntl.LOCK_EX)
    assert remote.open(cache, "c", 1000) is None
    disk.close(descriptor)


@pytest.mark.parametrize("step", ["mkdirs", "open_new", "truncate", "write", "pread", "replace", "flock"])
def test_a_failing_disk_gives_one_line_and_leaves_nothing(
    tmp_path: Path, remote: Remote, monkeypatch: pytest.MonkeyPatch, step: str
):
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    cache = ObjectCache(tmp_path, limit=2000)
    with monkeypatch.context() as patch:
        patch.setattr(disk, step, fail)
        with pytest.raises(StoreError, match=r"failed \(No space left on device\); set SAK_CACHE"):
            remote.open(cache, "a", 1000)
    assert held(tmp_path) == 0
    assert opened(remote.open(cache, "a", 1000)).read(0, 1000) == remote.content(1000)


def test_an_object_that_is_replaced_while_it_is_fetched_leaves_nothing(tmp_path: Path):
    def fetch(start: int, stop: int) -> bytes:
        raise ReplacedError(errno.ESTALE, "the object has been replaced")

    with pytest.raises(ReplacedError):
        ObjectCache(tmp_path, limit=5000).open("a", Stamp("e", 100, 0), fetch=Fetch(fetch))
    assert held(tmp_path) == 0


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SAK_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path.home() / ".cache" / "sak"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/sak")
    monkeypatch.setenv("SAK_CACHE", "/y/z")
    assert cache_folder() == Path("/y/z")
