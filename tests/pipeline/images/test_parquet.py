"""Parquet files with image bytes: keys, memory, damage."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import BadImageError, DataError
from pipeline.images import parquet
from pipeline.images.parquet import ParquetImages
from pipeline.images.registry import SourceRequest, open_source
from tests.pipeline.images.http_server import serve
from tests.pipeline.images.packing import picture, pixels, write_parquet

A, B, C = (picture(number) for number in range(3))


def write(path: Path, **columns: list[object]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_paths_without_suffix_are_keys(tmp_path: Path) -> None:
    write_parquet(tmp_path / "b.parquet", {"n02/x.JPEG": A, "n01/y.png": B})
    write_parquet(tmp_path / "a.parquet", {"n01/z": C})
    source = ParquetImages(str(tmp_path))
    assert tuple(source.keys()) == ("n01/y", "n01/z", "n02/x")
    for index, data in enumerate((B, C, A)):
        np.testing.assert_array_equal(source.read(index).image, pixels(data))


@pytest.mark.parametrize("other", [None, "same.png", "/abs/x.png", "../x.png", "a//b.png", "tab\t.png"])
def test_rows_without_a_path_of_their_own_are_named_by_file_and_row(tmp_path: Path, other: str | None) -> None:
    values = [{"bytes": A, "path": "same.png"}, {"bytes": B, "path": other}]
    (tmp_path / "data").mkdir()
    for name in ("train-00000-of-00002", "train-00001-of-00002"):
        write(tmp_path / f"data/{name}.parquet", image=values)
    source = ParquetImages(str(tmp_path / "**/{split}-*.parquet"), split="train")
    assert tuple(source.keys()) == tuple(f"train-0000{f}-of-00002/00000000{r}" for f in (0, 1) for r in (0, 1))
    np.testing.assert_array_equal(source.read(3).image, pixels(B))


def test_a_declared_column_names_the_images(tmp_path: Path) -> None:
    path = write(
        tmp_path / "x.parquet",
        image=[A, B],
        id=[7, 3],
        none=[None, "a"],
        same=["a", "a"],
        real=[0.5, 1.5],
        odd=["a\nb", "c"],
    )
    request = SourceRequest(name="parquet", root=str(path), split="all", size=None, images=None, seed=0, key="id")
    source = open_source(request)
    assert tuple(source.keys()) == ("3", "7")
    np.testing.assert_array_equal(source.read(0).image, pixels(B))
    for key, words in (
        ("nope", "expected a column of texts or integers 'nope', found image"),
        ("real", "texts or integers 'real'"),
        ("none", "column 'none' is empty in some rows"),
        ("same", "two images with one key 'a'"),
        ("odd", "'odd' has keys of more than 1024 characters or with control characters"),
    ):
        with pytest.raises(DataError, match=words):
            ParquetImages(str(path), key=key)


def test_only_parquet_takes_a_key(tmp_path: Path) -> None:
    request = SourceRequest(name="tar", root="x", split="all", size=None, images=None, seed=0, key="id")
    with pytest.raises(DataError, match="tar: names its images itself; leave key out"):
        open_source(request)


def test_row_groups_are_read_when_asked_for_and_few_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = {f"{n}.png": picture(n) for n in range(8)}
    source = ParquetImages(str(write_parquet(tmp_path / "x.parquet", images, rows=2)))
    monkeypatch.setattr(parquet, "_HELD_BYTES", 2 * 2 * len(A) + 200)
    loaded: list[int] = []
    load = source._groups._load
    monkeypatch.setattr(source._groups, "_load", lambda file, group: loaded.append(group) or load(file, group))
    for index in (0, 1, 4, 0, 6, 7, 4):
        np.testing.assert_array_equal(source.read(index).image, pixels(images[f"{index}.png"]))
    assert loaded == [0, 2, 3, 2]


def test_a_row_group_that_is_too_large_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "_MAX_GROUP_BYTES", 1000)
    with pytest.raises(DataError, match=r"x\.parquet: a row group of \d+ bytes, at most 1000; write the file again"):
        ParquetImages(str(write_parquet(tmp_path / "x.parquet", {"a.png": A})))


def test_a_row_group_that_grows_beyond_its_limit_is_refused_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal values are stored once, so a small file may hold a large row group."""
    monkeypatch.setattr(parquet, "_MAX_GROUP_BYTES", 400_000)
    big = b"x" * 50_000
    path = write(tmp_path / "x.parquet", image=[{"bytes": big, "path": f"{n}.png"} for n in range(200)])
    assert path.stat().st_size < 100_000
    with pytest.raises(DataError, match=r"x\.parquet: a row group of more than 400000 bytes; write the file again"):
        ParquetImages(str(path)).read(0)


def test_no_flipped_bit_of_a_footer_is_a_traceback(tmp_path: Path) -> None:
    data = write_parquet(tmp_path / "x.parquet", {f"{n}.png": A for n in range(4)}, rows=2).read_bytes()
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    rng = np.random.default_rng(0)
    for position in rng.choice(np.arange(start, len(data)), size=120, replace=False).tolist():
        spoilt = bytearray(data)
        spoilt[position] ^= 1 << int(rng.integers(8))
        path = tmp_path / f"{position}.parquet"
        path.write_bytes(spoilt)
        with contextlib.suppress(DataError, BadImageError):
            source = ParquetImages(str(path))
            for index in range(len(source.keys())):
                source.read(index)


def test_empty_damaged_and_large_images_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = [{"bytes": None, "path": "a.png"}, {"bytes": A[:90], "path": "b.png"}, None, {"bytes": A, "path": "d.png"}]
    source = ParquetImages(str(write(tmp_path / "x.parquet", image=values)))
    for index, words in (
        (0, "no bytes of an image"),
        (1, r"^x/000000001: cannot be decoded"),
        (2, "no bytes of an image"),
    ):
        with pytest.raises(BadImageError, match=words):
            source.read(index)
    monkeypatch.setattr(parquet, "MAX_IMAGE_BYTES", 50)
    with pytest.raises(BadImageError, match=r"x/000000003: refused, \d+ bytes, at most 50"):
        source.read(3)


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "footer"])
def test_damaged_files_are_named_on_one_line(tmp_path: Path, damage: str) -> None:
    data = write_parquet(tmp_path / "x.parquet", {"a.png": A}).read_bytes()
    footer = data[:-60] + b"\xff" * 40 + data[-20:]
    spoilt = {"cut": data[: len(data) // 2], "text": b"<html>" * 40, "empty": b"", "footer": footer}[damage]
    (tmp_path / "x.parquet").write_bytes(spoilt)
    with pytest.raises(DataError, match=r"x\.parquet: cannot be read as Parquet") as caught:
        ParquetImages(str(tmp_path / "x.parquet"))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("values", [[1, 2], ["a", "b"], [{"path": "x"}]])
def test_a_file_without_image_bytes_says_what_it_has(tmp_path: Path, values: list[object]) -> None:
    with pytest.raises(DataError, match=r"expected a column 'image' of image bytes, found image \("):
        ParquetImages(str(write(tmp_path / "x.parquet", image=values)))


def test_a_changed_file_is_indexed_again_and_has_another_fingerprint(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", {"a.png": A})
    source = ParquetImages(str(path))
    write_parquet(path, {"a.png": B})
    with pytest.raises(DataError, match="has changed since it was opened"):
        source.read(0)
    newer = ParquetImages(str(path))
    np.testing.assert_array_equal(newer.read(0).image, pixels(B))
    assert newer.fingerprint() != source.fingerprint()


def test_files_on_a_web_server_are_read_by_ranges(tmp_path: Path) -> None:
    images = {f"{n}.png": picture(n) for n in range(4)}
    write_parquet(tmp_path / "x.parquet", images, rows=1)
    with serve(tmp_path) as site:
        source = ParquetImages(f"{site.url}/x.parquet")
        np.testing.assert_array_equal(source.read(2).image, pixels(images["2.png"]))
        again = ParquetImages(f"{site.url}/x.parquet")
        before = len(site.asked)
        np.testing.assert_array_equal(again.read(0).image, pixels(images["0.png"]))
        assert len(site.asked) - before <= 4  # the footer in two, and the column
        assert again.fingerprint() == ParquetImages(str(tmp_path / "x.parquet")).fingerprint()
