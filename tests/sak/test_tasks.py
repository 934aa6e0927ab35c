"""The task table is complete, consistent and refuses unknown names."""

from __future__ import annotations

import pytest

from sak.errors import UnknownNameError
from sak.tasks import DATASETS, TASK_NAMES, dataset_spec, metric_spec

WEIGHTS = {"semseg": 1.0, "human_parts": 2.0, "normals": 10.0, "sal": 5.0, "edge": 50.0, "depth": 1.0, "disparity": 1.0}


@pytest.mark.parametrize(
    ("name", "tasks", "classes"),
    [
        ("pascalcontext", {"semseg", "human_parts", "normals", "edge", "sal"}, 21),
        ("nyud", {"semseg", "normals", "edge", "depth"}, 40),
        ("cityscapes", {"semseg", "disparity"}, 19),
        ("scenes", {"semseg", "human_parts", "normals", "edge", "sal", "depth"}, 12),
    ],
)
def test_datasets_hold_their_tasks(name: str, tasks: set[str], classes: int) -> None:
    spec = dataset_spec(name)
    assert set(spec.tasks) == tasks
    assert spec.tasks["semseg"].channels == classes


@pytest.mark.parametrize("name", DATASETS)
def test_every_task_is_consistent(name: str) -> None:
    spec = dataset_spec(name)
    assert spec.name == name
    assert list(spec.tasks) == [task for task in TASK_NAMES if task in spec.tasks]
    for key, task in spec.tasks.items():
        assert task.name == key
        assert task.loss_weight == WEIGHTS[key]
        assert task.higher_is_better == metric_spec(task.metric).higher_is_better
        assert len(task.classes) in (0, task.channels)
        assert len(set(task.classes)) == len(task.classes)
        assert (task.pos_weight is not None) == (key == "edge") == (task.metric_pos_weight is not None)
        assert task.metric not in task.extra_metrics


def test_labels_show_metric_and_direction() -> None:
    tasks = dataset_spec("scenes").tasks
    assert tasks["semseg"].label == "semseg mIoU ↑"
    assert tasks["depth"].label == "depth RMSE ↓"


def test_unknown_names_list_the_choices() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown data set 'pascal'.*pascalcontext, nyud, cityscapes, scenes"):
        dataset_spec("pascal")
    with pytest.raises(UnknownNameError, match=r"unknown task 'depth' of data set 'pascalcontext'.*semseg"):
        dataset_spec("pascalcontext").task("depth")
    with pytest.raises(UnknownNameError, match=r"unknown metric 'f1'.*mIoU"):
        metric_spec("f1")
