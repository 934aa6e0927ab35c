"""Learnt weights of tasks: against torch's own Adam and autograd, and where there is nothing to learn from."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sak.errors import UnknownNameError
from sak.losses.weighting import WEIGHTINGS, GradNorm, TaskBalance, Uncertainty, make_balance

CPU = torch.device("cpu")
TASKS = ("semseg", "normals", "depth")
RATE = 0.05


def balance_of(name: str, tasks: tuple[str, ...] = TASKS) -> TaskBalance:
    made = make_balance(name, tasks, rate=RATE, alpha=1.5, device=CPU)
    assert made is not None
    return made


def whole(value: Tensor) -> Tensor:
    return value


class Net(nn.Module):
    """One shared layer, and an output for each task."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shared = nn.Linear(4, 6)
        self.outputs = nn.ModuleList(nn.Linear(6, 1) for _ in TASKS)

    def losses(self, step: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(step)
        x, hidden = torch.randn(5, 4, generator=generator), self.shared
        features = hidden(x).tanh()
        scales = (1.0, 30.0, 0.1)
        return {
            task: scale * (output(features) - 1).square().mean() / (1 + step * index)
            for index, (task, scale, output) in enumerate(zip(TASKS, scales, self.outputs, strict=True))
        }


def test_fixed_weights_are_none_and_others_are_refused() -> None:
    assert make_balance("fixed", TASKS, rate=RATE, alpha=0, device=CPU) is None
    for name in WEIGHTINGS[1:]:
        torch.testing.assert_close(balance_of(name).weights(), torch.ones(3))
    with pytest.raises(UnknownNameError, match="expected one of fixed, uncertainty, gradnorm, got 'dwa'"):
        make_balance("dwa", TASKS, rate=RATE, alpha=0, device=CPU)


def test_uncertainty_is_adam_on_its_total() -> None:
    net, balance = Net(), Uncertainty(TASKS, rate=RATE, device=CPU)
    logs = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.Adam([logs], lr=RATE)
    for step in range(6):
        losses = net.losses(step)
        total = balance(losses, shared=[], mean=whole)
        values = torch.stack(list(losses.values()))
        wanted = ((-logs).exp() * values + torch.tensor([0.5, 1.0, 1.0]) * logs).sum()
        torch.testing.assert_close(total, wanted)
        optimizer.zero_grad()
        wanted.backward()
        optimizer.step()
        torch.testing.assert_close(balance.state["log_variance"], logs.detach())


def test_uncertainty_settles_where_its_likelihood_is_highest() -> None:
    balance = Uncertainty(("semseg", "depth"), rate=RATE, device=CPU)
    for _ in range(400):
        balance({"semseg": torch.tensor(4.0), "depth": torch.tensor(0.5)}, shared=[], mean=whole)
    torch.testing.assert_close(balance.weights(), torch.tensor([1 / 8, 2.0]), rtol=1e-2, atol=0)


def slow_gradnorm(net: Net, steps: int) -> list[Tensor]:
    """Its paper's algorithm as autograd would do it."""
    weights, shared = nn.Parameter(torch.ones(3)), list(net.shared.parameters())
    optimizer, first, found = torch.optim.Adam([weights], lr=RATE), None, []
    for step in range(steps):
        values = torch.stack(list(net.losses(step).values()))
        first = values.detach() if first is None else first
        norms = []
        for weight, value in zip(weights, values, strict=True):
            gradients = torch.autograd.grad(weight * value, shared, create_graph=True)
            norms.append(torch.cat([gradient.flatten() for gradient in gradients]).norm())
        pull = torch.stack(norms)
        fallen = values.detach() / first
        wanted = (pull.mean() * (fallen / fallen.mean()) ** 1.5).detach()
        optimizer.zero_grad()
        (weights.grad,) = torch.autograd.grad((pull - wanted).abs().sum(), [weights])
        optimizer.step()
        weights.data *= 3 / weights.data.sum()
        found.append(weights.detach().clone())
    return found


def test_gradnorm_is_its_papers_algorithm() -> None:
    net = Net()
    wanted, balance = slow_gradnorm(net, 8), GradNorm(TASKS, rate=RATE, device=CPU, alpha=1.5)
    for step in range(8):
        losses = net.losses(step)
        before = balance.weights()
        total = balance(losses, shared=list(net.shared.parameters()), mean=whole)
        torch.testing.assert_close(total, (before * torch.stack(list(losses.values()))).sum())
        torch.testing.assert_close(balance.weights(), wanted[step])
        total.backward()  # the graph is still there


def test_gradnorm_makes_tasks_pull_alike() -> None:
    net, balance = Net(), GradNorm(TASKS, rate=RATE, device=CPU, alpha=0.0)

    def pulls() -> list[float]:
        values = [weight * loss for weight, loss in zip(balance.weights(), net.losses(0).values(), strict=True)]
        weight = [net.shared.weight]
        return [float(torch.autograd.grad(value, weight, retain_graph=True)[0].norm()) for value in values]

    before = pulls()
    for _ in range(400):
        balance(net.losses(0), shared=[net.shared.weight], mean=whole)
    assert max(before) / min(before) > 20
    assert max(pulls()) / min(pulls()) < 3, "steps of one size around the goal"


@pytest.mark.parametrize("name", WEIGHTINGS[1:])
def test_tasks_without_a_labelled_pixel_change_nothing(name: str) -> None:
    net, balance = Net(), balance_of(name)
    shared = list(net.shared.parameters())
    for _ in range(2):
        balance(net.losses(0), shared=shared, mean=whole)
    state = {key: value.clone() for key, value in balance.state.items()}
    nothing = {task: 0.0 * loss for task, loss in net.losses(1).items()}
    total = balance(nothing, shared=shared, mean=whole)
    assert bool(total.isfinite())
    total.backward()
    assert all(p.grad is not None and not p.grad.any() for p in net.parameters())
    torch.testing.assert_close(balance.state, state)
    one = net.losses(1) | {"depth": nothing["depth"].detach() + 0.0 * net.losses(1)["depth"]}
    balance(one, shared=shared, mean=whole)
    assert balance.state["step"].tolist() == [3.0, 3.0, 2.0]
    assert all(bool(value.isfinite().all()) for value in balance.state.values())


@pytest.mark.parametrize("name", WEIGHTINGS[1:])
def test_the_first_batch_may_have_no_label_at_all(name: str) -> None:
    net, balance = Net(), balance_of(name)
    shared = list(net.shared.parameters())
    total = balance({task: 0.0 * loss for task, loss in net.losses(0).items()}, shared=shared, mean=whole)
    assert float(total.detach()) == 0
    torch.testing.assert_close(balance.weights(), torch.ones(3))
    balance(net.losses(0), shared=shared, mean=whole)
    assert all(bool(value.isfinite().all()) for value in balance.state.values())
    assert not torch.equal(balance.weights(), torch.ones(3))


@pytest.mark.parametrize("name", WEIGHTINGS[1:])
def test_one_part_asks_for_means_of_the_batch(name: str) -> None:
    """What is learnt follows the means over parts, not this part's own losses."""
    net = Net()

    def learnt(mean: Callable[[Tensor], Tensor]) -> Tensor:
        balance = balance_of(name)
        for step in range(3):
            balance(net.losses(step), shared=list(net.shared.parameters()), mean=mean)
        return balance.weights()

    assert not torch.allclose(learnt(whole), learnt(lambda value: value.flip(0)))
