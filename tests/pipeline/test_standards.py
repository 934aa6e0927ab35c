from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.config import DistillConfig
from pipeline.errors import PipelineError
from pipeline.loader import load_samples
from pipeline.standards import FILE, Standards, keep_standards, read_standards
from pipeline.targets import OnlineTargets, target_source
from pipeline.tensors import to_tensors
from pipeline.viewsets import complete_views
from tests.conftest import Finished

CPU = torch.device("cpu")


class Place:
    """The finished recipe's views and its stored and live targets."""

    def __init__(self, finished: Finished) -> None:
        self.study = finished.recipe.runs[0].study
        data: Any = self.study.data.distill
        self.view_set = complete_views(self.study, data, labels=False)
        self.cached = target_source(self.study, self.view_set, kind="cached", device=CPU)

    def kept(self, folder: Path, *, source: Any = None, rows: int = 10, kind: str = "phi-s") -> Standards:
        config = DistillConfig(steps=1, standardize=kind, standardize_rows=rows)  # type: ignore[arg-type]
        keep_standards(config, folder, source=source or self.cached, view_set=self.view_set, device=CPU)
        return read_standards(config, folder, device=CPU)

    def targets(self, rows: int, source: Any = None) -> dict[str, list[torch.Tensor]]:
        source = source or self.cached
        wanted = self.view_set.usable_rows()[:rows]
        pixels = to_tensors(load_samples(self.view_set, wanted.tolist(), tasks=())).pixels
        found: dict[str, list[torch.Tensor]] = source.targets(source.read(wanted), pixels)
        return found


@pytest.fixture
def place(finished: Finished) -> Place:
    return Place(finished)


@pytest.mark.parametrize("kind", ["channel", "phi-s"])
def test_the_sample_is_standardized_level_by_level(place: Place, tmp_path: Path, kind: str) -> None:
    standards = place.kept(tmp_path, kind=kind)
    found = standards(place.targets(10))
    assert list(found) == ["second", "first"]
    for levels in found.values():
        assert len(levels) == 4
        for feat_BCHW in levels:
            tokens = feat_BCHW.double().movedim(1, -1).flatten(0, -2)
            torch.testing.assert_close(tokens.mean(0), torch.zeros(24).double(), atol=1e-4, rtol=0)
            torch.testing.assert_close(tokens.var(0, correction=0), torch.ones(24).double(), atol=1e-3, rtol=0)


def test_live_teachers_have_the_stored_columns_statistics(place: Place, tmp_path: Path) -> None:
    online = target_source(place.study, place.view_set, kind="online", device=CPU)
    assert isinstance(online, OnlineTargets)
    stored, live = place.kept(tmp_path / "a"), place.kept(tmp_path / "b", source=online)
    one, other = stored(place.targets(4)), live(place.targets(4, online))
    for name in one:
        for a, b in zip(one[name], other[name], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_they_are_taken_once_and_kept(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = place.kept(tmp_path)
    before = (tmp_path / FILE).read_bytes()
    monkeypatch.setattr("pipeline.standards.fit_standards", lambda *_, **__: pytest.fail("taken again"))
    again = place.kept(tmp_path)
    assert (tmp_path / FILE).read_bytes() == before
    config = DistillConfig(steps=1, standardize="phi-s")
    read = read_standards(config, tmp_path, device=CPU)
    for name, levels in first.levels.items():
        for kept in (again, read):
            for a, b in zip(levels, kept.levels[name], strict=True):
                assert all(torch.equal(a.state()[part], b.state()[part]) for part in a.state())


def test_they_are_a_function_of_the_first_rows_alone(place: Place, tmp_path: Path) -> None:
    place.kept(tmp_path / "a", rows=10)
    place.kept(tmp_path / "b", rows=10)
    place.kept(tmp_path / "c", rows=9)
    one, same, other = ((tmp_path / name / FILE).read_bytes() for name in "abc")
    assert one == same
    assert one != other
    place.kept(tmp_path / "d", rows=22)
    place.kept(tmp_path / "e", rows=999)
    assert (tmp_path / "d" / FILE).read_bytes() == (tmp_path / "e" / FILE).read_bytes()


def test_without_a_choice_nothing_is_written_or_changed(place: Place, tmp_path: Path) -> None:
    config = DistillConfig(steps=1)
    keep_standards(config, tmp_path, source=place.cached, view_set=place.view_set, device=CPU)
    standards = read_standards(config, tmp_path, device=CPU)
    assert list(tmp_path.iterdir()) == []
    targets = place.targets(2)
    assert all(a is b for name, maps in standards(targets).items() for a, b in zip(maps, targets[name], strict=True))
    assert read_standards(None, tmp_path, device=CPU).levels == {}


@pytest.mark.parametrize("damage", [None, b"not a file"])
def test_without_its_statistics_stage_1_is_no_start(tmp_path: Path, damage: bytes | None) -> None:
    if damage:
        (tmp_path / FILE).write_bytes(damage)
    with pytest.raises(PipelineError, match=rf"{FILE}: statistics of stage 1: .*; delete {tmp_path} and rerun$"):
        read_standards(DistillConfig(steps=1, standardize="channel"), tmp_path, device=CPU)


def test_the_first_rows_are_of_the_first_view(place: Place) -> None:
    """More views may be appended later; the statistics stay."""
    rows = place.view_set.usable_rows()
    assert np.array_equal(rows, np.sort(rows))
