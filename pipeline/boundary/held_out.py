"""Boundary counts of a student on a view set, made beside its forward passes.

A view of kind ``padded`` is scored without its padding, as published. Any other kind is scored as it is, at the view's
size, which is another number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pipeline.boundary.counting import Counters, MapJob, Outcome
from pipeline.boundary.counts import Counted, CountTable, Rules
from pipeline.config import DataConfig
from pipeline.distributed import ALONE, Ranks
from pipeline.images.sample import HasRegions, ImageSample
from pipeline.transforms import IGNORE
from pipeline.views import ViewDraw, apply_view
from pipeline.viewsets import cached_source, view_size
from sak.boundary import MAX_DIST
from store.order import row_samples
from store.rows import IndexRow
from store.viewset import ViewSet
from store.workers import processors

__all__ = ["HeldOut", "rules_of"]

_FEW_PIXELS = 20_000_000  # about half a minute of work: less is done before processes have started


def rules_of(metric: str, dataset: str, /) -> Rules:
    """What ``odsF`` (protocol sak) or ``odsF-PROTOCOL`` means on a data set."""
    return Rules(metric.removeprefix("odsF").removeprefix("-") or "sak", MAX_DIST[dataset])


class HeldOut:
    """Collects counts of a view set's rows; a context that ends its processes.

    Where the source has a region map of each image (PASCAL-Context), its boundaries are the truth, as published: they
    are moved by the row's own draw. Elsewhere the stored boundary label is.
    """

    def __init__(
        self, view_set: ViewSet, data: DataConfig, /, *, rules: Rules, own_size: bool = False, ranks: Ranks = ALONE
    ) -> None:
        """Open the source.

        Args:
            own_size: Whether what is added is at the images' own size, not moved as the rows' views are.
            ranks: Those that count rows beside this one, each its own.
        """
        source = cached_source(data.source)
        self._view_set, self._rules = view_set, rules
        self._regions = source if isinstance(source, HasRegions) else None
        height, width = view_size(view_set.spec)
        cores = max(1, processors() // ranks.beside)
        pixels = view_set.spec.rows * height * width // ranks.world
        self._own_size = own_size
        self._counters = Counters(workers=cores if pixels > _FEW_PIXELS else 1)
        self._outcomes: list[Outcome] = []

    @property
    def about(self) -> Mapping[str, object]:
        """What a record says of the numbers: rules, truth and view."""
        truth = "region maps of the source" if self._regions else "stored boundary labels"
        view = "own-size" if self._own_size else self._view_set.spec.view["kind"]
        return {**self._rules._asdict(), "truth": truth, "view": view}

    def __enter__(self) -> Self:
        self._counters.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._counters.__exit__(kind, error, trace)

    def add(
        self, rows: Sequence[int], /, *, prediction_BHW: NDArray[np.uint8], labels_BHW: NDArray[np.generic]
    ) -> None:
        """Count rows; what has no labelled pixel at all counts nothing.

        Shapes:
            prediction_BHW: ``uint8(255 sigmoid(logit))``, truncated.
            labels_BHW: 1 boundary, 0 none, 255 padding.
        """
        for row, prediction_HW, label_HW in zip(rows, prediction_BHW, labels_BHW, strict=True):
            inside = _box(label_HW != IGNORE)
            truth_HW = self._truth(row) if self._regions else label_HW == 1
            cut = np.ascontiguousarray(truth_HW[inside])
            if min(cut.shape) > 1:
                job = MapJob(self._rules, self._key(row), np.ascontiguousarray(prediction_HW[inside]), cut)
                self._counters.add(job)
        self._outcomes += self._counters.done(all_of_them=False)

    def table(self) -> CountTable:
        """Counts of every row that was added."""
        self._outcomes += self._counters.done(all_of_them=True)
        return CountTable(self._rules, {image.key: image for image in self._outcomes if isinstance(image, Counted)})

    def _key(self, row: int) -> str:
        """The sample's key, and the view's number where there are several."""
        spec = self._view_set.spec
        entry = self._index(row)
        return entry.key if spec.views == 1 else f"{entry.key}#{entry.view}"

    def _index(self, row: int) -> IndexRow:
        spec = self._view_set.spec
        part = int(spec.parts_of([row])[0])
        return self._view_set.index(part)[row - spec.part_rows(part)[0]]

    def _truth(self, row: int) -> NDArray[np.generic]:
        assert self._regions is not None
        (image,) = row_samples(self._view_set.spec, rows=[row]).image.tolist()
        regions_HW = self._regions.regions(image)
        if self._own_size:
            return regions_HW
        draw = ViewDraw.from_dict(self._index(row).draw)
        # Under a class map's name, because that is how it moves: to the nearest pixel.
        blank = np.zeros((*regions_HW.shape, 3), dtype=np.uint8)
        sample = ImageSample(key=str(row), image=blank, labels={"semseg": regions_HW})
        return apply_view(draw, sample).labels["semseg"]


def _box(mask_HW: NDArray[np.bool_]) -> tuple[slice, slice]:
    """The smallest box around what is set."""
    spans = []
    for axis in (1, 0):
        found = np.flatnonzero(mask_HW.any(axis=axis))
        spans.append(slice(int(found[0]), int(found[-1]) + 1) if len(found) else slice(0))
    return spans[0], spans[1]
