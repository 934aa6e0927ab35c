"""More bad images than a recipe allows stop the run with their number and the first reasons."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from pipeline import bad_rows
from pipeline.bad_rows import BadRows
from pipeline.config import DataConfig, SourceConfig
from pipeline.errors import DataError
from pipeline.recipes import recipe_from_mapping
from pipeline.stages.extract import extract
from pipeline.views import ViewSpec
from pipeline.viewsets import make_part, view_set_spec
from store.store import Store
from store.viewset import ViewSet
from tests.tiny_recipe import tiny_mapping


@pytest.fixture
def photos(tmp_path: Path) -> str:
    """Ten photographs, of which three are damaged."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(10):
        Image.new("RGB", (20, 20), (number * 20, 9, 9)).save(folder / f"p{number}.png")
    for number in (1, 4, 7):
        (folder / f"p{number}.png").write_bytes(b"\x89PNG torn")
    return str(folder)


def data_of(photos: str, *, max_bad: float = 0.01, on_error: str = "skip") -> DataConfig:
    return DataConfig(
        source=SourceConfig(name="imagefolder", root=photos),
        view=ViewSpec(kind="full", size=16),
        rows_per_shard=2,
        on_error=on_error,  # type: ignore[arg-type]
        max_bad=max_bad,
    )


def view_set_of(tmp_path: Path, data: DataConfig) -> ViewSet:
    return Store.create(tmp_path / "store").create_view_set(view_set_spec(data, labels=False))


def test_bad_rows_are_counted_against_all_rows_as_parts_appear(tmp_path: Path, photos: str) -> None:
    data = data_of(photos, max_bad=0.2)
    view_set = view_set_of(tmp_path, data)
    bad = BadRows(view_set, data)
    excluded, message = 0, ""
    for part in range(5):
        make_part(view_set.root.url, view_set.name, part, data)
        excluded += len(view_set.commits.load(part).excluded)
        if excluded <= 2:
            assert bad.check() == excluded
            continue
        with pytest.raises(DataError, match=r"3 of 10 rows have no image \(30\.00%\), max_bad is 20\.00%") as caught:
            bad.check()
        message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.count("cannot be decoded") == 3
    assert "p1.png" in message
    assert photos not in message


def test_as_many_as_are_allowed_pass(tmp_path: Path, photos: str) -> None:
    data = data_of(photos, max_bad=0.3)
    view_set = view_set_of(tmp_path, data)
    for part in range(5):
        make_part(view_set.root.url, view_set.name, part, data)
    assert BadRows(view_set, data).check() == 3
    assert BadRows(view_set, data_of(photos, max_bad=0.0, on_error="stop")).check() == 3
    with pytest.raises(DataError, match=r"max_bad is 0\.00%"):
        BadRows(view_set, data_of(photos, max_bad=0.0)).check()


def test_a_glance_looks_only_now_and_then(tmp_path: Path, photos: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(bad_rows, "monotonic", lambda: now[0])
    data = data_of(photos)
    view_set = view_set_of(tmp_path, data)
    bad = BadRows(view_set, data)
    for part in range(5):
        make_part(view_set.root.url, view_set.name, part, data)
    bad.glance()
    now[0] = 6.0
    with pytest.raises(DataError, match="3 of 10"):
        bad.glance()


def test_extraction_stops_before_any_teacher_and_again_when_repeated(
    tmp_path: Path, photos: str, no_teacher: object
) -> None:
    mapping = tiny_mapping(tmp_path) | {"finetune": None, "runs": {}, "baselines": []}
    source = {"name": "imagefolder", "root": photos}
    view = {"kind": "full", "size": 32}
    mapping["data"] = {"distill": {"source": source, "view": view, "rows_per_shard": 5, "on_error": "skip"}}
    recipe = recipe_from_mapping(mapping)
    for _ in range(2):
        with pytest.raises(DataError, match=r"3 of 10 rows have no image .* or raise max_bad"):
            extract([recipe.runs[0].study])
    (view_set,) = Store.open(recipe.runs[0].study.store).view_sets()
    assert view_set.missing_parts() == ()


@pytest.mark.parametrize("value", [-0.1, 1.5])
def test_a_share_that_is_none_is_refused(photos: str, value: float) -> None:
    with pytest.raises(ValueError, match=r"data\.max_bad is a fraction of all rows from 0 to 1"):
        data_of(photos, max_bad=value)
