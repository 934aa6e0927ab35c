"""Metrics equal the published ones, add up in any order, and survive empty masks; Δm gives the published rows."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from sak.errors import SakError, UnknownNameError
from sak.metrics import TaskMetrics, delta_m
from sak.tasks import DATASETS, dataset_spec

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "sak_reference_losses_metrics.npz"
PASCAL = ("semseg", "human_parts", "sal", "normals", "edge")
NYUD = ("semseg", "depth", "normals", "edge")


def golden_maps(dataset: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    tasks = dataset_spec(dataset).tasks
    with np.load(GOLDEN, allow_pickle=False) as golden:
        pred = {task: torch.from_numpy(golden[f"task/{dataset}/pred/{task}"]) for task in tasks}
        true = {task: torch.from_numpy(golden[f"task/{dataset}/gt/{task}"]) for task in tasks}
    return pred, true


def one(maps: dict[str, Tensor], index: int) -> dict[str, Tensor]:
    return {task: value[index : index + 1] for task, value in maps.items()}


def assert_same(state: dict[str, NDArray[np.int64]], other: dict[str, NDArray[np.int64]]) -> None:
    assert state.keys() == other.keys()
    for key, value in state.items():
        assert value.dtype == np.int64
        np.testing.assert_array_equal(value, other[key], err_msg=key)


def random_batch(dataset: str, *, seed: int, images: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    pred, true = {}, {}
    for name, task in dataset_spec(dataset).tasks.items():
        pred[name] = torch.randn(images, task.channels, 5, 7, generator=generator)
        if name == "normals":
            true[name] = torch.nn.functional.normalize(torch.randn(images, 3, 5, 7, generator=generator), dim=1)
        elif name == "depth":
            true[name] = 1 + 4 * torch.rand(images, 1, 5, 7, generator=generator)
        else:
            top = 2 if name == "edge" else task.channels
            true[name] = torch.randint(0, top, (images, 1, 5, 7), generator=generator).float()
    return pred, true


@pytest.mark.parametrize("dataset", ["pascalcontext", "nyud"])
def test_parity_with_the_published_meters(dataset: str) -> None:
    pred, true = golden_maps(dataset)
    metrics = TaskMetrics(dataset, list(pred))
    for index in range(2):
        metrics.update(one(pred, index), one(true, index))
    with np.load(GOLDEN, allow_pickle=False) as golden:
        wanted = {key: float(golden[key]) for key in golden.files if key.startswith(f"task/{dataset}/metric/")}
    scores = metrics.compute()
    got = {
        f"task/{dataset}/metric/{task}/{metric}": value for task, row in scores.items() for metric, value in row.items()
    }
    assert {key: got[key] for key in wanted} == pytest.approx(wanted, rel=1e-6, abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.integers(0, 99))
def test_batching_and_merging_change_nothing(sizes: list[int], seed: int) -> None:
    pred, true = random_batch("scenes", seed=seed, images=sum(sizes))
    whole = TaskMetrics("scenes", list(pred))
    whole.update(pred, true)
    merged, start = TaskMetrics("scenes", list(pred)), 0
    for size in sizes:
        part = TaskMetrics("scenes", list(pred))
        part.update(
            {task: value[start : start + size] for task, value in pred.items()},
            {task: value[start : start + size] for task, value in true.items()},
        )
        merged.merge(part)
        start += size
    assert_same(merged.state(), whole.state())


def test_state_is_a_copy_and_resumes() -> None:
    pred, true = random_batch("scenes", seed=1, images=2)
    metrics = TaskMetrics("scenes", list(pred))
    metrics.update(pred, true)
    before, state = metrics.compute(), metrics.state()
    for value in state.values():
        value.fill(0)
    assert metrics.compute() == before
    resumed = TaskMetrics("scenes", list(pred))
    resumed.merge_state(metrics.state())
    assert resumed.compute() == before
    metrics.reset()
    assert_same(metrics.state(), TaskMetrics("scenes", list(pred)).state())


def test_perfect_predictions_score_perfectly() -> None:
    _, true = random_batch("scenes", seed=3, images=4)
    pred = {task: label.clone() for task, label in true.items()}
    for task in ("semseg", "human_parts", "sal"):
        channels = dataset_spec("scenes").tasks[task].channels
        pred[task] = 20.0 * torch.nn.functional.one_hot(true[task][:, 0].long(), channels).permute(0, 3, 1, 2)
    pred["edge"] = 40 * true["edge"] - 20
    scores = TaskMetrics("scenes", list(pred))
    scores.update(pred, true)
    got = scores.compute()
    assert got["semseg"]["mIoU"] == got["human_parts"]["mIoU"] == got["sal"]["mIoU"] == 100
    assert got["sal"]["maxF"] == got["edge"]["maxF"] == pytest.approx(100)
    assert got["normals"]["mErr"] == pytest.approx(0, abs=0.05)
    assert got["depth"]["RMSE"] == 0


def test_absent_classes_count_zero_or_nothing() -> None:
    label = torch.zeros(1, 1, 4, 4)
    logits = torch.zeros(1, 21, 4, 4)
    logits[:, 0] = 1
    for absent, wanted in (("zero", 100 / 21), ("ignore", 100.0)):
        metrics = TaskMetrics("pascalcontext", ["semseg"], absent=absent)
        metrics.update({"semseg": logits}, {"semseg": label})
        assert metrics.compute()["semseg"]["mIoU"] == pytest.approx(wanted)


def test_missing_foreground_does_not_crash() -> None:
    """An image without a salient or boundary pixel, rightly predicted as such."""
    logits = {
        "sal": torch.tensor([9.0, -9.0]).view(1, 2, 1, 1).expand(1, 2, 4, 4),
        "edge": torch.full((1, 1, 4, 4), -9.0),
    }
    metrics = TaskMetrics("scenes", ["sal", "edge"])
    metrics.update(logits, {task: torch.zeros(1, 1, 4, 4) for task in logits})
    scores = metrics.compute()
    assert scores["sal"] == {"maxF": 0.0, "mIoU": 100.0}
    assert scores["edge"]["maxF"] == 0.0


@pytest.mark.parametrize("dataset", DATASETS)
def test_without_a_valid_pixel_every_metric_is_nan(dataset: str) -> None:
    tasks = dataset_spec(dataset).tasks
    empty = TaskMetrics(dataset, list(tasks)).compute()
    metrics = TaskMetrics(dataset, list(tasks))
    metrics.update(
        {name: torch.randn(1, task.channels, 4, 4) for name, task in tasks.items()},
        {name: torch.full((1, 3 if name == "normals" else 1, 4, 4), 255.0) for name in tasks},
    )
    ignored = metrics.compute()
    for name, task in tasks.items():
        classes = {f"IoU/{item}" for item in task.classes if task.metric == "mIoU"}
        assert set(empty[name]) == set(ignored[name]) == {task.metric, *task.extra_metrics, *classes}
        assert all(math.isnan(value) for value in (*empty[name].values(), *ignored[name].values()))


def test_metrics_leave_their_inputs_alone() -> None:
    pred, true = golden_maps("nyud")
    copies = {task: label.clone() for task, label in true.items()}
    TaskMetrics("nyud", list(pred)).update(pred, true)
    for task, label in true.items():
        assert torch.equal(label, copies[task])


def test_refusals_name_the_culprit() -> None:
    with pytest.raises(UnknownNameError, match=r"'drop'.*zero, ignore"):
        TaskMetrics("nyud", ["depth"], absent="drop")
    with pytest.raises(UnknownNameError, match="unknown task 'sal'"):
        TaskMetrics("nyud", ["sal"])
    metrics = TaskMetrics("nyud", ["semseg"])
    label = torch.zeros(1, 1, 4, 4)
    with pytest.raises(SakError, match="'semseg' has no logits"):
        metrics.update({}, {"semseg": label})
    with pytest.raises(SakError, match=r"got \(1, 40, 4, 4\) and \(1, 1, 4, 5\)"):
        metrics.update({"semseg": torch.zeros(1, 40, 4, 4)}, {"semseg": torch.zeros(1, 1, 4, 5)})
    label[..., 0, 0] = 40
    with pytest.raises(SakError, match="labels 0 to 39 or 255, got 0 to 40"):
        metrics.update({"semseg": torch.zeros(1, 40, 4, 4)}, {"semseg": label})
    for state in ({"depth/pixels": np.array(1)}, {"semseg/confusion": np.zeros((40, 40))}, {}):
        with pytest.raises(SakError, match="int64 sums of tasks semseg, got others at"):
            metrics.merge_state(state)


def row(tasks: tuple[str, ...], values: tuple[float, ...], dataset: str) -> dict[str, dict[str, float]]:
    specs = dataset_spec(dataset).tasks
    names = ["odsF" if task == "edge" else specs[task].metric for task in tasks]
    return {task: {name: value} for task, name, value in zip(tasks, names, values, strict=True)}


@pytest.mark.parametrize(
    ("dataset", "tasks", "ours", "baseline", "wanted"),
    [
        ("pascalcontext", PASCAL, (81.88, 74.30, 84.79, 14.02, 74.09), (80.25, 70.54, 84.54, 13.57, 74.22), 0.83),
        ("pascalcontext", PASCAL, (84.01, 76.99, 84.65, 13.82, 76.27), (81.61, 72.77, 83.80, 13.87, 75.24), 2.30),
        ("nyud", NYUD, (59.93, 0.4942, 17.60, 78.60), (51.15, 0.5792, 19.77, 77.35), 11.11),
    ],
)
def test_delta_m_gives_the_published_rows(
    dataset: str, tasks: tuple[str, ...], ours: tuple[float, ...], baseline: tuple[float, ...], wanted: float
) -> None:
    got = delta_m(row(tasks, ours, dataset), row(tasks, baseline, dataset), dataset, metrics={"edge": "odsF"})
    assert round(got, 2) == wanted
    same = row(tasks, baseline, dataset)
    assert delta_m(same, same, dataset, metrics={"edge": "odsF"}) == 0


def test_delta_m_refuses_what_has_no_meaning() -> None:
    good = {"depth": {"RMSE": 0.5}}
    with pytest.raises(SakError, match="same tasks"):
        delta_m(good, {"semseg": {"mIoU": 1.0}}, "nyud")
    with pytest.raises(SakError, match="depth, value: expected a finite RMSE"):
        delta_m({"depth": {"RMSE": math.nan}}, good, "nyud")
    with pytest.raises(SakError, match="depth, baseline: expected a finite RMSE"):
        delta_m(good, {"depth": {"mErr": 1.0}}, "nyud")
    with pytest.raises(SakError, match="baseline is 0"):
        delta_m(good, {"depth": {"RMSE": 0.0}}, "nyud")
    with pytest.raises(UnknownNameError, match="unknown metric"):
        delta_m(good, good, "nyud", metrics={"depth": "silog"})
