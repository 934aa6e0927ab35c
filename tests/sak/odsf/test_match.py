"""Matching finds as many pairs as there can be, whatever it was asked before, and as the published cost does."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from sak.odsf.match import Matcher

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "boundary_golden.npz"

Mask = NDArray[np.bool_]


def distances(predicted: Mask, true: Mask, *, max_dist: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """Squared distance of every pair, and whether it may match; written apart from the code under test."""
    p, g = np.argwhere(predicted), np.argwhere(true)
    squares = ((p[:, None] - g[None]) ** 2).sum(-1)
    return squares, squares <= max_dist**2 * (true.shape[0] ** 2 + true.shape[1] ** 2)


def most_pairs(allowed: NDArray[np.bool_]) -> int:
    """Largest one-to-one matching by trying augmenting paths, one predicted pixel after another."""
    mate: dict[int, int] = {}

    def augment(row: int, seen: set[int]) -> bool:
        for column in map(int, np.flatnonzero(allowed[row])):
            if column not in seen:
                seen.add(column)
                if column not in mate or augment(mate[column], seen):
                    mate[column] = row
                    return True
        return False

    return sum(augment(row, set()) for row in range(len(allowed)))


def pairs_at_least_cost(predicted: Mask, true: Mask, *, max_dist: float) -> int:
    """Pairs of the published cost: distances plus an outlier cost of 100 tolerances for every pixel left over."""
    squares, allowed = distances(predicted, true, max_dist=max_dist)
    allowed_rows, allowed_columns = allowed.any(1), allowed.any(0)
    squares, allowed = squares[allowed_rows][:, allowed_columns], allowed[allowed_rows][:, allowed_columns]
    n, m = allowed.shape
    if not n:
        return 0
    outlier = math.ceil(100 * 100 * max_dist * math.hypot(*true.shape))
    i, j = np.nonzero(allowed)
    rows = np.concatenate([i, np.arange(n), n + np.arange(m), n + j])
    columns = np.concatenate([j, m + np.arange(n), np.arange(m), m + i])
    costs = np.concatenate([np.rint(100 * np.sqrt(squares[i, j])), np.full(n + m, outlier), np.full(len(i), outlier)])
    graph = coo_array((costs + 1, (rows, columns)), shape=(n + m, n + m)).tocsr()
    chosen_rows, chosen_columns = min_weight_full_bipartite_matching(graph)
    return int(((chosen_rows < n) & (chosen_columns < m)).sum())


@settings(max_examples=80)
@given(data=st.data())
def test_as_many_pairs_as_there_can_be_in_one_call_after_another(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    true = data.draw(arrays(np.bool_, shape))
    max_dist = data.draw(st.sampled_from([0.05, 0.1, 0.2, 0.4]))
    matcher = Matcher(true, max_dist=max_dist)
    for _ in range(3):  # the second and third begin with pairs of the one before
        predicted = data.draw(arrays(np.bool_, shape))
        wanted = most_pairs(distances(predicted, true, max_dist=max_dist)[1])
        assert matcher.count(np.flatnonzero(predicted)) == wanted


@settings(max_examples=40)
@given(data=st.data())
def test_turned_and_mirrored_masks_and_exchanged_sides_match_alike(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(2, 12), st.integers(2, 12)))
    predicted, true = data.draw(arrays(np.bool_, shape)), data.draw(arrays(np.bool_, shape))
    wanted = Matcher(true, max_dist=0.15).count(np.flatnonzero(predicted))
    assert Matcher(predicted, max_dist=0.15).count(np.flatnonzero(true)) == wanted
    for moved in (np.transpose, np.flipud, np.fliplr):
        other = np.ascontiguousarray(moved(predicted))
        assert Matcher(np.ascontiguousarray(moved(true)), max_dist=0.15).count(np.flatnonzero(other)) == wanted


def test_a_mask_matches_itself_whole_and_none_matches_nothing() -> None:
    mask = np.random.default_rng(0).random((40, 50)) < 0.2
    matcher = Matcher(mask, max_dist=0.02)
    assert matcher.count(np.flatnonzero(mask)) == mask.sum()
    assert matcher.count(np.array([], dtype=np.int64)) == 0
    assert matcher.count(np.flatnonzero(mask)) == mask.sum()
    assert Matcher(np.zeros_like(mask), max_dist=0.02).count(np.flatnonzero(mask)) == 0


@pytest.fixture(scope="module")
def golden() -> dict[str, NDArray[Any]]:
    with np.load(GOLDEN, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


@pytest.mark.parametrize("pair", [0, 1, 5, 7])
def test_on_boundaries_the_least_cost_has_as_many_pairs(golden: dict[str, NDArray[Any]], pair: int) -> None:
    true = golden[f"p{pair:02d}_bdry"]
    for predicted in golden[f"p{pair:02d}_thinned"]:
        matcher = Matcher(true, max_dist=0.03)
        assert matcher.count(np.flatnonzero(predicted)) == pairs_at_least_cost(predicted, true, max_dist=0.03)


def test_a_line_shifted_along_itself_is_where_they_differ(golden: dict[str, NDArray[Any]]) -> None:
    predicted, true, max_dist = golden["line_pred"], golden["line_gt"], float(golden["line_max_dist"])
    assert Matcher(true, max_dist=max_dist).count(np.flatnonzero(predicted)) == golden["line_maxcard"] == 117
    assert pairs_at_least_cost(predicted, true, max_dist=max_dist) == golden["line_mincost"] == 116
