"""Preprocessing equals SAM's, covers whole images, and maps are cut to what held image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sak.errors import SakError
from sak.preprocess import crop_to_content, fit_size, long_side_size, normalise, pad_to, resize_image

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "sak_teachers_small.npz"


@pytest.mark.parametrize("antialias", [True, False])
def test_parity_with_the_published_sam_input(antialias: bool) -> None:
    with np.load(GOLDEN, allow_pickle=False) as golden:
        image, wanted = (torch.from_numpy(golden[f"sam_preprocess/{key}"]) for key in ("in", "out128"))
    content = long_side_size((48, 64), 128)
    assert content == (96, 128)
    got = pad_to(resize_image(image, content, antialias=antialias), (128, 128))
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)


def test_nyud_size_of_sam() -> None:
    assert long_side_size((448, 576), 1024) == (796, 1024)


@given(st.integers(1, 900), st.integers(1, 900), st.integers(1, 64))
def test_sizes_fit(rows: int, columns: int, unit: int) -> None:
    fitted = fit_size((rows, columns), unit)
    assert all(length % unit == 0 and length >= unit for length in fitted)
    assert all(got <= max(length, unit) < got + unit for got, length in zip(fitted, (rows, columns), strict=True))
    assert max(long_side_size((rows, columns), 128)) == 128


def test_normalise_is_the_textbook_formula() -> None:
    pixels = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.25, 2.0])
    got = normalise(pixels, mean=mean, std=std)
    for channel in range(3):
        wanted = (pixels[:, channel].numpy() / 255 - mean[channel].item()) / std[channel].item()
        np.testing.assert_allclose(got[:, channel].numpy(), wanted, rtol=1e-5, atol=1e-6)


def test_shrinking_is_antialiased() -> None:
    """A one-pixel checkerboard must become flat grey, not an alias."""
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    board = ((rows + columns) % 2).float()[None, None]
    shrunk = resize_image(board, (20, 20))
    # Near the border the kernel is cut off, so only the inside is flat.
    assert (shrunk[..., 2:-2, 2:-2] - 0.5).abs().max() < 0.02
    assert (resize_image(board, (20, 20), antialias=False)[..., 2:-2, 2:-2] - 0.5).abs().max() > 0.2


@pytest.mark.parametrize(
    ("content", "cells"),
    [((1024, 1024), (64, 64)), ((796, 1024), (50, 64)), ((1024, 8), (64, 1)), ((1024, 1), (64, 1)), ((23, 25), (1, 2))],
)
def test_cells_of_padding_go(content: tuple[int, int], cells: tuple[int, int]) -> None:
    feat = torch.arange(64.0 * 64).view(1, 1, 64, 64)
    cropped = crop_to_content(feat, content=content, size=(1024, 1024))
    assert tuple(cropped.shape[-2:]) == cells
    assert torch.equal(cropped, feat[..., : cells[0], : cells[1]])


def test_refusals() -> None:
    stats = torch.ones(3)
    with pytest.raises(SakError, match=r"uint8 \(B, 3, H, W\), got torch.float32"):
        normalise(torch.zeros(1, 3, 4, 4), mean=stats, std=stats)
    with pytest.raises(SakError, match=r"got torch.uint8 \(1, 4, 4, 3\)"):
        normalise(torch.zeros(1, 4, 4, 3, dtype=torch.uint8), mean=stats, std=stats)
    with pytest.raises(SakError, match="resize it first"):
        pad_to(torch.zeros(1, 3, 9, 4), (8, 8))
