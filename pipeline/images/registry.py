"""Table of image sources by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import DataError
from pipeline.images import imagefolder, parquet, tar, webdataset
from pipeline.images.cityscapes import Cityscapes
from pipeline.images.imagefolder import ImageFolder
from pipeline.images.labelled import LabelledFolder
from pipeline.images.nyud import Nyud
from pipeline.images.parquet import ParquetImages
from pipeline.images.pascal_context import PascalContext
from pipeline.images.sample import ImageSource
from pipeline.images.scenes import SceneSource
from pipeline.images.tar import TarImages
from pipeline.images.webdataset import WebDatasetImages

__all__ = ["LABELLED", "SOURCES", "SourceRequest", "open_source"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRequest:
    """What a recipe says about a source; see ``pipeline.config.SourceConfig``."""

    name: str
    root: str | None
    split: str
    size: tuple[int, int] | None
    images: int | None
    seed: int
    key: str | None = None

    def place(self, layout: str) -> str:
        """Where the images of a source are that does not render them.

        Raises:
            DataError: No place given, or a size, which only rendered sources take.
        """
        if self.root is None:
            raise DataError(f"{self.name}: needs a data folder (root); expected {layout}")
        if self.size is not None:
            raise DataError(f"{self.name}: images on disk have their own size; leave size out and set the view's size")
        return os.path.expanduser(self.root)

    def folder(self, layout: str) -> Path:
        """``place``, as a folder.

        Raises:
            DataError: As ``place``.
        """
        return Path(self.place(layout))


def _scenes(request: SourceRequest, *, style: str = "default") -> ImageSource:
    if request.root is not None:
        raise DataError(f"{request.name}: is rendered, not read; leave root out")
    if request.size is None or request.images is None:
        raise DataError(f"{request.name}: needs size (height, width) and images (how many scenes)")
    return SceneSource(split=request.split, size=request.size, images=request.images, seed=request.seed, style=style)


def _scenes_night(request: SourceRequest) -> ImageSource:
    return _scenes(request, style="night")


def _imagefolder(request: SourceRequest) -> ImageSource:
    root = request.folder(imagefolder.LAYOUT)
    return ImageFolder(root, split=request.split, images=request.images, seed=request.seed)


def _labelled(kind: type[LabelledFolder]) -> Callable[[SourceRequest], ImageSource]:
    return lambda request: kind(
        request.folder(kind.layout), split=request.split, images=request.images, seed=request.seed
    )


def _tar(request: SourceRequest) -> ImageSource:
    root = request.place(tar.LAYOUT)
    return TarImages(root, split=request.split, images=request.images, seed=request.seed)


def _webdataset(request: SourceRequest) -> ImageSource:
    root = request.place(webdataset.LAYOUT)
    return WebDatasetImages(root, split=request.split, images=request.images, seed=request.seed)


def _parquet(request: SourceRequest) -> ImageSource:
    root = request.place(parquet.LAYOUT)
    return ParquetImages(root, split=request.split, images=request.images, seed=request.seed, key=request.key)


LABELLED: dict[str, type[LabelledFolder]] = {
    "cityscapes": Cityscapes,
    "nyud": Nyud,
    "pascalcontext": PascalContext,
}
"""Data sets with labels, in a folder."""

SOURCES: dict[str, Callable[[SourceRequest], ImageSource]] = {
    **{name: _labelled(kind) for name, kind in LABELLED.items()},
    "imagefolder": _imagefolder,
    "parquet": _parquet,
    "scenes": _scenes,
    "scenes_night": _scenes_night,
    "tar": _tar,
    "webdataset": _webdataset,
}


def open_source(request: SourceRequest, /) -> ImageSource:
    """Open an image source by name.

    Raises:
        DataError: Unknown name or split, missing folder, or arguments that the source does not take.
        UnreachableError: It is remote, and the network fails.
    """
    if request.name not in SOURCES:
        raise DataError(f"unknown image source {request.name!r}; choose one of {', '.join(SOURCES)}")
    if request.key is not None and request.name != "parquet":
        raise DataError(f"{request.name}: names its images itself; leave key out")
    return SOURCES[request.name](request)
