from __future__ import annotations

import contextlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from store.errors import CorruptShardError
from store.local_file import LocalFile
from store.tarball import build_tar, scan_tar

FILES = [(12, "png", b"abc"), (12, "normals.npy", b"x" * 512), (13, "png", b"")]


def scan(tmp_path: Path, data: bytes) -> tuple[tuple[int, str, int, int], ...]:
    path = tmp_path / "part.tar"
    path.write_bytes(data)
    with contextlib.closing(LocalFile.open(path)) as file:
        return scan_tar(file, where="part.tar")


def test_members_are_found_where_they_were_put(tmp_path: Path):
    tar = build_tar(FILES)
    assert scan(tmp_path, tar.data) == tar.members
    assert [tar.data[member.offset : member.offset + member.size] for member in tar.members] == [f[2] for f in FILES]
    with tarfile.open(fileobj=io.BytesIO(tar.data)) as theirs:
        assert theirs.getnames() == ["000000012.png", "000000012.normals.npy", "000000013.png"]


def hostile(change: Callable[[tarfile.TarInfo], None], tar_format: int = tarfile.USTAR_FORMAT) -> bytes:
    info = tarfile.TarInfo("000000001.png")
    info.mode = 0o644
    change(info)
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tar_format) as tar:
        tar.addfile(info, io.BytesIO(bytes(info.size)))
    return sink.getvalue()


def set_to(**fields: object) -> Callable[[tarfile.TarInfo], None]:
    def change(info: tarfile.TarInfo) -> None:
        for name, value in fields.items():
            setattr(info, name, value)

    return change


@pytest.mark.parametrize(
    "change",
    [
        set_to(name="../000000001.png"),
        set_to(name="/etc/000000001.png"),
        set_to(name="a/000000001.png"),
        set_to(name="000000001.pyd.pickle.x.y"),
        set_to(name="000000001"),
        set_to(type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        set_to(type=tarfile.LNKTYPE, linkname="000000000.png"),
        set_to(type=tarfile.CHRTYPE),
        set_to(type=tarfile.FIFOTYPE),
        set_to(type=tarfile.DIRTYPE),
        set_to(mode=0o4755),
        set_to(linkname="000000000.png"),
    ],
)
def test_hostile_members_are_refused(tmp_path: Path, change: Callable[[tarfile.TarInfo], None]):
    with pytest.raises(CorruptShardError, match="refused tar member"):
        scan(tmp_path, hostile(change))


def test_extended_headers_are_refused(tmp_path: Path):
    with pytest.raises(CorruptShardError, match="refused tar member"):
        scan(tmp_path, hostile(set_to(name="é" * 200 + ".png"), tarfile.PAX_FORMAT))
    with pytest.raises(CorruptShardError, match="refused tar member"):
        scan(tmp_path, hostile(set_to(name="n" * 200), tarfile.GNU_FORMAT))


@pytest.mark.parametrize("size", [1 << 40, 1 << 33, 8**11 - 1, 4096])
def test_absurd_sizes_are_refused_before_anything_is_read(tmp_path: Path, size: int):
    info = tarfile.TarInfo("000000001.png")
    info.size = size
    info.mode = 0o644
    with pytest.raises(CorruptShardError, match=r"refused tar member|cut short"):
        scan(tmp_path, info.tobuf(tarfile.GNU_FORMAT if size >> 33 else tarfile.USTAR_FORMAT) + bytes(1024))


@pytest.mark.parametrize("length", [0, 100, 512, 600, 1023, 1024, 2048, -1, -512, -1024])
def test_truncated_tars_are_refused(tmp_path: Path, length: int):
    with pytest.raises(CorruptShardError):
        scan(tmp_path, build_tar(FILES).data[:length])


def test_bytes_after_the_end_are_refused(tmp_path: Path):
    with pytest.raises(CorruptShardError, match="after the end"):
        scan(tmp_path, build_tar(FILES).data + bytes(512))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(noise=st.binary(max_size=2000))
def test_noise_is_refused_in_one_way(tmp_path: Path, noise: bytes):
    with pytest.raises(CorruptShardError):
        scan(tmp_path, noise)
