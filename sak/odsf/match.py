"""One-to-one matching of predicted to true boundary pixels within a distance: as many pairs as there can be.

Legend: H, W image rows and columns; P predicted pixels, G true pixels, E candidate pairs.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow

__all__ = ["Matcher"]

Mask = NDArray[np.bool_]
Pixels = NDArray[np.int64]

_FREE = -1


class Matcher:
    """Counts pairs of true boundary pixels with one set of predicted pixels after another.

    Args:
        edges_HW: The true boundary.
        max_dist: Longest distance of a pair, as a share of the image's diagonal.

    Shapes:
        edges_HW: ``(H, W)``.
    """

    def __init__(self, edges_HW: Mask, *, max_dist: float) -> None:
        height, width = edges_HW.shape
        reach = max_dist * math.sqrt(height**2 + width**2)
        span = math.floor(reach)
        dy, dx = np.mgrid[-span : span + 1, -span : span + 1].reshape(2, -1)
        close = dy * dy + dx * dx <= reach * reach
        rows, columns = np.nonzero(edges_HW)
        y, x = rows[:, None] + dy[close], columns[:, None] + dx[close]
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        owner = np.broadcast_to(np.arange(len(rows))[:, None], y.shape)[inside]
        pairs = (np.ones(len(owner), dtype=np.int8), ((y * width + x)[inside], owner))
        self._candidates = csr_array(pairs, shape=(height * width, len(rows)))
        self._mate_G = np.full(len(rows), _FREE)

    def count(self, pixels_P: Pixels, /) -> int:
        """Most pairs of these pixels with true ones.

        The pairs of the last call that still exist are where this one begins: the sets of two neighbouring thresholds
        differ in few pixels, and the largest number of pairs does not depend on the beginning.

        Shapes:
            pixels_P: flat indices ``(P,)``, each once.
        """
        starts = self._candidates.indptr
        pixels_P = pixels_P[starts[pixels_P + 1] > starts[pixels_P]]
        slot = np.full(self._candidates.shape[0], _FREE)
        slot[pixels_P] = np.arange(len(pixels_P))
        mate_G = np.where(self._mate_G == _FREE, _FREE, slot[self._mate_G])
        near = self._candidates[pixels_P]
        _pair_greedily(near, mate_G)
        _pair_the_rest(near, mate_G)
        self._mate_G = np.where(mate_G == _FREE, _FREE, pixels_P[mate_G]) if len(pixels_P) else mate_G
        return int((mate_G != _FREE).sum())


def _pair_greedily(near: csr_array, mate_G: Pixels) -> None:
    """Pair free predicted pixels with free true ones, as far as that goes without changing a pair."""
    free_P = _free(mate_G, near.shape[0])
    while len(free_P):
        rows = near[free_P]
        owner, true = np.repeat(free_P, np.diff(rows.indptr)), rows.indices
        open_E = mate_G[true] == _FREE
        owner, first = np.unique(owner[open_E], return_index=True)
        chosen, one = np.unique(true[open_E][first], return_index=True)
        mate_G[chosen] = owner[one]
        free_P = np.delete(owner, one)


def _pair_the_rest(near: csr_array, mate_G: Pixels) -> None:
    """Pair as many more as there can be, by a maximum flow through what the pairs leave open.

    Source → free predicted → true → its mate, or the sink where it is free; the flow's paths change pairs on their way.
    """
    P, G = near.shape
    free_P = _free(mate_G, P)
    if not len(free_P) or not (mate_G == _FREE).any():
        return
    sink = P + G + 1
    indices = np.concatenate([1 + free_P, 1 + P + near.indices, np.where(mate_G == _FREE, sink, 1 + mate_G)])
    lengths = np.concatenate([[0, len(free_P)], np.diff(near.indptr), np.ones(G, dtype=np.int64), [0]])
    capacity = np.ones(len(indices), dtype=np.int32)
    ends = np.cumsum(lengths)
    network = csr_array((capacity, indices.astype(np.int32), ends.astype(np.int32)), shape=(sink + 1, sink + 1))
    flow = maximum_flow(network, 0, sink, method="dinic").flow
    chosen = flow[1 : 1 + P].tocoo()
    new = chosen.data > 0
    mate_G[chosen.col[new] - 1 - P] = chosen.row[new]


def _free(mate_G: Pixels, count: int) -> Pixels:
    return np.setdiff1d(np.arange(count), mate_G, assume_unique=True)
