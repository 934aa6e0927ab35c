"""Thinning equals the published results and another implementation; boundaries of label maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from skimage.measure import label as components
from skimage.morphology import thin as skimage_thin

from sak.odsf.thin import boundary_pixels, thin, thin_pixels

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "boundary_golden.npz"

masks = arrays(np.bool_, st.tuples(st.integers(1, 16), st.integers(1, 16)))


def test_masks_thin_to_the_published_ones() -> None:
    with np.load(GOLDEN, allow_pickle=False) as golden:
        for mask, wanted in zip(golden["thin_in"], golden["thin_out"], strict=True):
            np.testing.assert_array_equal(thin(mask), wanted)
        for pair in range(12):
            nms, wanted = golden[f"p{pair:02d}_nms"], golden[f"p{pair:02d}_thinned"]
            for threshold, mask in zip((0.05, 0.25, 0.5), wanted, strict=True):
                np.testing.assert_array_equal(thin(nms / 255 >= threshold), mask)


@settings(max_examples=150)
@given(mask_HW=masks)
def test_thinning_equals_another_implementation(mask_HW: NDArray[np.bool_]) -> None:
    np.testing.assert_array_equal(thin(mask_HW), skimage_thin(mask_HW))


@settings(max_examples=60)
@given(mask_HW=masks)
def test_thinning_keeps_every_component_and_thins_no_further(mask_HW: NDArray[np.bool_]) -> None:
    thinned_HW = thin(mask_HW)
    assert not (thinned_HW & ~mask_HW).any()
    assert components(thinned_HW, connectivity=2).max() == components(mask_HW, connectivity=2).max()
    np.testing.assert_array_equal(thin(thinned_HW), thinned_HW)


@settings(max_examples=30)
@given(mask_HW=masks)
def test_flat_indices_are_the_same_pixels(mask_HW: NDArray[np.bool_]) -> None:
    pixels = thin_pixels(np.flatnonzero(mask_HW), shape=mask_HW.shape)
    np.testing.assert_array_equal(pixels, np.flatnonzero(thin(mask_HW)))


@settings(max_examples=60)
@given(labels_HW=arrays(np.uint16, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 3)))
def test_boundaries_of_a_turned_map_are_turned(labels_HW: NDArray[np.uint16]) -> None:
    found = boundary_pixels(labels_HW)
    np.testing.assert_array_equal(boundary_pixels(labels_HW.T), found.T)
    assert not found[-1, -1]
    assert found.any() == (len(np.unique(labels_HW)) > 1)


def test_a_boundary_is_the_upper_left_side_of_a_change() -> None:
    labels_HW = np.zeros((4, 5), dtype=np.uint8)
    labels_HW[2, 2] = 1
    wanted = np.zeros((4, 5), dtype=bool)
    wanted[1:3, 1:3] = True
    np.testing.assert_array_equal(boundary_pixels(labels_HW), wanted)
