"""The store is plain Zarr, Parquet, tar and JSON: read here without any of the store's own code."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import store_samples
import webdataset
import zarr

from store.column import Column


def test_columns_are_plain_zarr(filled: Column, tmp_path: Path):
    group = zarr.open_group(tmp_path / "store" / filled.folder, mode="r")
    assert sorted(group.array_keys()) == ["level_0", "level_0_scale", "level_1", "level_1_scale"]
    for level in range(2):
        values, scale = group[f"level_{level}"], group[f"level_{level}_scale"]
        assert isinstance(values, zarr.Array)
        assert isinstance(scale, zarr.Array)
        assert values.shape == (20, *store_samples.LEVELS[level].shape)
        assert values.shards == (8, *values.shape[1:])
        assert values.chunks == (1, *values.shape[1:])
        decoded = np.asarray(values[:]).astype(np.float32) * np.asarray(scale[:])
        np.testing.assert_array_equal(decoded, filled.read_floats(range(20), levels=[level])[0])


def test_zarr_writes_the_metadata_that_we_write(filled: Column, tmp_path: Path):
    theirs = zarr.create_array(
        zarr.storage.LocalStore(tmp_path / "zarr"),
        name="level_0_scale",
        shape=(20, 1, 3, 4),
        shards=(8, 1, 3, 4),
        chunks=(1, 1, 3, 4),
        dtype="float32",
        compressors=[zarr.codecs.ZstdCodec(level=3), zarr.codecs.Crc32cCodec()],
        fill_value=0,
    )
    ours = json.loads((tmp_path / "store" / filled.folder / "level_0_scale" / "zarr.json").read_bytes())
    assert ours == json.loads((tmp_path / "zarr" / "level_0_scale" / "zarr.json").read_bytes())
    assert theirs.shards == (8, 1, 3, 4)


def test_view_sets_are_plain_parquet_and_tar(filled: Column, tmp_path: Path):
    folder = tmp_path / "store" / "views" / "train"
    spec = json.loads((folder / "view_set.json").read_text())["body"]
    rows = []
    for part in range(3):
        index = pq.read_table(folder / "index" / f"part-{part:05d}.parquet").to_pylist()
        with tarfile.open(folder / "images" / f"part-{part:05d}.tar") as tar:
            for row in index:
                rows.append(row["row"])
                if row["error"] is None:
                    member = tar.extractfile(f"{row['row']:09d}.png")
                    assert member is not None
                    image = member.read()
                    assert hashlib.sha256(image).hexdigest() == row["sha256"]
                    assert row["draw"]["top"] == row["row"]
                    about = tar.extractfile(f"{row['row']:09d}.json")
                    assert about is not None
                    assert json.load(about) == {name: row[name] for name in ("key", "view", "draw", "label")}
    assert rows == list(range(spec["images"] * spec["views"]))


# webdataset leaves the last file of an iteration for the garbage collector to close.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_the_images(filled: Column, tmp_path: Path):
    url = str(tmp_path / "store" / "views" / "train" / "images" / "part-00000.tar")
    samples = list(webdataset.WebDataset(url, shardshuffle=False, empty_check=False))
    rows = filled.view_set.read_part(0)
    assert [sample["__key__"] for sample in samples] == [f"{row.row:09d}" for row in rows if row.files]
    by_row = {row.row: row for row in rows}
    for sample in samples:
        files = by_row[int(sample["__key__"])].files
        assert {name: sample[name] for name in files} == files


def test_tars_are_deterministic_and_anonymous(filled: Column):
    with tarfile.open(fileobj=io.BytesIO(filled.view_set.tar_path(1).read_bytes())) as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname, member.mode) == (
                0,
                0,
                0,
                "",
                "",
                0o644,
            )
