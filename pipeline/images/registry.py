"""Table of image sources by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import DataError
from pipeline.images import imagefolder, nyud, pascal_context
from pipeline.images.imagefolder import ImageFolder
from pipeline.images.nyud import Nyud
from pipeline.images.pascal_context import PascalContext
from pipeline.images.sample import ImageSource
from pipeline.images.scenes import SceneSource

__all__ = ["SOURCES", "SourceRequest", "open_source"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRequest:
    """What a recipe says about a source; ``size`` is for rendered sources, ``root`` for those on disk."""

    name: str
    root: Path | None
    split: str
    size: tuple[int, int] | None
    images: int | None
    seed: int

    def folder(self, layout: str) -> Path:
        """The data folder of a source that reads from disk.

        Raises:
            DataError: No folder given, or a size, which only rendered sources take.
        """
        if self.root is None:
            raise DataError(f"{self.name}: needs a data folder (root); expected {layout}")
        if self.size is not None:
            raise DataError(f"{self.name}: images on disk have their own size; leave size out and set the view's size")
        return self.root


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


def _pascalcontext(request: SourceRequest) -> ImageSource:
    root = request.folder(pascal_context.LAYOUT)
    return PascalContext(root, split=request.split, images=request.images, seed=request.seed)


def _nyud(request: SourceRequest) -> ImageSource:
    return Nyud(request.folder(nyud.LAYOUT), split=request.split, images=request.images, seed=request.seed)


SOURCES: dict[str, Callable[[SourceRequest], ImageSource]] = {
    "imagefolder": _imagefolder,
    "nyud": _nyud,
    "pascalcontext": _pascalcontext,
    "scenes": _scenes,
    "scenes_night": _scenes_night,
}


def open_source(
    name: str, *, root: str | None, split: str, size: tuple[int, int] | None, images: int | None, seed: int
) -> ImageSource:
    """Open an image source by name.

    Args:
        name: A key of ``SOURCES``.
        root: Data folder, for sources on disk.
        split: ``train``, ``val``, and for scenes ``unlabeled``; for photographs also ``all``.
        size: Height and width, for rendered sources.
        images: How many; on disk a seeded random choice, ``None`` for all.
        seed: Selects the scenes, or the choice of images.

    Raises:
        DataError: Unknown name or split, missing folder, or arguments that the source does not take.
    """
    if name not in SOURCES:
        raise DataError(f"unknown image source {name!r}; choose one of {', '.join(SOURCES)}")
    folder = None if root is None else Path(root).expanduser()
    return SOURCES[name](SourceRequest(name=name, root=folder, split=split, size=size, images=images, seed=seed))
