"""What every task says of its labels, and a task that is one module."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

from sak.dense.registry import LABELS, TASKS
from sak.losses.tasks import task_losses
from sak.metrics import TaskMetrics
from sak.tasks import DATASETS, METRICS

FILES = {
    "semseg": "semseg.png",
    "human_parts": "human_parts.png",
    "sal": "sal.png",
    "normals": "normals.npy",
    "edge": "edge.png",
    "depth": "depth.npy",
    "disparity": "disparity.npy",
}


def test_files_of_labels_are_those_of_stores_written_before() -> None:
    assert {name: label.file for name, label in LABELS.items()} == FILES


def test_every_task_of_a_data_set_has_a_label_spec() -> None:
    assert {task for spec in DATASETS.values() for task in spec.tasks} == set(LABELS)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_module_is_complete(name: str) -> None:
    task = TASKS[name]
    assert task.label.name == name
    for metric in task.metrics:
        assert METRICS[metric.name] is metric


def test_tables_of_tasks_load_no_torch() -> None:
    code = "import sys, sak.tasks, pipeline.pixels, pipeline.transforms; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"


def test_disparity_counts_measured_pixels_only() -> None:
    label = torch.tensor([[[[4.0, 0.0], [255.0, 10.0]]]])
    pred = torch.tensor([[[[5.0, 1.0], [77.0, 8.0]]]], requires_grad=True)
    loss = task_losses("cityscapes", {"disparity": pred}, {"disparity": label})["total"]
    assert loss.item() == pytest.approx(4 / 3)
    loss.backward()  # type: ignore[no-untyped-call]
    assert pred.grad is not None
    assert pred.grad[0, 0, 1, 0] == 0
    metrics = TaskMetrics("cityscapes", ["disparity"])
    metrics.update({"disparity": pred.detach()}, {"disparity": label})
    scores = metrics.compute()["disparity"]
    assert scores == pytest.approx({"absErr": 4 / 3, "relErr": 100 * (1 / 4 + 2 / 10) / 2})


def test_a_sky_without_disparity_has_no_relative_error() -> None:
    zeros = torch.zeros(1, 1, 2, 2)
    metrics = TaskMetrics("cityscapes", ["disparity"])
    metrics.update({"disparity": zeros}, {"disparity": zeros})
    scores = metrics.compute()["disparity"]
    assert scores["absErr"] == 0
    assert math.isnan(scores["relErr"])
