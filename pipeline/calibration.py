"""Fitting codecs to a sample of rows, once, before their column is made.

The sample is the first usable rows of a view set's first view: they are there however many views are asked for, so no
codec depends on that. Rows are a pseudo-random permutation of the images, fixed by the view set's own seed, so the
first ones are a random sample, and the same one in every process.

A pass adds up the sample in shares of consecutive batches, which depend on the sample alone, and merges the sums of
the shares in the order of the rows. So the codec is the same to the bit whether one process takes all shares or many
take some, and whoever is done first: workers of ``pipeline.cluster`` share a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.maps import MapSource
from pipeline.tracking import ShowStep, progress_step
from store.codecs.base import Codec, Fitter, LevelSpec
from store.codecs.registry import CodecChoice, choose_codec, is_fitted, make_fitter
from store.viewset import ViewSet

__all__ = ["KEEP_BYTES", "Replay", "column_codec", "fit_codecs", "in_batches", "sample_rows", "share_sums", "shares"]

KEEP_BYTES = 1 << 30
"""Most bytes of features that are kept between passes over a sample; the rest is computed again in each."""

_MOST_SHARES = 64
"""Sums of a share take tens of megabytes; up to so many workers, more than fit a codec in any hurry, get some each."""


class Replay:
    """Batches of maps that can be gone through again; those that fit are kept where they are, the rest made anew.

    Args:
        count: How many batches.
        make: A batch by its number: for each level ``(N, C, H, W)``. It must give equal maps each time.
        keep_bytes: Most bytes to keep.
    """

    def __init__(self, count: int, *, make: Callable[[int], Sequence[Tensor]], keep_bytes: int = KEEP_BYTES) -> None:
        self._count, self._make, self._left = count, make, keep_bytes
        self._kept: dict[int, Sequence[Tensor]] = {}

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Sequence[Tensor]]:
        return (self[index] for index in range(self._count))

    def forget(self, indices: Iterable[int], /) -> None:
        """Keep these batches no longer."""
        for index in indices:
            self._kept.pop(index, None)

    def __getitem__(self, index: int, /) -> Sequence[Tensor]:
        if not 0 <= index < self._count:
            raise IndexError(index)
        if index in self._kept:
            return self._kept[index]
        feats = self._make(index)
        size = sum(feat.nbytes for feat in feats)
        if size <= self._left:
            self._left -= size
            self._kept[index] = feats
        return feats


def in_batches(rows: Sequence[int], batch: int, /) -> list[Sequence[int]]:
    """Rows in consecutive batches, the last one possibly short."""
    return [rows[first : first + batch] for first in range(0, len(rows), batch)]


def shares(count: int, /) -> list[range]:
    """Batches of a sample in shares whose sums are taken on their own, as many as there may be and about equal.

    Nothing but the number of batches decides them: float sums depend on how terms are grouped.
    """
    size = max(1, -(-count // _MOST_SHARES))
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


def share_sums(
    fitter: Fitter, batches: Replay | Sequence[Sequence[Tensor]], share: range, /
) -> Mapping[str, NDArray[np.float64]]:
    """What a share of the batches adds to the pass that a fitter is in; the fitter itself is left as it is.

    Args:
        batches: No more rows than the fitter wants.

    Raises:
        StoreError: The sample is not finite.
    """
    part = fitter.part()
    for index in share:
        part.add(batches[index])
    return part.sums


def fit_codecs(
    fitters: Sequence[Fitter], batches: Replay | Sequence[Sequence[Tensor]], /, *, done: Callable[[int], object]
) -> list[Codec]:
    """Show one sample to several fitters at once, each its own number of rows and passes.

    Args:
        batches: Gone through as often as the most passes that a fitter wants.
        done: Told the rows of every batch shown.

    Raises:
        StoreError: The sample is empty or not finite.
    """
    for number in range(max(fitter.passes for fitter in fitters)):
        active = [fitter for fitter in fitters if number < fitter.passes]
        shown = 0
        for share in shares(len(batches)):
            parts = [(fitter, fitter.part()) for fitter in active if shown < fitter.rows]
            for index in share:
                feats = batches[index]
                for fitter, part in parts:
                    if shown < fitter.rows:
                        part.add([feat[: fitter.rows - shown] for feat in feats])
                shown += len(feats[0])
                done(len(feats[0]))
            for fitter, part in parts:
                fitter.merge(part.sums)
        for fitter in active:
            fitter.end_pass()
    return [fitter.codec() for fitter in fitters]


def sample_rows(view_set: ViewSet, count: int, /) -> list[int]:
    """The rows that a codec is fitted to: the first usable ones of the first view, at most so many."""
    usable_N = view_set.usable_rows()
    rows: list[int] = usable_N[usable_N < view_set.spec.images][:count].tolist()
    return rows


def column_codec(
    choice: CodecChoice,
    /,
    *,
    source: MapSource,
    view_set: ViewSet,
    levels: Sequence[LevelSpec],
    batch: int,
    show: ShowStep = progress_step,
) -> Codec:
    """The codec of a new column: as chosen, or fitted to the teacher's maps of the first view's first usable rows.

    Args:
        show: How the progress of a fit is shown.

    Raises:
        FormatError: The choice is refused.
        StoreError: No row of the first view is usable, or a map is not finite.
    """
    if not is_fitted(choice):
        return choose_codec(choice)
    fitter = make_fitter(choice, levels)
    chunks = in_batches(sample_rows(view_set, fitter.rows), batch)
    sample = Replay(len(chunks), make=lambda index: source.sample(view_set, chunks[index]))
    total = fitter.passes * sum(map(len, chunks))
    with show(f"fit codec of {source.spec.name}", total=total, unit="rows") as advance:
        (codec,) = fit_codecs([fitter], sample, done=advance)
    return codec
