from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from store.codecs.blocks import Blocks, block_sides, dct_matrix, from_blocks, to_blocks
from store.codecs.packing import GROUPS, Group, pack, packed_bytes, unpack
from store.codecs.rotation import rotate, unrotate


@pytest.mark.parametrize("group", GROUPS)
@given(data=st.data(), rows=st.integers(1, 3), count=st.integers(1, 23))
@settings(max_examples=60, deadline=None)
def test_integers_come_back(group: Group, data: st.DataObject, rows: int, count: int):
    elements = st.integers(-group.largest, group.largest)
    values = data.draw(hnp.arrays(np.int32, (rows, count), elements=elements))
    packed = pack(values, group)
    assert packed.dtype == np.uint8
    assert packed.shape == (rows, packed_bytes(count, group))
    np.testing.assert_array_equal(unpack(packed, group, count=count), values)
    np.testing.assert_array_equal(pack(torch.from_numpy(values), group).numpy(), packed)
    np.testing.assert_array_equal(unpack(torch.from_numpy(packed), group, count=count).numpy(), values)


def test_groups_fit_in_their_bytes():
    for group in GROUPS:
        assert (2 * group.largest + 1) ** group.digits <= 256**group.planes


@pytest.mark.parametrize(
    ("grid", "side", "expected"),
    [((24, 24), 8, (8, 8)), ((27, 27), 8, (9, 9)), ((37, 14), 8, (37, 7)), ((64, 48), 8, (8, 8)), ((67, 1), 8, (1, 1))],
)
def test_blocks_tile_the_grid(grid: tuple[int, int], side: int, expected: tuple[int, int]):
    assert block_sides(*grid, side=side) == expected


@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 37])
def test_the_cosine_transform_is_orthonormal(size: int):
    np.testing.assert_allclose(dct_matrix(size) @ dct_matrix(size).T, np.eye(size), atol=1e-6)


@pytest.mark.parametrize("blocks", [Blocks(1, 1), Blocks(2, 3), Blocks(4, 6)])
def test_blocks_come_back(blocks: Blocks):
    feat = np.random.default_rng(0).normal(size=(2, 3, 4, 6)).astype(np.float32)
    freqs = to_blocks(feat, blocks)
    assert freqs.shape == (2, 3 * blocks.height * blocks.width, 24 // (blocks.height * blocks.width))
    np.testing.assert_allclose(from_blocks(freqs, blocks, (4, 6)), feat, atol=1e-5)
    flat = np.ones((1, 1, 4, 6), np.float32)  # a constant has but its mean: frequency (0, 0)
    np.testing.assert_allclose(to_blocks(flat, blocks)[0, 1:], 0, atol=1e-6)


@pytest.mark.parametrize("components", [1, 2, 6, 384, 1024])
def test_rotation_keeps_lengths_and_spreads_an_outlier(components: int):
    feat = np.zeros((1, components, 1, 1), np.float32)
    feat[0, 0] = 1
    turned = rotate(feat)
    np.testing.assert_allclose((turned**2).sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(unrotate(turned), feat, atol=1e-6)
    if components % 2 == 0:
        assert np.abs(turned).max() < 0.75
