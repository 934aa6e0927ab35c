"""Tars of any writer are listed as the standard library lists them; damaged and hostile ones are refused by name."""

from __future__ import annotations

import io
import subprocess
import tarfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.images.ranges import open_range
from pipeline.images.tarscan import TAIL, read_member, scan_tar
from tests.pipeline.images.packing import tar_bytes

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
every_format = pytest.mark.parametrize("kind", FORMATS)
names = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=70).map(lambda text: f"{text}.jpg")


class Bytes:
    """A file in memory."""

    where, identity = "some.tar", ""

    def __init__(self, data: bytes, *, window: int = 4096) -> None:
        self.data, self.size, self.window = data, len(data), window

    def read(self, offset: int, size: int, /) -> bytes:
        assert 0 <= offset <= offset + size <= self.size
        return self.data[offset : offset + size]


@every_format
@settings(max_examples=30)
@given(
    files=st.dictionaries(names, st.binary(max_size=3000), max_size=6),
    folders=st.lists(st.sampled_from(["a", "b" * 90, "ü" * 40]), max_size=3),
    window=st.sampled_from([512, 4096, 1 << 20]),
)
def test_members_are_those_of_the_standard_library(
    kind: str, files: dict[str, bytes], folders: list[str], window: int
) -> None:
    if kind == "ustar":  # which holds no longer names, and counts them in bytes
        folders, files = [], {f"{number}.jpg": data for number, data in enumerate(files.values())}
    stored = {"/".join([*folders, name]): data for name, data in files.items()}
    data = tar_bytes(stored, format=FORMATS[kind])
    file = Bytes(data, window=window)
    found = list(scan_tar(file))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert [(m.name, m.offset, m.size) for m in found] == [(i.name, i.offset_data, i.size) for i in tar]
    for member in found:
        content = read_member(file, name=member.name, offset=member.offset, size=member.size)
        assert content == stored[member.name]
        assert member.tail == zlib.crc32(content[-TAIL:])


@settings(max_examples=50)
@given(data=st.binary(max_size=300), at=st.integers(0, 3000), cut=st.integers(0, 6000))
def test_bytes_from_anywhere_are_a_tar_or_a_data_error(data: bytes, at: int, cut: int) -> None:
    good = tar_bytes({"a/x.jpg": b"x" * 700, "b" * 120 + ".png": b"y" * 40})
    spoilt = (good[:at] + data + good[at + len(data) :])[: len(good) - cut]
    for nested in (True, False):
        try:
            members = list(scan_tar(Bytes(spoilt), nested=nested))
        except DataError as error:
            members, said = [], str(error)
        else:
            said = "some.tar"
        assert all(0 < m.offset <= m.offset + m.size <= len(spoilt) for m in members)
        assert said.startswith("some.tar")
        assert len(said.splitlines()) == 1


@pytest.mark.parametrize("keep", [0, 100, 512, 700, 1536, 2100, 2560])
def test_a_cut_tar_is_told_from_a_short_one(keep: int) -> None:
    whole = tar_bytes({"a.jpg": b"x" * 600, "b.jpg": b"y" * 10})
    with pytest.raises(DataError, match=rf"some\.tar: cut short at byte {keep}, expected \d+; the copy is incomplete"):
        list(scan_tar(Bytes(whole[:keep])))


def of_type(name: str, kind: bytes, *, link: str = "") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        tar.addfile(info)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (of_type("x.jpg", tarfile.SYMTYPE, link="/etc/passwd"), r"x\.jpg: a symbolic link; pack .* --dereference"),
        (of_type("x.jpg", tarfile.LNKTYPE, link="a.jpg"), r"x\.jpg: a hard link; .*--hard-dereference"),
        (of_type("x.jpg", tarfile.CHRTYPE), "a device"),
        (of_type("x.jpg", tarfile.FIFOTYPE), "a pipe"),
        (of_type("x.jpg", tarfile.GNUTYPE_SPARSE), "a sparse file"),
        (of_type("x.jpg", b"V"), "of type b'V'"),
        (tar_bytes({"/etc/x.jpg": b""}), r"/etc/x\.jpg: a name that leads out"),
        (tar_bytes({"a/../../x.jpg": b""}), "a name that leads out"),
        (tar_bytes({"../" * 60 + "x.jpg": b""}), "a name that leads out"),
        (tar_bytes({"a\nb.jpg": b""}), "not printable"),
        (tar_bytes({"n" * 2000: b""}), "too long"),
        (tar_bytes({"a.jpg": b"1"}) + tar_bytes({"b.jpg": b"2"}), "bytes after the end"),
        (b"\x1f\x8b" + bytes(600), "compressed tar"),
        (b"<html>not found</html>".ljust(512), "no tar header at byte 0"),
    ],
)
def test_hostile_and_odd_tars_are_refused_on_one_line(data: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        list(scan_tar(Bytes(data)))
    assert len(str(caught.value).splitlines()) == 1


def test_a_tar_of_tars_is_listed_through_one_level() -> None:
    inner = tar_bytes({"n01_1.JPEG": b"one", "deeper.tar": b"no tar"})
    data = tar_bytes({"n01.tar": inner, "n02.tar": tar_bytes({"n02_9.JPEG": b"nine"})})
    file = Bytes(data)
    found = {m.name: file.read(m.offset, m.size) for m in scan_tar(file, nested=True)}
    assert found == {"n01/n01_1.JPEG": b"one", "n01/deeper.tar": b"no tar", "n02/n02_9.JPEG": b"nine"}
    assert [m.name for m in scan_tar(file)] == ["n01.tar", "n02.tar"]


def test_a_cut_inner_tar_is_named() -> None:
    data = tar_bytes({"n01.tar": tar_bytes({"a.jpg": b"x" * 5000})[:2048]})
    with pytest.raises(DataError, match=r"some\.tar, n01/: cut short"):
        list(scan_tar(Bytes(data), nested=True))


def test_tars_of_the_tar_program_are_read(tmp_path: Path) -> None:
    (tmp_path / "in/deep").mkdir(parents=True)
    long = f"{'long' * 50}.jpg"
    for name in ("deep/a.jpg", long):
        (tmp_path / "in" / name).write_bytes(name.encode() * 30)
    for kind in ("gnu", "posix", "ustar"):
        picked = ["deep/a.jpg"] if kind == "ustar" else ["."]
        out = tmp_path / f"{kind}.tar"
        subprocess.run(["tar", f"--format={kind}", "-C", tmp_path / "in", "-cf", out, *picked], check=True)
        file = open_range(str(out))
        found = {m.name: read_member(file, name=m.name, offset=m.offset, size=m.size) for m in scan_tar(file)}
        assert found["deep/a.jpg"] == b"deep/a.jpg" * 30
        assert found.get(long, long.encode() * 30) == long.encode() * 30


def test_another_file_in_the_place_of_a_member_is_noticed() -> None:
    old, new = (dict.fromkeys(names, b"x" * 40) for names in (("a.jpg", "b.jpg"), ("b.jpg", "a.jpg")))
    member = next(iter(scan_tar(Bytes(tar_bytes(old)))))
    with pytest.raises(DataError, match=r"a\.jpg is not where the index says; the tar has changed"):
        read_member(Bytes(tar_bytes(new)), name="a.jpg", offset=member.offset, size=member.size)
