"""Tokens and maps, resizing, position embeddings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sak.errors import SakError
from sak.grids import map_to_tokens, pool_map, resize_map, resize_pos_embed, square_grid, tokens_to_map
from tests.golden_fill import fill

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
SIDES = st.integers(min_value=1, max_value=7)


@settings(deadline=None, max_examples=30)
@given(batch=SIDES, rows=SIDES, columns=SIDES, width=SIDES)
def test_tokens_survive_the_way_to_a_map_and_back(batch: int, rows: int, columns: int, width: int) -> None:
    tokens_BNC = torch.arange(float(batch * rows * columns * width)).view(batch, rows * columns, width)
    feat_BCHW = tokens_to_map(tokens_BNC, (rows, columns))
    assert feat_BCHW.shape == (batch, width, rows, columns)
    assert feat_BCHW[-1, 0, rows - 1, 0] == tokens_BNC[-1, (rows - 1) * columns, 0]
    assert torch.equal(map_to_tokens(feat_BCHW), tokens_BNC)


def test_a_map_is_a_view_of_its_tokens() -> None:
    tokens_BNC = torch.zeros(1, 7, 2)
    tokens_to_map(tokens_BNC[:, 1:], (2, 3))[0, 1, 1, 2] = 5.0
    assert tokens_BNC[0, 6, 1] == 5.0


def test_tokens_of_another_grid_are_refused() -> None:
    with pytest.raises(SakError, match=r"\(B, 6, C\).*\(1, 7, 4\)"):
        tokens_to_map(torch.zeros(1, 7, 4), (2, 3))


def test_resizing_uses_half_pixel_centres() -> None:
    feat_BCHW = torch.tensor([[[[0.0, 1.0]]]])
    expected = torch.tensor([[[[0.0, 0.25, 0.75, 1.0]]]])
    torch.testing.assert_close(resize_map(feat_BCHW, (1, 4)), expected)


def test_a_map_of_the_right_size_is_returned_as_it_is() -> None:
    feat_BCHW = torch.zeros(1, 2, 3, 4)
    assert resize_map(feat_BCHW, (3, 4)) is feat_BCHW


@pytest.mark.parametrize(("tokens", "grid"), [(1, (1, 1)), (576, (24, 24)), (24, None), (0, (0, 0))])
def test_square_grid(tokens: int, grid: tuple[int, int] | None) -> None:
    assert square_grid(tokens) == grid


def test_position_embedding_matches_the_published_resize() -> None:
    with np.load(GOLDEN / "sak_reference_pos_embed.npz") as golden:
        stage1, stage2 = torch.from_numpy(golden["stage1"]), torch.from_numpy(golden["stage2"])
    assert torch.equal(stage1, fill("vit.pos_embed", (1, 17, 384)))
    torch.testing.assert_close(resize_pos_embed(stage1, (6, 4), prefix=1), stage2, rtol=0, atol=1e-6)


def test_equal_token_counts_on_another_grid_are_still_resized() -> None:
    pos_1NC = fill("pos_embed", (1, 24, 8))
    assert resize_pos_embed(pos_1NC, (6, 4), prefix=0, source=(6, 4)) is pos_1NC
    assert not torch.equal(resize_pos_embed(pos_1NC, (6, 4), prefix=0, source=(4, 6)), pos_1NC)


def test_prefix_positions_are_kept() -> None:
    pos_1NC = fill("pos_embed", (1, 2 + 9, 8))
    resized_1NC = resize_pos_embed(pos_1NC, (5, 2), prefix=2)
    assert resized_1NC.shape == (1, 12, 8)
    assert torch.equal(resized_1NC[:, :2], pos_1NC[:, :2])


@pytest.mark.parametrize("source", [None, (4, 5)])
def test_a_wrong_source_grid_is_refused(source: tuple[int, int] | None) -> None:
    with pytest.raises(SakError, match="24 positions"):
        resize_pos_embed(torch.zeros(1, 25, 8), (6, 6), prefix=1, source=source)


@given(
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    target=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    seed=st.integers(0, 99),
)
def test_pooling_keeps_the_mean_and_never_enlarges(size: tuple[int, int], target: tuple[int, int], seed: int) -> None:
    feat = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    pooled = pool_map(feat, target)
    assert pooled.shape == (2, 3, min(size[0], target[0]), min(size[1], target[1]))
    torch.testing.assert_close(pooled.mean((-1, -2)), feat.mean((-1, -2)))
    assert (pooled is feat) == (pooled.shape == feat.shape)


def test_pooling_is_the_exact_area() -> None:
    """Where sizes divide it is the mean of blocks; elsewhere cells count by their share, and a ramp stays straight."""
    feat = torch.arange(12.0).view(1, 1, 2, 6)
    torch.testing.assert_close(pool_map(feat, (2, 3)), torch.nn.functional.avg_pool2d(feat, (1, 2)))
    three = pool_map(torch.tensor([1.0, 2.0, 4.0]).view(1, 1, 1, 3), (1, 2))
    torch.testing.assert_close(three.flatten(), torch.tensor([(1 + 2 / 2) / 1.5, (2 / 2 + 4) / 1.5]))
    step = pool_map(torch.arange(64.0).view(1, 1, 1, 64), (1, 24)).flatten().diff()
    assert float(step.max() - step.min()) < 0.2, "no cell is shifted by as much as a tenth of a cell"
