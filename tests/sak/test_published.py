"""The published tables: every row's Δm, computed here from its values, is the one printed beside it."""

from __future__ import annotations

import pytest

from sak.errors import UnknownNameError
from sak.metrics import delta_m
from sak.published import PUBLISHED, published
from sak.tasks import dataset_spec

# As printed; of MLoRE on PASCAL-Context and of SAK BB as recomputed from rounded values.
DELTAS = {
    "paper-vitb-multi-task": {"pascalcontext": -4.04, "nyud": -1.72},
    "paper-vitb-taskprompter": {"pascalcontext": -1.24, "nyud": 2.49},
    "paper-vitb-mlore": {"pascalcontext": -0.83},
    "paper-vitb-radio": {"pascalcontext": -1.53, "nyud": 6.33},
    "paper-vitb-theia": {"pascalcontext": -4.33, "nyud": 1.83},
    "paper-vitb-sak-bb": {"pascalcontext": -0.03},
    "paper-vitb-sak": {"pascalcontext": 0.83, "nyud": 11.11},
    "paper-vitl-multi-task": {"pascalcontext": -2.97, "nyud": -0.76},
    "paper-vitl-mlore": {"pascalcontext": 0.16, "nyud": 4.26},
    "paper-vitl-radio": {"pascalcontext": 0.29, "nyud": 8.95},
    "paper-vitl-sak": {"pascalcontext": 2.30, "nyud": 14.05},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_row_has_the_delta_that_its_table_prints(name: str) -> None:
    row, base = PUBLISHED[name], PUBLISHED[name[: len("paper-vitb")]]
    wanted = dict.fromkeys(base.results, 0.0) if row is base else DELTAS[name]
    metrics = {"edge": "odsF"}
    found = {data: delta_m(row.results[data], base.results[data], data, metrics=metrics) for data in row.results}
    assert found == pytest.approx(wanted, abs=0.006)


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_row_has_every_task_of_its_data_set(name: str) -> None:
    for dataset, row in PUBLISHED[name].results.items():
        assert {*row} == {*dataset_spec(dataset).tasks}


def test_a_row_says_what_it_is_and_which_way_is_better() -> None:
    story = PUBLISHED["paper-vitb"].story("nyud")
    assert story.startswith("the paper's single-task ViT-B networks: semseg mIoU ↑ 51.15, depth RMSE ↓ 0.5792, ")
    with pytest.raises(UnknownNameError, match="expected one of paper-vitb, "):
        published("paper-vits")
