from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from store import disk
from store.document import parse_document, render_document
from store.errors import CorruptShardError, FormatError, StoreError
from store.local_root import LocalRoot


@pytest.mark.parametrize("path", ["/etc/passwd", "..", "a/../b", "a//b", "a/", "", ".", ".a", "a\\b", "a\0b", "a/~"])
def test_paths_that_could_leave_the_root_are_refused(tmp_path: Path, path: str):
    with pytest.raises(FormatError, match="plain relative path"):
        LocalRoot(tmp_path).local(path)


def test_links_out_of_the_root_are_refused(tmp_path: Path):
    (tmp_path / "root").mkdir()
    (tmp_path / "secret").write_text("x")
    (tmp_path / "root" / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(FormatError, match="a link leads outside"):
        LocalRoot(tmp_path / "root").read_bytes("link", max_bytes=10)


def test_reads_are_bounded(tmp_path: Path):
    root = LocalRoot(tmp_path)
    root.write_atomic("a/b/file", b"12345")
    assert root.read_bytes("a/b/file", max_bytes=5) == b"12345"
    with pytest.raises(CorruptShardError, match="at most 4 bytes, got 5"):
        root.read_bytes("a/b/file", max_bytes=4)
    with pytest.raises(CorruptShardError, match="cannot be read"):
        root.read_bytes("a/b", max_bytes=4)


@pytest.mark.parametrize("step", ["mkdir", "open_new", "write", "fsync", "pread", "replace"])
def test_a_failing_disk_leaves_the_old_file_and_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
):
    root = LocalRoot(tmp_path)
    root.write_atomic("file", b"old")
    target = "folder/file" if step == "mkdir" else "file"

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(disk, step, fail)
        with pytest.raises(StoreError, match=r"file: cannot be written \(No space left on device\); mend the cause"):
            root.write_atomic(target, b"new")
    assert root.read_bytes("file", max_bytes=9) == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"[" * 100_000, b"\xff", b'{"body": 3}'])
def test_other_json_is_refused(data: bytes):
    with pytest.raises(StoreError, match=r"x\.json: "):
        parse_document(data, kind="store", where="x.json")


def test_documents_round_trip():
    body = {"b": [1, 2.5, None], "a": {"é": True}}
    assert parse_document(render_document("store", body), kind="store", where="x") == body


def test_stamps_leave_out_what_is_no_file(tmp_path: Path) -> None:
    root = LocalRoot(tmp_path)
    root.write_atomic("a/file", b"x")
    (tmp_path / "a" / "folder").mkdir()
    (tmp_path / "a" / "lost").symlink_to(tmp_path / "nothing")
    (tmp_path / "a" / "within").symlink_to(tmp_path / "a" / "file")
    (tmp_path / "a" / ".tmp-x-1-1").touch()
    found = root.stamps("a")
    assert found == {name: root.stamp("a/file") for name in ("file", "within")}
    assert root.stamps("a/file") == {}
