"""Task losses equal the published ones and stay finite where those do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sak.errors import SakError, UnknownNameError
from sak.losses.tasks import normals_valid, task_losses
from sak.tasks import DATASETS, DEPTH_INVALID, dataset_spec

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "sak_reference_losses_metrics.npz"


def golden_batch(dataset: str) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, float]]:
    tasks = dataset_spec(dataset).tasks
    with np.load(GOLDEN, allow_pickle=False) as golden:
        pred = {task: torch.from_numpy(golden[f"task/{dataset}/pred/{task}"]) for task in tasks}
        true = {task: torch.from_numpy(golden[f"task/{dataset}/gt/{task}"]) for task in tasks}
        loss = {task: float(golden[f"task/{dataset}/loss/{task}"]) for task in (*tasks, "total")}
    return pred, true, loss


@pytest.mark.parametrize("dataset", ["pascalcontext", "nyud"])
def test_parity_with_the_published_losses(dataset: str) -> None:
    pred, true, wanted = golden_batch(dataset)
    losses = task_losses(dataset, pred, true)
    assert {key: float(loss) for key, loss in losses.items()} == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("dataset", DATASETS)
def test_all_ignored_batch_contributes_zero_and_keeps_gradients(dataset: str) -> None:
    pred, true = {}, {}
    for name, task in dataset_spec(dataset).tasks.items():
        pred[name] = torch.randn(2, task.channels, 6, 8, requires_grad=True)
        true[name] = torch.zeros(2, 3, 6, 8) if name == "normals" else torch.full((2, 1, 6, 8), 255.0)
    losses = task_losses(dataset, pred, true)
    assert {key: loss.item() for key, loss in losses.items()} == dict.fromkeys(losses, 0.0)
    losses["total"].backward()
    for logits in pred.values():
        assert logits.grad is not None
        assert not logits.grad.any()


def test_one_class_batch_is_finite() -> None:
    """Saliency without a salient pixel, and boundaries without a boundary."""
    pred = {"sal": torch.randn(2, 2, 4, 4), "edge": torch.randn(2, 1, 4, 4)}
    losses = task_losses("pascalcontext", pred, {task: torch.zeros(2, 1, 4, 4) for task in pred})
    assert all(bool(loss.isfinite()) for loss in losses.values())
    assert float(losses["edge"]) > 0


def test_ignored_pixels_do_not_matter() -> None:
    pred, true, _ = golden_batch("pascalcontext")
    before = task_losses("pascalcontext", pred, true)
    for task, label in true.items():
        pred[task] = torch.where((label == 255).all(1, keepdim=True), torch.tensor(3.0), pred[task])
    torch.testing.assert_close(task_losses("pascalcontext", pred, true), before)


def test_both_codes_of_an_invalid_normal_are_known() -> None:
    label = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0], [255.0, 255.0, 255.0]]).T.view(1, 3, 1, 3)
    assert normals_valid(label).flatten().tolist() == [True, False, False]


def test_weights_can_be_given_in_place_of_the_published_ones() -> None:
    pred, true, wanted = golden_batch("nyud")
    losses = task_losses("nyud", pred, true, weights={"edge": 5.0, "depth": 2.0})
    assert float(losses["edge"]) == pytest.approx(wanted["edge"] / 10, rel=1e-6)
    assert float(losses["depth"]) == pytest.approx(wanted["depth"] * 2, rel=1e-6)
    assert float(losses["semseg"]) == pytest.approx(wanted["semseg"], rel=1e-6)


def test_only_predicted_tasks_count() -> None:
    pred, true, wanted = golden_batch("nyud")
    losses = task_losses("nyud", {"depth": pred["depth"]}, true)
    assert list(losses) == ["depth", "total"]
    assert float(losses["total"]) == pytest.approx(wanted["depth"], rel=1e-6)


def test_refusals_name_the_culprit() -> None:
    pred, true = {"depth": torch.zeros(1, 1, 4, 4)}, {"depth": torch.zeros(1, 1, 4, 4)}
    with pytest.raises(UnknownNameError, match="unknown data set 'x'"):
        task_losses("x", pred, true)
    with pytest.raises(UnknownNameError, match="unknown task 'depth' of data set 'pascalcontext'"):
        task_losses("pascalcontext", pred, true)
    with pytest.raises(SakError, match=r"task 'depth': expected labels, got only \['edge'\]"):
        task_losses("nyud", pred, {"edge": true["depth"]})
    with pytest.raises(SakError, match=r"task 'depth'.*\(1, 1, 4, 4\) and \(1, 1, 8, 8\)"):
        task_losses("nyud", pred, {"depth": torch.zeros(1, 1, 8, 8)})
    with pytest.raises(SakError, match=r"logits \(B, 40, H, W\)"):
        task_losses("nyud", {"semseg": torch.zeros(1, 21, 4, 4)}, {"semseg": torch.zeros(1, 1, 4, 4)})
    with pytest.raises(SakError, match="at least one prediction"):
        task_losses("nyud", {}, true)


@pytest.mark.parametrize("dataset", ["pascalcontext", "nyud"])
def test_the_shares_of_a_split_batch_add_up_however_valid_pixels_are_spread(dataset: str) -> None:
    pred, true, _ = golden_batch(dataset)
    rows = next(iter(pred.values())).shape[0]
    nothing = {"normals": 0.0, "depth": float(DEPTH_INVALID)}
    first = torch.arange(rows)[:, None, None, None] == 0
    ignored = {task: torch.where(first, nothing.get(task, 255.0), label) for task, label in true.items()}
    whole = {task: logits.clone().requires_grad_() for task, logits in pred.items()}
    losses = task_losses(dataset, whole, ignored)
    losses["total"].backward()
    parts = [[{task: v[row : row + 1] for task, v in maps.items()} for maps in (pred, ignored)] for row in range(rows)]
    counts = [counted(dataset, logits, labels) for logits, labels in parts]
    assert {int(count) for count in counts[0]} == {0}
    assert {int(count) for count in counts[1]} != {0}
    totals = [torch.stack(same).sum() for same in zip(*counts, strict=True)]
    summed = dict.fromkeys(losses, 0.0)
    for row, (logits, labels) in enumerate(parts):
        leaves = {task: value.clone().requires_grad_() for task, value in logits.items()}
        answers = iter(totals)
        shares = task_losses(dataset, leaves, labels, total=lambda _, answers=answers: next(answers))
        shares["total"].backward()
        for task, value in shares.items():
            summed[task] += float(value.detach())
        for task, leaf in leaves.items():
            gradient = whole[task].grad
            assert gradient is not None
            torch.testing.assert_close(leaf.grad, gradient[row : row + 1])
    assert summed == pytest.approx({task: float(value.detach()) for task, value in losses.items()}, rel=1e-5)


def counted(dataset: str, logits: dict[str, Tensor], labels: dict[str, Tensor]) -> list[Tensor]:
    """What a part asks the total of, in order, when it is all there is."""
    asked: list[Tensor] = []

    def note(count: Tensor) -> Tensor:
        asked.append(count)
        return count

    task_losses(dataset, logits, labels, total=note)
    return asked
