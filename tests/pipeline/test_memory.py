from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline import memory
from pipeline.features import encode_maps
from pipeline.memory import Fitting, available_bytes, peak_bytes


def test_there_is_some_memory() -> None:
    assert 1 << 20 < available_bytes() < 1 << 50


def test_the_peak_of_a_call_is_told() -> None:
    def call() -> Tensor:
        one = torch.ones(1000)
        two = one * 2
        del one
        three = two + 1
        del two
        return three[:500]

    assert peak_bytes(call) == 8000, "two tensors at a time; a view is none"


def test_a_batch_that_does_not_fit_is_halved_until_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    sizes: list[int] = []
    batch = torch.arange(22.0).reshape(11, 2)

    def call(rows: slice) -> list[Tensor]:
        some = batch[rows]
        sizes.append(len(some))
        if len(some) > 3:
            raise torch.OutOfMemoryError
        return [some + 1, some[:, :1]]

    fitting = Fitting("eager")
    fitting._rows = 11
    for _ in range(2):
        one, other = fitting.run(batch, call)
        assert torch.equal(one, batch + 1)
        assert torch.equal(other, batch[:, :1])
    assert sizes == [11, 5, 2, 2, 2, 2, 2, 1, 2, 2, 2, 2, 2, 1], "what did not fit is not tried again"
    printed = capsys.readouterr().err
    assert "extract eager: memory does not hold 11 rows; goes on with 5 at a time" in printed


def test_a_row_that_does_not_fit_is_an_error() -> None:
    def call(rows: slice) -> list[Tensor]:
        raise torch.OutOfMemoryError

    fitting = Fitting("hopeless")
    fitting._rows = 4
    with pytest.raises(torch.OutOfMemoryError):
        fitting.run(torch.zeros(4), call)


def test_on_a_cpu_the_first_row_tells_how_many_may_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, sizes = torch.zeros(10, 250), []

    def call(rows: slice) -> list[Tensor]:
        sizes.append(rows.stop - rows.start)
        return [batch[rows].clone()]

    # A row takes 1000 bytes, and 2000 with the view of the batch, whose storage was not there before either.
    monkeypatch.setattr(memory, "peak_bytes", lambda call: (call(), 1000)[1])
    monkeypatch.setattr(memory, "available_bytes", lambda: 8000)
    (found,) = Fitting("small").run(batch, call)
    assert found.shape == batch.shape
    assert sizes == [1, 4, 4, 2]


def test_maps_are_encoded_in_halves_where_memory_holds_no_whole() -> None:
    sizes: list[int] = []

    def encode(feats: list[Tensor]) -> list[dict[str, Tensor]]:
        sizes.append(len(feats[0]))
        if len(feats[0]) > 2:
            raise torch.OutOfMemoryError
        return [{"values": feat + 1, "scale": feat[:, :1]} for feat in feats]

    spec: Any = SimpleNamespace(encode_levels=encode)
    feats = [torch.arange(10.0).reshape(5, 2), torch.arange(15.0).reshape(5, 3)]
    for feat, parts in zip(feats, encode_maps(spec, feats), strict=True):
        assert torch.equal(parts["values"], feat + 1)
        assert torch.equal(parts["scale"], feat[:, :1])
    assert sizes == [5, 2, 3, 1, 2]


def test_processes_that_share_memory_count_their_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 9000)
    assert available_bytes() == 9000
    memory.share_memory(3)
    try:
        assert available_bytes() == 3000
    finally:
        memory.share_memory(1)
