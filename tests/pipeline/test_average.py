from __future__ import annotations

import torch
from torch import nn

from pipeline.average import WeightAverage


def test_it_is_the_average_that_its_formula_says() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = WeightAverage(model, decay=0.9)
    expected = {name: value.double().clone() for name, value in model.state_dict().items()}
    for step in range(120):
        with torch.no_grad():
            for value in model.state_dict().values():
                value.add_(torch.randn(value.shape) if value.is_floating_point() else 1)
        average.update(model, step=step)
        decay = min(0.9, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            whole = not value.is_floating_point()
            expected[name] = value.double() if whole else decay * expected[name] + (1 - decay) * value.double()
    for name, value in average.state.items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-4, atol=1e-5)
        assert not value.requires_grad
    assert average.state["1.num_batches_tracked"] == 120
    raw = model[0].weight.detach().clone()  # type: ignore[union-attr]
    average.give(model)
    assert not torch.equal(model[0].weight, raw)  # type: ignore[arg-type]
    assert torch.equal(model[0].weight, average.state["0.weight"])  # type: ignore[arg-type]
