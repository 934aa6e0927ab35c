"""Counts go to Parquet and back, by any reader, and give the scores of any subset."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.boundary.counts import Counted, CountTable, Rules, read_counts, write_counts
from pipeline.errors import DataError
from sak.boundary import PROTOCOLS, scores

RULES = Rules("sak", 0.0075)


def table(*, images: int, rules: Rules = RULES, seed: int = 0) -> CountTable:
    rng = np.random.default_rng(seed)
    thresholds = len(PROTOCOLS[rules.protocol].thresholds)
    found = {}
    for index in range(images):
        pairs = rng.integers(0, 50, thresholds)
        counts = np.stack([pairs, pairs + 3, pairs, pairs + rng.integers(0, 9)], axis=-1)
        found[f"im{index}"] = Counted(f"im{index}", f"{index:064x}", "0" * 64, 40, 50, counts)
    return CountTable(rules, found)


@settings(max_examples=10)
@given(protocol=st.sampled_from(sorted(PROTOCOLS)), images=st.integers(0, 5), seed=st.integers(0, 9))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, protocol: str, images: int, seed: int
) -> None:
    path = tmp_path_factory.mktemp("counts") / "counts.parquet"
    made = table(images=images, rules=Rules(protocol, 0.011), seed=seed)
    write_counts(path, made)
    read = read_counts(path)
    assert read.rules == made.rules
    assert list(read.images) == list(made.images)
    for key, image in made.images.items():
        assert read.images[key][:-1] == image[:-1]
        np.testing.assert_array_equal(read.images[key].counts_T4, image.counts_T4)
    if images:
        assert read.scores() == made.scores()


def test_the_order_of_images_changes_no_byte(tmp_path: Path) -> None:
    made = table(images=4)
    write_counts(tmp_path / "a", made)
    write_counts(tmp_path / "b", CountTable(RULES, dict(reversed(made.images.items()))))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_another_reader_needs_only_parquet(tmp_path: Path) -> None:
    made = table(images=3)
    write_counts(tmp_path / "a", made)
    read = pq.read_table(tmp_path / "a")
    counts = np.moveaxis(np.array([read[name].to_pylist() for name in ("cntR", "sumR", "cntP", "sumP")]), 0, -1)
    assert scores(counts) == made.scores()
    about = json.loads(read.schema.metadata[b"sak.boundary"])
    assert (about["protocol"], about["max_dist"], len(about["thresholds"])) == ("sak", 0.0075, 99)


def test_a_subset_needs_no_image(tmp_path: Path) -> None:
    made = table(images=5)
    part = made.of(["im1", "im4"], where="here")
    assert part.scores() == scores(np.stack([made.images[key].counts_T4 for key in ("im1", "im4")]))
    assert part.curve().f.shape == (99,)
    with pytest.raises(DataError, match="here: im9 is not among its 5 images"):
        made.of(["im9"], where="here")


def broken(path: Path, kind: str) -> None:
    write_counts(path, table(images=2))
    read = pq.read_table(path)
    meta = json.loads(read.schema.metadata[b"sak.boundary"])
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:100])
    elif kind == "text":
        path.write_text("no table")
    elif kind == "other":
        pq.write_table(pa.table({"a": [1]}), path)
    elif kind == "protocol":
        pq.write_table(read.replace_schema_metadata({"sak.boundary": json.dumps(meta | {"protocol": "seism"})}), path)
    elif kind == "version":
        pq.write_table(read.replace_schema_metadata({"sak.boundary": json.dumps(meta | {"counting": 0})}), path)
    elif kind == "twice":
        pq.write_table(pa.concat_tables([read, read]), path)
    elif kind == "short":
        short = pa.array([[1], [2]], pa.list_(pa.int32()))
        pq.write_table(read.set_column(5, "cntR", short), path)
    else:
        raise AssertionError(kind)


@pytest.mark.parametrize("kind", ["cut", "text", "other", "protocol", "version", "twice", "short"])
def test_what_is_no_table_of_counts_is_named(kind: str, tmp_path: Path) -> None:
    broken(tmp_path / "a", kind)
    with pytest.raises(DataError, match=r"a: no table of boundary counts .*delete it and count again"):
        read_counts(tmp_path / "a")


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file; sak eval boundary"):
        read_counts(tmp_path / "a")
