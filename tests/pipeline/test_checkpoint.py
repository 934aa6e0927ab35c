from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.checkpoint import (
    TrainState,
    _load_optimizer,
    checkpoint_path,
    latest_step,
    load_checkpoint,
    save_checkpoint,
)
from sak.errors import CheckpointError


def make(seed: int, *, width: int = 3) -> tuple[nn.Module, torch.optim.AdamW]:
    """A model with a buffer, and an optimiser with two parameter groups."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Linear(width, 2))
    body, head = [*model[0].parameters(), *model[1].parameters()], list(model[2].parameters())
    groups = [{"params": body, "factor": 0.1}, {"params": head, "factor": 1.0}]
    return model, torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.1)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        torch.autograd.backward(model(torch.randn(5, 4)).square().sum())
        optimizer.step()


SCALER = torch.amp.GradScaler("cpu", enabled=False)


def saved(folder: Path, *, step: int = 3) -> Path:
    model, optimizer = make(0)
    steps(model, optimizer, step)
    return save_checkpoint(folder, TrainState(model, optimizer, SCALER, {}), step=step, keep=9)


def test_all_state_comes_back_exactly(tmp_path: Path) -> None:
    model, optimizer = make(0)
    steps(model, optimizer, 3)
    path = save_checkpoint(tmp_path, TrainState(model, optimizer, SCALER, {}), step=3, keep=2)
    steps(model, optimizer, 4)
    other, other_optimizer = make(1)
    steps(other, other_optimizer, 1)
    assert load_checkpoint(path, TrainState(other, other_optimizer, SCALER, {})) == 3
    steps(other, other_optimizer, 4)  # draws its data from the restored random state
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert optimizer.state[mine].keys() == other_optimizer.state[theirs].keys()
        for key, value in optimizer.state[mine].items():
            assert torch.equal(value, other_optimizer.state[theirs][key]), key
    assert [group["factor"] for group in other_optimizer.param_groups] == [0.1, 1.0]


def test_learnt_weights_of_tasks_come_back(tmp_path: Path) -> None:
    model, optimizer = make(0)
    kept = {"weights": torch.tensor([1.5, 0.5])}
    path = save_checkpoint(tmp_path, TrainState(model, optimizer, SCALER, {}, kept), step=1, keep=1)
    fresh = {"weights": torch.ones(2)}
    load_checkpoint(path, TrainState(model, optimizer, SCALER, {}, fresh))
    assert torch.equal(fresh["weights"], kept["weights"])
    with pytest.raises(CheckpointError, match="of tasks' weights: "):
        load_checkpoint(path, TrainState(model, optimizer, SCALER, {}))


def test_the_order_of_parameter_groups_does_not_matter(tmp_path: Path) -> None:
    path = saved(tmp_path)
    model, _ = make(0)
    swapped = torch.optim.AdamW([{"params": list(model[2].parameters())}, {"params": list(model[:2].parameters())}])
    load_checkpoint(path, TrainState(model, swapped, SCALER, {}))
    for parameter in model.parameters():
        assert swapped.state[parameter]["exp_avg"].shape == parameter.shape


@pytest.mark.parametrize(("option", "home"), [({}, "cpu"), ({"fused": True}, "meta"), ({"capturable": True}, "meta")])
def test_step_counters_come_back_where_torch_keeps_them(option: dict[str, bool], home: str) -> None:
    """One kernel for all reads them beside the parameters; ``meta`` stands for a GPU."""
    model = nn.Linear(2, 1, device="meta")
    optimizer = torch.optim.AdamW([{"params": [model.weight], **option}, {"params": [model.bias]}])
    saved = {f"{name}/{key}": torch.zeros(()) for name in ("weight", "bias") for key in ("step", "exp_avg")}
    _load_optimizer(model, optimizer, saved)
    found = {name: optimizer.state[value] for name, value in model.named_parameters()}
    assert {state["exp_avg"].device.type for state in found.values()} == {"meta"}
    assert found["weight"]["step"].device.type == home
    assert found["bias"]["step"].device.type == "cpu"


def test_equal_state_gives_equal_bytes(tmp_path: Path) -> None:
    assert saved(tmp_path / "a").read_bytes() == saved(tmp_path / "b").read_bytes()


def test_a_gradient_scaler_comes_back(tmp_path: Path) -> None:
    model, optimizer = make(0)
    scaler = torch.amp.GradScaler("cpu", enabled=True, init_scale=2.0**7)
    scaler.scale(torch.ones(1))
    path = save_checkpoint(tmp_path, TrainState(model, optimizer, scaler, {}), step=1, keep=1)
    fresh = torch.amp.GradScaler("cpu", enabled=True)
    load_checkpoint(path, TrainState(model, optimizer, fresh, {}))
    assert fresh.state_dict() == scaler.state_dict()
    assert fresh.state_dict()["scale"] == 2.0**7


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    model, optimizer = make(0)
    for step in (8, 9, 10, 11):
        save_checkpoint(tmp_path, TrainState(model, optimizer, SCALER, {}), step=step, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-000000010.safetensors",
        "step-000000011.safetensors",
    ]
    assert latest_step(tmp_path) == 11
    assert checkpoint_path(tmp_path, 11) == tmp_path / "step-000000011.safetensors"


def test_remains_of_a_killed_save_are_no_checkpoint(tmp_path: Path) -> None:
    assert latest_step(tmp_path / "absent") == 0
    (tmp_path / ".step-000000009.safetensors.x1.tmp").write_bytes(b"half")
    (tmp_path / "step-7.safetensors").write_bytes(b"not ours")
    assert latest_step(tmp_path) == 0


def refused(path: Path) -> None:
    model, optimizer = make(5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, TrainState(model, optimizer, SCALER, {}))
    assert str(path) in str(caught.value)
    assert "delete" in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not optimizer.state


@pytest.mark.parametrize("share", [0.0, 0.0005, 0.1, 0.5, 0.999])
def test_a_truncated_file_is_named(tmp_path: Path, share: float) -> None:
    path = saved(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    refused(path)


def test_any_flipped_byte_is_found(tmp_path: Path) -> None:
    path = saved(tmp_path)
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    end = len(data[:header].rstrip(b" "))  # blanks pad the header; flips there may leave it valid
    for position in [*range(0, end, 53), *range(header, len(data), 997), len(data) - 1]:
        # The saved step counts on the file's name, so each damage is tried under the same one.
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x01]) + data[position + 1 :])
        refused(path)


def test_a_renamed_checkpoint_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    refused(path.rename(tmp_path / "step-000000004.safetensors"))


def test_another_networks_checkpoint_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    wide, optimizer = make(0, width=5)
    with pytest.raises(CheckpointError, match=r"0\.weight \(expected \(5, 4\), got \(3, 4\)\)") as caught:
        load_checkpoint(path, TrainState(wide, optimizer, SCALER, {}))
    assert str(path) in str(caught.value)
    small = nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(CheckpointError, match="optimiser state of 4 other parameters"):
        load_checkpoint(path, TrainState(small, torch.optim.AdamW(small.parameters()), SCALER, {}))
