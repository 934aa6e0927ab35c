"""One tar of photographs: ImageNet's ``train.tar``, or its tar of one tar a class, read in place."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from posixpath import basename, splitext

from pipeline.images.files import SPLITS, SUFFIXES, choose_split
from pipeline.images.indices import Keys
from pipeline.images.packed import Entry, PackedImages, index_tars
from pipeline.images.ranges import open_range
from pipeline.images.sample import ImageSample, Unlabelled
from pipeline.images.tarscan import Member

__all__ = ["LAYOUT", "TarImages"]

LAYOUT = (
    "one uncompressed tar, a path or an http(s):// or s3:// address, of .jpg, .jpeg, .png or .webp files, in folders or"
    " not, optionally below train/ and val/, or of tars of these"
)


class TarImages(Unlabelled):
    """Photographs in a tar, as ``imagefolder`` would find them had it been unpacked: the same keys and labels.

    The headers are read once, to an index in the cache folder (``SAK_CACHE``).
    """

    def __init__(self, root: str, *, split: str = "all", images: int | None = None, seed: int = 0) -> None:
        """Find the images; none is decoded yet.

        Raises:
            DataError: No such file or split, a damaged or compressed tar, a link in it, or two images with one key.
            UnreachableError: The network fails.
        """
        file = open_range(root)
        rows = index_tars([file], kind="tar", entries=_images, nested=True)
        keys = Keys(rows["key"])
        ranges = {name: _below(keys, name) for name in SPLITS}
        folder = choose_split(split, present=[name for name, found in ranges.items() if found], where=root)
        chosen = ranges[folder] if folder else range(len(keys))
        everything = PackedImages(
            "tar", files=[file], rows=rows.slice(chosen.start, len(chosen)), skip=len(folder) + 1 if folder else 0
        )
        self._all = everything.keys
        self._images = everything.subset(images=images, seed=seed, where=f"{root} ({split})")

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the first-level folders, in label order."""
        return tuple(sorted({key.split("/", 1)[0] for key in self._all if "/" in key}))

    @cached_property
    def _labels(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.classes)}

    def fingerprint(self) -> str:
        """Digest of all keys, and of each file's size and last bytes; reads the index alone."""
        return self._images.digest

    def keys(self) -> Sequence[str]:
        """Paths in the tar without suffix."""
        return self._images.keys

    def read(self, index: int, /, *, labels: bool = True) -> ImageSample:
        """Decode one photograph.

        Raises:
            BadImageError: It cannot be decoded; the message names it.
            DataError: The tar has changed, or cannot be read.
            UnreachableError: The network fails.
        """
        label = self._labels.get(self._images.keys[index].split("/")[0]) if labels else None
        return self._images.read(index, label=label)


def _below(keys: Sequence[str], folder: str) -> range:
    """Positions of the sorted keys below a folder; ``0`` follows ``/``."""
    return range(bisect_left(keys, f"{folder}/"), bisect_left(keys, f"{folder}0"))


def _images(members: Iterable[Member]) -> Iterator[Entry]:
    for member in members:
        key, suffix = splitext(member.name)
        if suffix.lower() in SUFFIXES and not basename(key).startswith("."):
            yield key, suffix, member.offset, member.size, member.tail
