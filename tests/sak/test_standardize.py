"""Standardized features have the moments that are promised, and nothing else of them changes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sak.errors import SakError, UnknownNameError
from sak.standardize import Affine, Moments, apply_affine, equalizing_rotation, hadamard, standardization

# 24, 12 and 20 come from Paley's matrices, 16 from Sylvester's; there is none of 9 and of 14.
CHANNELS = [1, 2, 9, 12, 14, 16, 20, 24]


def skewed(channels: int, *, rows: int = 6) -> Tensor:
    """Correlated channels of very different size, off centre."""
    generator = torch.Generator().manual_seed(channels)
    mixing = torch.randn(channels, channels, generator=generator) * torch.logspace(-2, 1, channels)[:, None]
    maps = torch.randn(rows, channels, 5, 4, generator=generator)
    return torch.einsum("kc,bchw->bkhw", mixing, maps) + 3 * torch.arange(channels).view(1, -1, 1, 1)


def moments_of(maps: Tensor, *, batch: int = 6) -> Moments:
    moments = Moments()
    for part in maps.split(batch):
        moments.add(part)
    return moments


def fitted(kind: str, maps: Tensor) -> Affine:
    affine = standardization(kind, moments_of(maps))
    assert affine is not None
    return affine


@pytest.mark.parametrize("kind", ["channel", "phi-s"])
@pytest.mark.parametrize("channels", CHANNELS)
def test_every_channel_has_mean_0_and_variance_1(kind: str, channels: int) -> None:
    maps = skewed(channels)
    tokens = apply_affine(fitted(kind, maps), maps).double().movedim(1, -1).flatten(0, -2)
    torch.testing.assert_close(tokens.mean(0), torch.zeros(channels).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(tokens.var(0, correction=0), torch.ones(channels).double(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("channels", CHANNELS)
def test_phi_s_is_one_rotation_and_one_scale(channels: int) -> None:
    """Distances between tokens all change by one factor, the root of the mean variance; per channel they do not."""
    maps = skewed(channels)
    tokens = maps.movedim(1, -1).flatten(0, -2).double()
    after = apply_affine(fitted("phi-s", maps), maps).movedim(1, -1).flatten(0, -2).double()
    alpha = math.sqrt(float(tokens.var(0, correction=0).mean()))
    torch.testing.assert_close(torch.pdist(after) * alpha, torch.pdist(tokens), rtol=1e-4, atol=1e-4)


def test_phi_s_is_the_papers_formula() -> None:
    """x -> H Uᵀ (x - μ) / α, with the eigenvectors of the covariance and Sylvester's matrix, spelt out."""
    maps = skewed(4)
    tokens = maps.movedim(1, -1).flatten(0, -2).double()
    centred = tokens - tokens.mean(0)
    covariance = centred.T @ centred / len(tokens)
    values, vectors = torch.linalg.eigh(covariance)
    vectors = vectors * torch.sign(vectors.gather(0, vectors.abs().argmax(0, keepdim=True)))
    sylvester = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]).double() / 2
    expected = centred @ (sylvester @ vectors.T / values.mean().sqrt()).T
    found = apply_affine(fitted("phi-s", maps), maps).movedim(1, -1).flatten(0, -2)
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["channel", "phi-s"])
def test_how_rows_are_batched_does_not_matter(kind: str) -> None:
    maps = skewed(12)
    one, other = standardization(kind, moments_of(maps, batch=1)), fitted(kind, maps)
    assert one is not None
    assert one.state().keys() == other.state().keys()
    for name, tensor in other.state().items():
        torch.testing.assert_close(one.state()[name], tensor, rtol=1e-5, atol=1e-6)


def test_a_channel_that_never_changes_is_only_centred() -> None:
    maps = torch.full((2, 3, 2, 2), 5.0)
    for kind in ("channel", "phi-s"):
        assert torch.equal(apply_affine(fitted(kind, maps), maps), torch.zeros(2, 3, 2, 2))


@pytest.mark.parametrize("value", [0.1, 0.7, -3.3])
@pytest.mark.parametrize("others", [True, False])
def test_rounding_is_no_variance(value: float, others: bool) -> None:
    """A constant that binary numbers do not hold exactly, over many batches, beside channels that change or alone."""
    generator = torch.Generator().manual_seed(0)
    batches = torch.randn(64, 4, 3, 27, 27, generator=generator)
    batches[:, :, slice(1, 2) if others else slice(None)] = value
    moments = Moments()
    for maps in batches:
        moments.add(maps)
    assert moments.covariance_CC[1, 1] > 0
    near = torch.nextafter(batches[0], torch.tensor(9.0))  # as another batch, or a codec, may round it
    for kind in ("channel",) if others else ("channel", "phi-s"):
        affine = standardization(kind, moments)
        assert affine is not None
        assert apply_affine(affine, near)[:, 1].abs().max() < 1e-5 * abs(value)


def test_autocast_does_not_reach_it() -> None:
    maps = skewed(16)
    affine = fitted("phi-s", maps)
    expected = apply_affine(affine, maps)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(apply_affine(affine, maps), expected)


@pytest.mark.parametrize("order", [1, 2, 4, 8, 12, 20, 24, 32, 44, 48, 96, 192, 384, 768, 1024, 1152, 1280])
def test_hadamard_matrices_are_orthogonal_with_entries_of_one_size(order: int) -> None:
    matrix = hadamard(order)
    assert matrix is not None
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(order).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(
        matrix.abs(), torch.full((order, order), order**-0.5, dtype=torch.float64), atol=1e-12, rtol=0
    )


@pytest.mark.parametrize("order", [3, 5, 6, 7, 9, 10, 14, 30, 18])
def test_where_there_is_no_hadamard_matrix_none_is_made_up(order: int) -> None:
    assert hadamard(order) is None


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=12))
def test_a_rotation_evens_out_any_variances(variances: list[float]) -> None:
    rotation = equalizing_rotation(variances)
    size = len(variances)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(size).double(), atol=1e-9, rtol=0)
    even = (rotation @ torch.diag(torch.tensor(variances, dtype=torch.float64)) @ rotation.T).diagonal()
    mean = sum(variances) / size
    torch.testing.assert_close(
        even, torch.full((size,), mean, dtype=torch.float64), atol=1e-6 * max(1.0, mean), rtol=1e-6
    )


def test_refusals() -> None:
    with pytest.raises(UnknownNameError, match=r"'whiten'.*none, channel, phi-s"):
        standardization("whiten", moments_of(skewed(2)))
    with pytest.raises(SakError, match="expected tokens"):
        standardization("channel", Moments())
    with pytest.raises(SakError, match="maps of 9 channels, got 12"):
        apply_affine(fitted("channel", skewed(9)), skewed(12))
    assert standardization("none", Moments()) is None
