"""Maps back at the images' own size, with the images' own labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.boundary.held_out import HeldOut, rules_of
from pipeline.config import DataConfig
from pipeline.own_size import OwnSize
from pipeline.views import ViewSpec
from pipeline.viewsets import cached_source
from sak.boundary import image_counts
from sak.grids import resize_map
from sak.tasks import IGNORE
from store.viewset import ViewSet
from tests.pipeline.boundary.test_held_out import SIZE, folder, guesses, views_of

__all__ = ["folder"]  # a fixture


@pytest.fixture(scope="module")
def made(folder: Path) -> tuple[ViewSet, DataConfig]:
    return views_of(folder, "pascal-context", ViewSpec(kind="full", size=(32, 32)))


def test_each_row_has_its_images_own_labels(made: tuple[ViewSet, DataConfig]) -> None:
    view_set, data = made
    rows = view_set.usable_rows().tolist()
    logits = {"semseg": torch.randn(len(rows), 21, 32, 32), "human_parts": torch.randn(len(rows), 7, 32, 32)}
    source = cached_source(data.source)
    samples = {source.keys()[index]: source.read(index) for index in range(len(rows))}
    keys = [key for part in range(view_set.spec.parts) for key in view_set.keys(part)]
    found = list(OwnSize(view_set, data).scored(rows, logits))
    assert [list(one.rows) for one in found] == [[row] for row in rows]
    for place, (key, one) in enumerate(zip(keys, found, strict=True)):
        assert {*one.labels} == {*one.logits} == {"semseg", "human_parts"}
        np.testing.assert_array_equal(one.labels["semseg"][0, 0].numpy(), samples[key].labels["semseg"])
        parts = samples[key].labels["human_parts"]
        wanted = parts if parts.any() else np.full_like(parts, IGNORE)  # as the view has it
        np.testing.assert_array_equal(one.labels["human_parts"][0, 0].numpy(), wanted)
        for task, value in one.logits.items():
            torch.testing.assert_close(value, resize_map(logits[task][place : place + 1], SIZE))


def test_boundaries_meet_the_region_maps_where_these_lie(made: tuple[ViewSet, DataConfig]) -> None:
    view_set, data = made
    row = view_set.usable_rows().tolist()[0]
    prediction = guesses(1, SIZE)
    with HeldOut(view_set, data, rules=rules_of("odsF", "pascalcontext"), own_size=True) as boundary:
        boundary.add([row], prediction_BHW=prediction, labels_BHW=np.zeros((1, *SIZE)))
        (counted,) = boundary.table().images.values()
        assert boundary.about["view"] == "own-size"
    source = cached_source(data.source)
    regions = source.regions(list(source.keys()).index(counted.key))  # type: ignore[attr-defined]
    np.testing.assert_array_equal(counted.counts_T4, image_counts(prediction[0], regions, max_dist=0.0075))
