"""Errors of a codec, accumulated batch by batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.fidelity import Fidelity, Measured, column_fidelity, mean_measured, stored_bits
from sak.losses.distill import distill_loss
from store.store import Store
from tests.conftest import Finished


def maps(rows: int, *, seed: int) -> torch.Tensor:
    return torch.randn(rows, 5, 3, 4, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 6), cut=st.integers(0, 6), noise=st.floats(0.01, 2.0), seed=st.integers(0, 99))
def test_batches_add_up_to_the_whole(rows: int, cut: int, noise: float, seed: int) -> None:
    feat = maps(rows, seed=seed)
    back = feat + noise * maps(rows, seed=seed + 1)
    whole, parts = Fidelity(), Fidelity()
    whole.add(feat, back)
    for part in (slice(0, cut), slice(cut, None)):
        parts.add(feat[part], back[part])
    one, other = whole.result(), parts.result()
    assert one is not None
    assert other == pytest.approx(one, abs=2e-6)


def test_each_number_is_what_it_is_called() -> None:
    feat = maps(4, seed=0).double()
    back = feat + 0.3 * maps(4, seed=1)
    found = Fidelity(kind="cos+l1", cosine="token")
    found.add(feat.float(), back.float())
    measured = found.result()
    assert measured is not None
    dots = (feat * back).sum(1) / (feat.norm(dim=1) * back.norm(dim=1))
    whole = (feat * back).flatten(1).sum(1) / (feat.flatten(1).norm(dim=1) * back.flatten(1).norm(dim=1))
    assert measured.token_cosine == pytest.approx(float(dots.mean()), abs=1e-6)
    assert measured.image_cosine == pytest.approx(float(whole.mean()), abs=1e-6)
    assert measured.relative_error == pytest.approx(float((feat - back).norm() / feat.norm()), abs=1e-6)
    loss = distill_loss({"t": [feat]}, {"t": [back]}, "cos+l1", cosine="token")["total"]
    assert measured.loss == pytest.approx(float(loss), abs=1e-6)
    assert len(set(measured)) == 4, "four different numbers"


def test_an_exact_codec_is_exact_and_nothing_is_no_number() -> None:
    found = Fidelity()
    assert found.result() is None
    found.add(maps(0, seed=0), maps(0, seed=0))
    assert found.result() is None
    found.add(maps(3, seed=0), maps(3, seed=0))
    assert found.result() == Measured(token_cosine=1, image_cosine=1, relative_error=0, loss=0)
    zero = Fidelity()
    zero.add(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2))
    assert zero.result() == Measured(token_cosine=0, image_cosine=0, relative_error=0, loss=0.9)


def test_levels_count_the_same() -> None:
    levels = [Measured(1.0, 0.8, 0.2, 0.1), Measured(0.5, 0.6, 0.4, 0.3)]
    assert mean_measured(levels) == pytest.approx((0.75, 0.7, 0.3, 0.2))


def test_bits_are_those_on_disk(finished: Finished) -> None:
    store = Store.open(finished.root / "store")
    view_set = store.view_sets()[0]
    column = store.columns(view_set.name)[0]
    bits = stored_bits(column, column.summary())
    assert bits is not None
    values = [view_set.spec.rows * level.values for level in column.spec.levels]
    folder = finished.root / "store" / column.folder
    for level, (found, count) in enumerate(zip(bits.levels, values, strict=True)):
        size = sum(path.stat().st_size for path in (folder / f"level_{level}" / "c").rglob("*") if path.is_file())
        assert found == pytest.approx(8 * size / count)
    assert bits.mean == pytest.approx(float(np.average(bits.levels, weights=values)))
    fidelity = column_fidelity(column, column.summary())
    assert [fidelity[f"level_{level}"]["bits_per_value"] for level in range(4)] == pytest.approx(bits.levels, abs=1e-4)
    assert set(fidelity["mean"]) == {*Measured._fields, "bits_per_value"}
