from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs import zstd

from store.backends.base import LevelArray, ShardArray
from store.backends.tar import WebDataset, npy_header, tar_header
from store.codecs.base import PartSpec
from store.tarball import build_tar
from tests.store.backends import columns
from tests.store.backends.test_zarr3 import MemoryFile

ARRAYS = (
    LevelArray(0, "values", "level_0", PartSpec(shape=(3, 4), dtype="int8")),
    LevelArray(0, "scale", "level_0_scale", PartSpec(shape=(4,), dtype="float32")),
)
ROWS = range(8, 11)
VALUES = (np.arange(36, dtype=np.int8).reshape(3, 3, 4), np.ones((3, 4), np.float32))


def packed(threads: int = 1) -> bytes:
    arrays = [ShardArray(array, values) for array, values in zip(ARRAYS, VALUES, strict=True)]
    ((path, data),) = WebDataset().pack(1, arrays, rows=ROWS, rows_per_shard=8, threads=threads)
    assert path == "shards/part-00001.tar"
    return data


def index(data: bytes) -> dict[str, tuple[list[int], list[int]]]:
    found = WebDataset().index(MemoryFile(data), ARRAYS, rows=ROWS, rows_per_shard=8)
    return {name: (list(extents.offsets), list(extents.sizes)) for name, extents in found.items()}


def members(data: bytes) -> list[tuple[int, str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        found = []
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            row, _, suffix = member.name.partition(".")
            found.append((int(row), suffix, file.read()))
        return found


# webdataset leaves the last file of an iteration for the garbage collector to close.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_plain_webdataset_reads_them(tmp_path: Path):
    column = columns.fill(tmp_path / "store", backend="webdataset", codec="int8")
    for part in range(3):
        path = tmp_path / "store" / column.folder / f"shards/part-{part:05d}.tar"
        samples = list(webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False))
        rows = column.view_set.spec.part_rows(part)
        assert [sample["__key__"] for sample in samples] == [f"{row:09d}" for row in rows]
        read = column.read(rows)
        for place, sample in enumerate(samples):
            arrays = {name: value for name, value in sample.items() if not name.startswith("_")}
            assert set(arrays) == {f"{array.name}.npy.zst" for array in column.arrays}
            for array in column.arrays:
                content = zstd.decompress(arrays[f"{array.name}.npy.zst"])
                values = np.load(io.BytesIO(content), allow_pickle=False)
                expected = read[array.level][array.part][place]
                assert values.dtype == expected.dtype
                np.testing.assert_array_equal(values, expected)


def test_tars_are_deterministic_anonymous_and_whole():
    data = packed()
    assert packed(threads=4) == data
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        found = [(m.name, m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode, m.type) for m in tar]
    names = [f"{row:09d}.{array.name}.npy.zst" for row in ROWS for array in ARRAYS]
    assert found == [(name, 0, 0, 0, "", "", 0o644, tarfile.REGTYPE) for name in names]
    for name, (offsets, sizes) in index(data).items():
        frames = [content for _, suffix, content in members(data) if suffix == f"{name}.npy.zst"]
        assert [data[start : start + size] for start, size in zip(offsets, sizes, strict=True)] == frames


@settings(max_examples=60)
@given(row=st.integers(0, 10**15 - 1), level=st.integers(0, 63), size=st.integers(1, (8 << 30) - 1))
def test_headers_are_those_that_tarfile_writes(row: int, level: int, size: int):
    name = f"{row:09d}.level_{level}_scale.npy.zst"
    info = tarfile.TarInfo(name)
    info.size = size
    assert tar_header(name, size) == info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")


@given(
    shape=st.lists(st.integers(1, 1 << 20), min_size=1, max_size=4),
    dtype=st.sampled_from(["int8", "uint16", "float32"]),
)
def test_npy_headers_are_read_by_numpy(shape: list[int], dtype: str):
    header = npy_header(PartSpec(shape=tuple(shape), dtype=dtype))
    assert len(header) % 64 == 0
    file = io.BytesIO(header)
    assert np.lib.format.read_magic(file) == (1, 0)
    found = np.lib.format.read_array_header_1_0(file)
    assert found == (tuple(shape), False, np.dtype(dtype))
    assert not file.read()


def test_every_flip_of_a_header_is_found():
    data = packed()
    position = 0
    for row, suffix, content in members(data):
        for at in range(position, position + 512):
            damaged = bytearray(data)
            damaged[at] ^= 1
            with pytest.raises(ValueError, match=rf"{row:09d}\.{suffix}"):
                index(bytes(damaged))
        position += 512 + len(content) + -len(content) % 512


def renamed(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    """The tar with its second member called something else."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for place, (row, suffix, content) in enumerate(members(packed())):
            info = tarfile.TarInfo(name if place == 1 else f"{row:09d}.{suffix}")
            info.mode = 0o644
            info.type, info.linkname = (kind, link) if place == 1 else (tarfile.REGTYPE, "")
            info.size = len(content) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


SECOND = "000000008.level_0_scale.npy.zst"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(renamed("../../etc/passwd"), id="parent"),
        pytest.param(renamed("/etc/passwd"), id="absolute"),
        pytest.param(renamed("pipe:id"), id="pipe"),
        pytest.param(renamed("000000008.level_0_scale.pkl"), id="pickle"),
        pytest.param(renamed("000000009.level_0_scale.npy.zst"), id="row"),
        pytest.param(renamed("x" * 200), id="extended"),
        pytest.param(renamed(SECOND, tarfile.SYMTYPE, "/etc/passwd"), id="symlink"),
        pytest.param(renamed(SECOND, tarfile.LNKTYPE, "/etc/passwd"), id="hardlink"),
        pytest.param(renamed(SECOND, tarfile.CHRTYPE), id="device"),
        pytest.param(renamed(SECOND, tarfile.DIRTYPE), id="folder"),
        pytest.param(build_tar(members(packed())[:-1]).data, id="fewer"),
        pytest.param(build_tar([*members(packed()), (11, "level_0.npy.zst", b"x")]).data, id="more"),
        pytest.param(build_tar(members(packed())[::-1]).data, id="order"),
        pytest.param(packed() + bytes(512), id="after"),
        pytest.param(packed()[:-600], id="short"),
        pytest.param(b"", id="empty"),
    ],
)
def test_tars_that_are_not_ours_are_refused(data: bytes):
    with pytest.raises(ValueError, match=r"expected the (tar member|end of the tar)|tar member .* its size"):
        index(data)


def test_absurd_sizes_are_refused_before_anything_is_read():
    data = bytearray(packed())
    for size in (1 << 32, 5000):
        data[:512] = tar_header("000000008.level_0.npy.zst", size)
        with pytest.raises(ValueError, match=f"its size {size} is not one that sak writes"):
            index(bytes(data))


@settings(max_examples=100)
@given(data=st.binary(max_size=1200))
def test_arbitrary_bytes_are_refused(data: bytes):
    with pytest.raises(ValueError):
        index(data)


def decode(frame: bytes) -> np.ndarray:
    out = np.zeros(12, np.uint8)
    WebDataset().decoder(ARRAYS[0].spec)(frame, out)
    return out


def test_members_must_hold_the_row_that_belongs_there():
    header = npy_header(ARRAYS[0].spec)
    good = zstd.compress(header + bytes(range(12)), 3, True)
    np.testing.assert_array_equal(decode(good), np.arange(12))
    objects = header.replace(b"'|i1'", b"'|O' ")
    fortran = header.replace(b"False", b"True ")
    shape = header.replace(b"(3, 4)", b"(4, 3)")
    for other in (objects, fortran, shape):
        assert len(other) == len(header)
        with pytest.raises(ValueError, match=r"expected the \.npy header \{'descr': '\|i1'"):
            decode(zstd.compress(other + bytes(12), 3, True))
    for frame in (
        zstd.compress(header + bytes(12), 3, False),
        zstd.compress(header + bytes(1 << 24), 3, True),
        zstd.compress(header, 3, True),
        good[:-1],
        good[:-4] + b"1234",
        b"",
    ):
        with pytest.raises(ValueError):
            decode(frame)
