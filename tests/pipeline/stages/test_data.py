from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import DataError
from pipeline.images.registry import SourceRequest, open_source
from pipeline.stages.data import write_scenes


def test_scenes_are_written_for_the_loader_of_the_layout(tmp_path: Path) -> None:
    write_scenes("nyud", out=tmp_path / "data", train=3, val=2, size=32, seed=0)
    counts = {}
    for split in ("train", "val"):
        request = SourceRequest(name="nyud", root=str(tmp_path / "data"), split=split, size=None, images=None, seed=0)
        counts[split] = len(open_source(request).keys())
    assert counts == {"train": 3, "val": 2}


def test_an_unknown_layout_lists_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="imagefolder"):
        write_scenes("cube", out=tmp_path / "data", train=1, val=1, size=32, seed=0)
