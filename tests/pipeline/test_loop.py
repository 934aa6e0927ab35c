from __future__ import annotations

import dataclasses
import os
import signal
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.config import TrackConfig
from pipeline.distributed import Ranks
from pipeline.errors import Interrupted, PipelineError, Preempted
from pipeline.loader import Batch
from pipeline.loop import length_line, steps_of, train
from pipeline.split import Split
from pipeline.tracking import read_metrics
from pipeline.trainer import Trainer, TrainPlan

TRACK = TrackConfig(log_every=1, checkpoint_every=4, keep=2, tensorboard=False)


class Data:
    """A loader whose batches are a function of the step."""

    def __init__(self) -> None:
        self.opened = self.closed = self.read_bytes = 0

    def batches(self, start: int, stop: int, /, **_: Any) -> Any:
        self.opened += 1
        try:
            for step in range(start, stop):
                self.read_bytes += 100
                pixels = torch.full((2, 3, 4, 4), step % 7, dtype=torch.uint8)
                yield Batch(step, np.array([step, step + 1]), pixels, {}, {})
        finally:
            self.closed += 1


def model_of(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 4), nn.Linear(4, 1))


def plan_of(
    model: nn.Module, *, steps: int = 10, clip: float = 0.0, track: TrackConfig = TRACK, precision: str = "fp32"
) -> TrainPlan:
    first, second = list(model[1].parameters()), list(model[2].parameters())  # type: ignore[index]
    return TrainPlan(
        steps=steps,
        rate=lambda step: 0.01 / (1 + step),
        groups=[(first, 0.1), (second, 1.0)],
        weight_decay=0.1,
        clip=clip,
        precision=precision,
        track=track,
        split=Split(batch=2),
    )


def losses_of(model: nn.Module, *, hook: Callable[[int], None] = lambda step: None) -> Any:
    """A loss with noise from torch's random state, as routers have."""

    def losses(batch: Batch, /) -> Mapping[str, Tensor]:
        hook(batch.step)
        noise = torch.randn(())
        value = (model(batch.pixels.float()) + noise - 1).square().mean()
        return {"noise": noise, "total": value}

    return losses


def run(folder: Path, *, seed: int = 0, hook: Callable[[int], None] = lambda step: None, **options: Any) -> nn.Module:
    model = model_of(seed)
    torch.manual_seed(5)
    data: Any = Data()
    try:
        train(model, losses_of(model, hook=hook), data, plan=plan_of(model, **options), folder=folder, label="test")
    finally:
        assert data.closed == data.opened
    return model


class _Stop(Exception):
    pass


def fail_at(step: int) -> Callable[[int], None]:
    def hook(now: int) -> None:
        if now == step:
            raise _Stop

    return hook


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


@pytest.mark.parametrize("killed", [[3], [4], [5], [9], [2, 6, 7]])
def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, killed: list[int]) -> None:
    whole = run(tmp_path / "whole", clip=0.5)
    for step in killed:
        with pytest.raises(_Stop):
            run(tmp_path / "cut", hook=fail_at(step), clip=0.5)
    # What the new process happened to draw before resuming must not matter: another initial model.
    assert same(whole, run(tmp_path / "cut", seed=1 if max(killed) >= 4 else 0, clip=0.5))
    assert (tmp_path / "cut/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()
    names = [path.name for path in sorted((tmp_path / "whole/checkpoints").iterdir())]
    assert names == ["step-000000008.safetensors", "step-000000010.safetensors"]
    for name in names:
        assert (tmp_path / "cut/checkpoints" / name).read_bytes() == (
            tmp_path / "whole/checkpoints" / name
        ).read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_saves(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.getsignal(number)

    def hook(step: int) -> None:
        if step == 5:
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted, match="stopped at step 6 of 10 as asked; rerun to continue") as caught:
        run(tmp_path / "cut", hook=hook)
    assert isinstance(caught.value, Preempted) == (number == signal.SIGTERM)
    assert (tmp_path / "cut/checkpoints/step-000000006.safetensors").exists()
    assert signal.getsignal(number) is before
    whole = run(tmp_path / "whole")
    assert same(whole, run(tmp_path / "cut"))
    assert (tmp_path / "cut/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    def hook(step: int) -> None:
        if step == 5:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, hook=hook)
    assert not (tmp_path / "checkpoints/step-000000006.safetensors").exists()


def test_a_signal_in_the_last_step_stops_what_would_come_next(tmp_path: Path) -> None:
    def hook(step: int) -> None:
        if step == 9:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Preempted, match="stopped at step 10 of 10 as asked"):
        run(tmp_path / "cut", hook=hook)
    assert same(run(tmp_path / "whole"), run(tmp_path / "cut", hook=fail_at(0)))


def test_training_works_outside_the_main_thread(tmp_path: Path) -> None:
    found: list[nn.Module] = []
    thread = threading.Thread(target=lambda: found.append(run(tmp_path / "thread")))
    thread.start()
    thread.join()
    assert same(found[0], run(tmp_path / "main"))


def test_a_finished_run_takes_no_step(tmp_path: Path) -> None:
    whole = run(tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "checkpoints").iterdir()}
    assert same(whole, run(tmp_path, seed=3, hook=fail_at(0)))
    assert before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "checkpoints").iterdir()}


def test_a_loss_that_is_not_finite_is_named(tmp_path: Path) -> None:
    def broken(step: int) -> None:
        if step == 2:
            for parameter in found[0].parameters():
                parameter.data.fill_(float("nan"))

    found = [model_of()]
    data: Any = Data()
    with pytest.raises(PipelineError, match=r"step 3: loss total is not finite; lower the learning rate"):
        train(found[0], losses_of(found[0], hook=broken), data, plan=plan_of(found[0]), folder=tmp_path, label="test")
    # No state after the damage is kept.
    assert not list(tmp_path.glob("checkpoints/*"))


def test_groups_train_at_their_share_of_the_rate(tmp_path: Path) -> None:
    start = model_of()
    model = model_of()
    data: Any = Data()
    plan = plan_of(model, steps=1)
    train(model, losses_of(model), data, plan=plan, folder=tmp_path, label="test")
    # AdamW's first step moves every weight by the rate, whatever its gradient; decay comes on top.
    for index, factor in ((1, 0.1), (2, 1.0)):
        before = start[index].bias  # type: ignore[index]
        moved = (model[index].bias - before * (1 - 0.01 * factor * 0.1)).abs()  # type: ignore[index]
        assert torch.allclose(moved[moved > 0], torch.tensor(0.01 * factor), rtol=1e-3)


def test_clipping_bounds_and_records_the_norm(tmp_path: Path) -> None:
    run(tmp_path / "free", steps=3)
    free = read_metrics(tmp_path / "free/metrics.jsonl")
    run(tmp_path / "clipped", steps=3, clip=1e-3)
    lines = read_metrics(tmp_path / "clipped/metrics.jsonl")
    assert free[0]["grad_norm"] == pytest.approx(lines[0]["grad_norm"], rel=1e-5)
    assert all(line["grad_norm"] > 1e-3 for line in lines)
    assert [line["lr"] for line in lines] == [0.01, 0.005, 0.01 / 3]


def test_bf16_keeps_weights_in_fp32(tmp_path: Path) -> None:
    model = run(tmp_path, steps=2, precision="bf16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_what_is_recorded_changes_no_result(tmp_path: Path) -> None:
    dense = run(tmp_path / "dense")
    sparse = TrackConfig(log_every=3, checkpoint_every=100, keep=1, tensorboard=True)
    assert same(dense, run(tmp_path / "sparse", track=sparse))
    lines = read_metrics(tmp_path / "sparse/metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 3, 6, 9, 10]
    every = {line["step"]: line for line in read_metrics(tmp_path / "dense/metrics.jsonl")}
    assert lines == [every[line["step"]] for line in lines]


def test_the_norm_is_read_only_where_it_is_recorded(tmp_path: Path) -> None:
    """Reading it at every step would make every step wait for the device."""
    model = model_of()
    run = Trainer(model=model, losses=losses_of(model), plan=plan_of(model, clip=1.0), folder=tmp_path)
    named = run.step(0, Data().batches(0, 1))
    assert isinstance(run.grad_norm, Tensor)
    assert run.record(0, named)["grad_norm"] == run.grad_norm.item() > 0


def test_only_recorded_steps_are_watched(tmp_path: Path) -> None:
    seen: list[tuple[int, bool]] = []
    model = model_of()
    data: Any = Data()
    inner = losses_of(model)

    def losses(batch: Batch, /) -> Mapping[str, Tensor]:
        seen.append((batch.step + 1, batch.watched))
        return inner(batch) | {"beside/it": torch.tensor(float("inf"))} if batch.watched else inner(batch)

    track = TrackConfig(log_every=4, checkpoint_every=100, tensorboard=False)
    train(model, losses, data, plan=plan_of(model, track=track), folder=tmp_path, label="test")
    assert [step for step, watched in seen if watched] == [1, 4, 8, 10]
    assert [line["step"] for line in read_metrics(tmp_path / "speeds.jsonl")] == [1, 4, 8, 10]
    named = {"step", "noise", "total", "beside/it", "lr", "grad_norm"}
    assert read_metrics(tmp_path / "metrics.jsonl")[0].keys() == named


def test_no_norm_is_taken_where_nobody_wants_it(tmp_path: Path) -> None:
    model = model_of()
    run = Trainer(model=model, losses=losses_of(model), plan=plan_of(model), folder=tmp_path)
    run.step(0, Data().batches(0, 1), watched=True)
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    assert run.grad_norm is not None
    torch.testing.assert_close(run.grad_norm, norm)
    assert "grad_norm" not in run.record(1, run.step(1, Data().batches(1, 2)))


@pytest.mark.parametrize(
    ("steps", "epochs", "expected"), [(7, None, 7), (None, 2.0, 50), (None, 0.5, 12), (None, 0.001, 1)]
)
def test_an_epoch_is_a_pass_over_as_many_rows_as_images(steps: int | None, epochs: float | None, expected: int) -> None:
    assert steps_of(steps, epochs, images=100, batch=4) == expected


@pytest.mark.parametrize(("images", "expected"), [(100, 75), (103, 75), (104, 78), (3, 1)])
def test_an_epoch_may_have_whole_batches_alone(images: int, expected: int) -> None:
    assert steps_of(None, 3.0, images=images, batch=4, drop_last=True) == expected


def test_fused_steps_are_the_same_to_rounding(tmp_path: Path) -> None:
    def weights(fused: bool) -> list[Tensor]:
        model = model_of()
        plan = dataclasses.replace(plan_of(model, clip=1.0), fused=fused)
        run = Trainer(model=model, losses=losses_of(model), plan=plan, folder=tmp_path)
        assert bool(run.state.optimizer.param_groups[0]["fused"]) is fused
        torch.manual_seed(5)
        for step, batch in enumerate(Data().batches(0, 4)):
            run.step(step, [batch])
        return [parameter.detach() for parameter in model.parameters()]

    for one, two in zip(weights(True), weights(False), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def test_the_batch_arithmetic_is_told() -> None:
    view_set: Any = SimpleNamespace(spec=SimpleNamespace(images=100, views=4, rows=400))
    told = length_line(view_set, steps=50, split=Split(batch=16, ranks=Ranks(world=2), accumulate=2))
    arithmetic = "50 steps x 16 (2 ranks x 4 images x 2 micro-batches) = 800 images"
    assert told == f"{arithmetic} = 8.0 epochs of 100 images x 4 views, each view read 2 times"
