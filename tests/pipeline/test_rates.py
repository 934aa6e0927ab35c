"""Codecs measured on maps, compared with what the store writes."""

from __future__ import annotations

import pytest
import torch

from pipeline.fidelity import Measured
from pipeline.rates import LossKind, Rate, cheapest, front, measure, meets
from store.codecs.registry import choose_codec
from store.errors import StoreError
from store.spec import ColumnSpec, LevelSpec
from store.store import Store
from tests.conftest import Finished

CPU = torch.device("cpu")
LEVELS = (LevelSpec(components=6, height=3, width=4), LevelSpec(components=4, height=2, width=2))


def batches(count: int, rows: int, *, scale: float = 1.0) -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [[scale * torch.randn(rows, *level.shape, generator=generator) for level in LEVELS] for _ in range(count)]


def spec(codec: str) -> ColumnSpec:
    return ColumnSpec(view_set="v", teacher="t", identity={}, levels=LEVELS, codec=choose_codec(codec))


def test_a_rate_has_the_errors_and_bytes_of_its_codec() -> None:
    exact = measure(spec("fp32"), batches(2, 8), device=CPU, loss=LossKind())
    assert exact.measured == Measured(1, 1, 0, 0)
    assert exact.levels == (exact.measured,) * 2
    coarse = measure(spec("int8"), batches(2, 8), device=CPU, loss=LossKind("l2"))
    assert coarse.codec == {"name": "int8", "scale": "float32"}
    assert 0 < coarse.measured.loss < 1e-3
    assert 0.99 < coarse.measured.token_cosine < 1
    assert 8 < coarse.bits < exact.bits
    values = sum(level.values for level in LEVELS)
    assert exact.row_bytes == pytest.approx(exact.bits * values / 8)
    assert all(speed > 0 for rate in (exact, coarse) for speed in (rate.encode, rate.decode, rate.unpack))


def test_bytes_are_those_that_the_store_writes(finished: Finished) -> None:
    store = Store.open(finished.root / "store")
    view_set = next(item for item in store.view_sets() if item.spec.rows == 22)
    for column in store.columns(view_set.name):
        commit = column.commits.require([0])[0]
        feats = [torch.from_numpy(feat) for feat in column.read_floats(list(commit.rows))]
        rate = measure(column.spec, [feats], device=CPU, loss=LossKind())
        assert round(rate.row_bytes * len(commit.rows)) == commit.size


def test_maps_that_a_codec_cannot_hold_are_its_own_error() -> None:
    with pytest.raises(StoreError, match="65504"):
        measure(spec("fp16"), batches(1, 2, scale=1e6), device=CPU, loss=LossKind())


def rate(name: str, bits: float, cosine: float, loss: float = 0.0) -> Rate:
    measured = Measured(cosine, cosine, 0.1, loss)
    return Rate(
        codec={"name": name}, measured=measured, levels=(measured,), bits=bits, row_bytes=bits, asset_bytes=0,
        encode=1, decode=1, unpack=1,
    )  # fmt: skip


RATES = [rate("a", 8, 0.999, 0.01), rate("b", 4, 0.99, 0.05), rate("c", 5, 0.98, 0.002), rate("d", 2, 0.9, 0.2)]


def test_the_front_is_what_nothing_beats() -> None:
    assert front(RATES, metric="token_cosine") == [True, True, False, True]
    assert front(RATES, metric="loss") == [False, True, True, True]
    same = [rate("a", 4, 0.99), rate("b", 4, 0.99)]
    assert front(same, metric="image_cosine") == [True, True]


@pytest.mark.parametrize(
    ("metric", "fidelity", "name"),
    [
        ("token_cosine", 0.988, "b"),
        ("token_cosine", 0.99, "b"),
        ("token_cosine", 0.9999, None),
        ("image_cosine", 0.5, "d"),
        ("loss", 0.01, "c"),
        ("loss", 0.001, None),
    ],
)
def test_the_cheapest_that_is_good_enough(metric: str, fidelity: float, name: str | None) -> None:
    found = cheapest(RATES, metric=metric, fidelity=fidelity)
    assert (found.name if found else None) == name
    assert found is None or meets(found, metric=metric, fidelity=fidelity)
