"""The number of processes changes no count, no order and no message."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.boundary.counting import Counters, FileJob, MapJob, count_all, sha256
from pipeline.boundary.counts import Counted, Rules
from pipeline.boundary.files import find_pairs
from pipeline.errors import BadImageError
from sak.boundary import image_counts
from tests.pipeline.boundary.pairs import draw, write_label_map, write_nyud, write_set

RULES = Rules("sak", 0.0075)


def jobs(root: Path, *, rules: Rules = RULES) -> list[FileJob]:
    return [FileJob(rules, pair, "LabelMap") for pair in find_pairs(root / "pred", root / "labels")]


def test_processes_count_as_one_does(tmp_path: Path) -> None:
    drawn = write_set(tmp_path, images=5)
    (tmp_path / "pred/im2.png").write_bytes(b"damaged")
    alone, shared = (list(count_all(jobs(tmp_path), workers=workers)) for workers in (1, 2))
    for index, (one, other) in enumerate(zip(alone, shared, strict=True)):
        if index == 2:
            assert isinstance(one, BadImageError)
            assert str(one) == str(other)
            continue
        assert isinstance(one, Counted)
        assert isinstance(other, Counted)
        assert one[:-1] == other[:-1]
        np.testing.assert_array_equal(one.counts_T4, other.counts_T4)
        pair = drawn[f"im{index}"]
        np.testing.assert_array_equal(one.counts_T4, image_counts(pair.prediction_HW, pair.labels_HW, max_dist=0.0075))
        assert one.of(sha256((tmp_path / f"pred/im{index}.png").read_bytes()), one.label_sha256)


def test_labels_of_another_kind_or_size_are_named(tmp_path: Path) -> None:
    write_set(tmp_path, images=2)
    write_nyud(tmp_path / "labels/im0.mat", np.zeros((40, 48), np.uint8))
    write_label_map(tmp_path / "labels/im1.mat", draw(1, size=(30, 48)))
    first, second = (str(item) for item in count_all(jobs(tmp_path), workers=1))
    assert "im0.mat: expected a label of kind LabelMap as the first one is, got groundTruth" in first
    assert "im1.png: " in second
    assert "(40, 48), got bool (30, 48)" in second


def test_maps_in_memory_count_as_files_do() -> None:
    drawn = draw(3)
    with Counters(workers=1) as counters:
        counters.add(MapJob(RULES, "a", *drawn))
        (found,) = counters.done(all_of_them=False)
        assert list(counters.done(all_of_them=True)) == []
    assert isinstance(found, Counted)
    assert (found.key, found.height, found.width) == ("a", 40, 48)
    np.testing.assert_array_equal(found.counts_T4, image_counts(*drawn, max_dist=0.0075))


def test_an_error_ends_the_processes(tmp_path: Path) -> None:
    write_set(tmp_path, images=1)
    (job,) = jobs(tmp_path)
    counters = Counters(workers=2)

    def interrupted() -> None:
        with counters:
            counters.add(job)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with pytest.raises(RuntimeError, match="shutdown"):
        counters.add(job)
