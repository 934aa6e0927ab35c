"""View sets that are drawn as they are read: a new view of every image in every epoch, none of them stored.

Their rows are those of a stored view set with a view for each epoch, to the last pixel: the loader's order, a resumed
run and a store that holds these views all mean the same by a row.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.config import DataConfig, DistillConfig, Study
from pipeline.images.sample import ImageSample
from pipeline.pixels import decode_sample, pick_labels
from pipeline.views import ViewDraw, ViewSpec, apply_view, draw_view
from pipeline.viewsets import cached_source, complete_views, draw_sample, view_set_spec
from store.order import row_samples
from store.spec import ViewSetSpec
from store.viewset import ViewSet

__all__ = ["CroppedViews", "FreshViews", "LiveViews", "labelled_views", "seen_views"]


class FreshViews:
    """Views drawn from the images themselves.

    Args:
        data: What would be stored, as for extraction.
        epochs: How many views there are to draw of each image.
        labels: Whether labels are moved along with the images.
    """

    def __init__(self, data: DataConfig, *, epochs: int, labels: bool = False) -> None:
        self._data = data
        self.spec = view_set_spec(data, labels=labels).with_views(epochs)

    @property
    def name(self) -> str:
        """That of the view set that would hold these views."""
        return self.spec.name

    def unusable_rows(self) -> NDArray[np.int64]:
        """None: that an image cannot be used shows when it is read. Shape ``(0,)``."""
        return np.empty(0, dtype=np.int64)

    def load(self, rows: Sequence[int], /, *, tasks: Sequence[str] = ()) -> list[ImageSample]:
        """Draw rows, in the order asked for, with the labels of these tasks.

        Raises:
            BadImageError: An image cannot be decoded.
        """
        where = row_samples(self.spec, rows=list(rows))
        pairs = zip(where.image.tolist(), where.view.tolist(), strict=True)
        drawn = [draw_sample(self._data, self.spec, image=image, view=view).sample for image, view in pairs]
        return [pick_labels(sample, tasks=tasks) for sample in drawn]


class CroppedViews:
    """Crops of stored views: in epoch ``e`` those of view ``e`` of the store, or of ``e % K`` where it has K.

    Args:
        stored: Complete view set.
        crops: How to crop, scale and mirror its images.
        epochs: How many crops there are to draw of each image.
    """

    def __init__(self, stored: ViewSet, crops: ViewSpec, *, epochs: int) -> None:
        self._stored, self._crops = stored, crops
        size = {"size": list(crops.size)}  # what a student is built for
        self.spec: ViewSetSpec = dataclasses.replace(stored.spec, views=epochs, view={**stored.spec.view, **size})

    @property
    def name(self) -> str:
        """That of the stored view set."""
        return self._stored.name

    def unusable_rows(self) -> NDArray[np.int64]:
        """Rows whose stored view has no image, ascending; shape ``(rows,)``."""
        stored_N, period = self._stored.unusable_rows(), self._stored.spec.rows
        rows_N = np.concatenate([stored_N + first for first in range(0, self.spec.rows, period)])
        return rows_N[rows_N < self.spec.rows]

    def stored_rows(self, rows: Sequence[int] | NDArray[np.int64], /) -> NDArray[np.int64]:
        """Row of the stored view set that each row is a crop of."""
        return np.asarray(rows, dtype=np.int64) % self._stored.spec.rows

    def stored_parts(self, parts: Sequence[int], /) -> list[int]:
        """Parts of the stored view set that these parts are crops of, each once."""
        return list(dict.fromkeys(part % self._stored.spec.parts for part in parts))

    def draws(self, rows: Sequence[int] | NDArray[np.int64], /) -> list[ViewDraw]:
        """What is cut from each row's stored view; reads the index and no image."""
        height, width = self._stored.spec.view["size"]
        blank = np.broadcast_to(np.uint8(0), (height, width, 3))
        stored = self.stored_rows(rows).tolist()
        parts = self._stored.spec.parts_of(stored).tolist()
        keys = [self._key(part, row) for part, row in zip(parts, stored, strict=True)]
        return [self._draw(row, ImageSample(key=key, image=blank)) for row, key in zip(rows, keys, strict=True)]

    def load(self, rows: Sequence[int], /) -> list[ImageSample]:
        """Cut rows from their stored views, in the order asked for.

        Raises:
            StoreError: A stored row is not as it was committed.
        """
        found = self._stored.read_rows(self.stored_rows(rows))
        whole = [decode_sample(row.files, key=row.key, tasks=()) for row in found]
        return [apply_view(self._draw(row, sample), sample) for row, sample in zip(rows, whole, strict=True)]

    def _key(self, part: int, row: int) -> str:
        return self._stored.index(part)[row - self._stored.spec.part_rows(part).start].key

    def _draw(self, row: int, sample: ImageSample) -> ViewDraw:
        epoch = int(row) // self.spec.images
        return draw_view(self._crops, seed=self.spec.seed, key=sample.key, view=epoch, sample=sample)


LiveViews = FreshViews | CroppedViews


def seen_views(
    config: DistillConfig, data: DataConfig, stored: ViewSet | None, /, *, steps: int
) -> ViewSet | LiveViews:
    """What a student sees in stage 1: stored views, crops of them, or new views of the images where none are stored."""
    if stored is not None and not isinstance(config.crops, ViewSpec):
        return stored
    usable = len(cached_source(data.source).keys())
    if stored is not None:
        lost = np.bincount(stored.unusable_rows() // stored.spec.images, minlength=stored.spec.views)
        usable = stored.spec.images - int(lost.max())
    epochs = _epochs(steps, images=usable, batch=config.batch)
    if stored is None:
        return FreshViews(data, epochs=epochs)
    assert isinstance(config.crops, ViewSpec)
    return CroppedViews(stored, config.crops, epochs=epochs)


def labelled_views(study: Study, /, *, steps: int) -> ViewSet | FreshViews:
    """What a student sees in stage 2: stored views, or new ones of the images in every epoch.

    Raises:
        MissingColumnError, NotDoneError: As ``complete_views``.
    """
    config, data = study.finetune, study.data.finetune
    assert config is not None
    assert data is not None
    if config.crops is None:
        return complete_views(study, data, labels=True)
    images = len(cached_source(data.source).keys())
    return FreshViews(data, epochs=_epochs(steps, images=images, batch=config.batch), labels=True)


def _epochs(steps: int, *, images: int, batch: int) -> int:
    """Epochs that these steps begin; the loader leaves out an epoch's last, short batch."""
    return math.ceil(steps / max(images // batch, 1))
