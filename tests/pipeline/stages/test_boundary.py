"""Folders to scores: resumed, of a subset, of counts alone; and what cannot be used is told while the rest is kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.boundary import counting
from pipeline.boundary.counts import read_counts
from pipeline.errors import DataError
from pipeline.stages import boundary as module
from pipeline.stages.boundary import BoundaryResult, Folders, score_counts, score_folders, scores_table
from sak.boundary import image_counts, scores
from sak.errors import UnknownNameError
from tests.pipeline.boundary.pairs import draw, write_nyud, write_prediction, write_set


def score(
    root: Path, *, ids: Path | None = None, protocol: str = "sak", max_dist: float | None = None
) -> BoundaryResult:
    folders = Folders(predictions=root / "pred", labels=root / "labels", ids=ids)
    return score_folders(folders, out=root / "out", protocol=protocol, max_dist=max_dist, workers=1)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that are counted."""
    seen: list[str] = []
    original = counting.FileJob.counted

    def note(job: counting.FileJob) -> counting.Counted:
        seen.append(job.pair.key)
        return original(job)

    monkeypatch.setattr(counting.FileJob, "counted", note)
    return seen


@pytest.mark.parametrize("protocol", ["sak", "invpt", "mtinet"])
def test_scores_are_those_of_the_library(tmp_path: Path, protocol: str) -> None:
    drawn = write_set(tmp_path)
    found = score(tmp_path, protocol=protocol)
    counts = [image_counts(*pair, max_dist=0.0075, protocol=protocol) for pair in drawn.values()]
    wanted = scores(np.stack(counts), protocol=protocol)
    assert found.scores == wanted
    assert 0.1 < wanted.odsF < 1
    about = json.loads((tmp_path / f"out/scores-{protocol}-0.0075.json").read_text())
    assert (about["protocol"], about["images"], about["odsF"]) == (protocol, 4, wanted.odsF)
    assert len(about["precision"]) == len(about["recall"]) == len(counts[0])
    assert found.plot.read_text().startswith("<svg xmlns")
    table = scores_table(found)
    assert [column._cells[0] for column in table.columns][-1] == protocol


def test_what_is_counted_is_not_counted_again(tmp_path: Path, counted: list[str]) -> None:
    write_set(tmp_path)
    first = score(tmp_path)
    before = first.counts.read_bytes()
    counted.clear()
    assert score(tmp_path).scores == first.scores
    assert counted == []
    assert first.counts.read_bytes() == before
    write_prediction(tmp_path / "pred/im2.png", draw(9))
    again = score(tmp_path)
    assert counted == ["im2"]
    assert again.scores != first.scores
    counted.clear()
    score(tmp_path, max_dist=0.03)
    assert len(counted) == 4, "another tolerance is another table"
    assert len(list((tmp_path / "out").glob("counts-*.parquet"))) == 2


def test_an_interrupted_call_keeps_what_it_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: list[str]
) -> None:
    write_set(tmp_path)
    original = counting.count_all

    def stopped(*arguments: object, **options: int) -> Iterator[counting.Outcome]:
        for number, outcome in enumerate(original(*arguments, **options)):  # type: ignore[arg-type]
            if number == 2:
                raise KeyboardInterrupt
            yield outcome

    with monkeypatch.context() as patch:
        patch.setattr(module, "count_all", stopped)
        with pytest.raises(KeyboardInterrupt):
            score(tmp_path)
    counted.clear()
    resumed = score(tmp_path)
    assert counted == ["im2", "im3"]
    whole = resumed.counts.read_bytes()
    resumed.counts.unlink()
    assert score(tmp_path).scores == resumed.scores
    assert resumed.counts.read_bytes() == whole


def test_the_table_grows_while_images_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(tmp_path)
    monkeypatch.setattr(module, "_SAVE_SECONDS", -1.0)
    sizes: list[int] = []
    original = module.write_counts

    def note(path: Path, table: module.CountTable) -> None:
        original(path, table)
        sizes.append(len(read_counts(path).images))

    monkeypatch.setattr(module, "write_counts", note)
    score(tmp_path)
    assert sizes == [1, 2, 3, 4]


def test_subsets_need_no_image(tmp_path: Path) -> None:
    drawn = write_set(tmp_path)
    ids = tmp_path / "some.txt"
    ids.write_text("im3\nim1\n")
    whole, part = score(tmp_path), score(tmp_path, ids=ids)
    wanted = scores(np.stack([image_counts(*drawn[name], max_dist=0.0075) for name in ("im1", "im3")]))
    assert part.scores == wanted
    assert part.images == 2
    for path in (tmp_path / "pred").iterdir():
        path.unlink()
    alone = score_counts(whole.counts, ids=ids, out=None)
    assert (alone.scores, alone.plot) == (wanted, part.plot)
    assert score_counts(whole.counts, ids=None, out=tmp_path / "else").scores == whole.scores
    assert whole.plot.read_text() == (tmp_path / "else" / whole.plot.name).read_text()
    ids.write_text("im3\nim8\n")
    with pytest.raises(DataError, match="im8 is not among its 4 images"):
        score_counts(whole.counts, ids=ids, out=None)


def test_labels_of_nyud_have_its_tolerance(tmp_path: Path) -> None:
    drawn = draw(2)
    write_prediction(tmp_path / "pred/a.png", drawn)
    edges = (drawn.labels_HW[:, :-1] != drawn.labels_HW[:, 1:]).astype(np.uint8)
    edges = np.pad(edges, ((0, 0), (0, 1)))
    write_nyud(tmp_path / "labels/a.mat", edges)
    found = score(tmp_path)
    assert found.rules.max_dist == 0.011
    assert found.scores == scores(image_counts(drawn.prediction_HW, edges, max_dist=0.011))


def test_files_that_cannot_be_used_are_named_and_the_rest_is_kept(tmp_path: Path, counted: list[str]) -> None:
    write_set(tmp_path, images=5)
    (tmp_path / "pred/im1.png").write_bytes(b"damaged")
    (tmp_path / "labels/im3.mat").write_bytes(b"damaged")
    words = r"2 of 5 images cannot be used: .*im1\.png: cannot be decoded.*im3\.mat: .*3 others are counted and kept"
    with pytest.raises(DataError, match=words):
        score(tmp_path)
    counted.clear()
    write_set(tmp_path, images=5)
    score(tmp_path)
    assert counted == ["im1", "im3"]


def test_faults_are_told_before_any_work(tmp_path: Path, counted: list[str]) -> None:
    write_set(tmp_path)
    with pytest.raises(UnknownNameError, match="sak, invpt, mtinet"):
        score(tmp_path, protocol="seism")
    found = score(tmp_path)
    found.counts.rename(tmp_path / "out/counts-invpt-0.0075.parquet")
    counted.clear()
    with pytest.raises(DataError, match=r"holds counts by protocol sak, tolerance 0\.0075, expected protocol invpt"):
        score(tmp_path, protocol="invpt")
    (tmp_path / "out/counts-mtinet-0.0075.parquet").write_bytes(b"damaged")
    with pytest.raises(DataError, match="no table of boundary counts"):
        score(tmp_path, protocol="mtinet")
    assert counted == []
