"""A student's boundaries on a view set: against the region maps that a source has, without padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import loadmat

from pipeline.boundary.held_out import HeldOut, rules_of
from pipeline.config import DataConfig, SourceConfig
from pipeline.images.layouts import write_layout
from pipeline.loader import load_samples
from pipeline.views import ViewSpec
from pipeline.viewsets import make_part, view_set_spec
from sak.boundary import MAX_DIST, image_counts
from sak.tasks import DATASETS
from store.store import Store
from store.viewset import ViewSet

SIZE = (40, 56)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PASCAL-Context and NYUD-v2 with a few small scenes."""
    root = tmp_path_factory.mktemp("layouts")
    for layout in ("pascal-context", "nyud"):
        write_layout(layout, out=root / layout, train=1, val=3, size=SIZE, seed=0)
    return root


def views_of(folder: Path, layout: str, view: ViewSpec, *, views: int = 1) -> tuple[ViewSet, DataConfig]:
    name = layout.replace("-", "")
    source = SourceConfig(name=name, root=str(folder / layout), split="val")
    data = DataConfig(source=source, view=view, views=views, rows_per_shard=2)
    spec = view_set_spec(data, labels=True)
    store = Store.create(str(folder / "store" / spec.fingerprint))
    view_set = store.create_view_set(spec)
    for part in range(spec.parts):
        make_part(view_set.root.url, view_set.name, part, data)
    return view_set, data


def padded_edges(view_set: ViewSet, rows: list[int]) -> np.ndarray:
    return np.stack([sample.labels["edge"] for sample in load_samples(view_set, rows, tasks=("edge",))])


def held_out(view_set: ViewSet, data: DataConfig, predictions: np.ndarray) -> Any:
    rows = view_set.usable_rows().tolist()
    rules = rules_of("odsF", view_set.spec.dataset)
    with HeldOut(view_set, data, rules=rules) as boundary:
        boundary.add(rows[:2], prediction_BHW=predictions[:2], labels_BHW=padded_edges(view_set, rows[:2]))
        boundary.add(rows[2:], prediction_BHW=predictions[2:], labels_BHW=padded_edges(view_set, rows[2:]))
        return boundary.table(), boundary.about


def guesses(count: int, size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *size), dtype=np.uint8)


def keys(view_set: ViewSet) -> list[str]:
    return [key for part in range(view_set.spec.parts) for key in view_set.keys(part)]


def test_pascal_boundaries_are_those_of_the_region_maps_without_padding(folder: Path) -> None:
    """As published: the training label, another map, is not what is matched."""
    view_set, data = views_of(folder, "pascal-context", ViewSpec(kind="padded", size=(64, 64)))
    predictions = guesses(3, (64, 64))
    table, about = held_out(view_set, data, predictions)
    assert about["truth"] == "region maps of the source"
    assert (about["protocol"], about["max_dist"], about["view"]) == ("sak", 0.0075, "padded")
    assert sorted(table.images) == sorted(keys(view_set))
    top, left = (64 - SIZE[0]) // 2, (64 - SIZE[1]) // 2
    for key, prediction_HW in zip(keys(view_set), predictions, strict=True):
        labels = loadmat(folder / "pascal-context" / "pascal-context" / "trainval" / f"{key}.mat")["LabelMap"]
        cut = np.ascontiguousarray(prediction_HW[top : top + SIZE[0], left : left + SIZE[1]])
        np.testing.assert_array_equal(
            table.images[key].counts_T4, image_counts(cut, labels, max_dist=0.0075), err_msg=key
        )


def test_nyud_boundaries_are_the_stored_labels_without_padding(folder: Path) -> None:
    view_set, data = views_of(folder, "nyud", ViewSpec(kind="padded", size=(64, 64)))
    predictions = guesses(3, (64, 64))
    table, about = held_out(view_set, data, predictions)
    assert (about["truth"], about["max_dist"]) == ("stored boundary labels", 0.011)
    edges = padded_edges(view_set, view_set.usable_rows().tolist())
    for key, prediction_HW, edge_HW in zip(keys(view_set), predictions, edges, strict=True):
        inside = edge_HW != 255
        assert inside.sum() == SIZE[0] * SIZE[1]
        image = table.images[key]
        assert (image.height, image.width) == SIZE
        wanted = image_counts(prediction_HW[inside].reshape(SIZE), (edge_HW[inside] == 1).reshape(SIZE), max_dist=0.011)
        np.testing.assert_array_equal(image.counts_T4, wanted)


def test_several_views_of_an_image_count_each(folder: Path) -> None:
    view = ViewSpec(kind="random_resized_crop", size=(32, 32), flip=0.5)
    view_set, data = views_of(folder, "pascal-context", view, views=2)
    table, _ = held_out(view_set, data, guesses(6, (32, 32)))
    assert len(table.images) == 6
    assert {key.partition("#")[2] for key in table.images} == {"0", "1"}


def test_an_image_without_a_labelled_pixel_counts_nothing(folder: Path) -> None:
    view_set, data = views_of(folder, "nyud", ViewSpec(kind="full", size=(32, 32)))
    with HeldOut(view_set, data, rules=rules_of("odsF-invpt", "nyud")) as boundary:
        ignored = np.full((1, 32, 32), 255, dtype=np.uint8)
        boundary.add([0], prediction_BHW=guesses(1, (32, 32)), labels_BHW=ignored)
        assert boundary.table().images == {}


def test_every_data_set_with_boundaries_has_a_tolerance() -> None:
    assert {name for name, spec in DATASETS.items() if "edge" in spec.tasks} == set(MAX_DIST)
    assert rules_of("odsF", "nyud") == ("sak", 0.011)
    assert rules_of("odsF-mtinet", "scenes") == ("mtinet", 0.0075)
