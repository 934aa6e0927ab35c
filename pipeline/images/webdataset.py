"""WebDataset shards: tars of samples, local or remote, each sample the files that share a name up to its first dot.

Only images are read, so nothing in a shard is unpickled, whatever it holds, and no program is started for a shard.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from posixpath import join, split

from pipeline.errors import DataError
from pipeline.images.files import SUFFIXES
from pipeline.images.packed import NO_IMAGE, Entry, PackedImages, index_tars
from pipeline.images.ranges import is_remote, open_range
from pipeline.images.sample import ImageSample, Unlabelled
from pipeline.images.shards import expand
from pipeline.images.tarscan import Member

__all__ = ["LAYOUT", "WebDatasetImages"]

LAYOUT = (
    "WebDataset shards: a folder, paths with {000..146} or *, or http(s):// or s3:// addresses, of plain .tar files;"
    " {split} in it stands for the split, as train and val"
)
_THREADS = 16


class WebDatasetImages(Unlabelled):
    """Images of shards. A sample's key does not depend on the shard that it is in, and must be unique among all.

    The headers are read once, to indices in the cache folder (``SAK_CACHE``); images are then read in any order.
    """

    def __init__(self, root: str, *, split: str = "all", images: int | None = None, seed: int = 0) -> None:
        """Find the samples; nothing is decoded yet.

        Raises:
            DataError: No such shard or split, a damaged or compressed shard, or two samples with one key.
            UnreachableError: The network fails.
        """
        names = expand(root, split=split, suffix=".tar")
        with ThreadPoolExecutor(min(_THREADS, len(names)) if is_remote(names[0]) else 1) as pool:
            files = list(pool.map(open_range, names))
        rows = index_tars(files, kind="webdataset", entries=_samples)
        whole = PackedImages("webdataset", files=files, rows=rows)
        self._images = whole.subset(images=images, seed=seed, where=f"{root} ({split})")

    def fingerprint(self) -> str:
        """Digest of all keys, and of each image's size and last bytes; the same images in other shards give it too."""
        return self._images.digest

    def keys(self) -> Sequence[str]:
        """Names of the samples."""
        return self._images.keys

    def read(self, index: int, /, *, labels: bool = True) -> ImageSample:
        """Decode one image.

        Raises:
            BadImageError: It cannot be decoded, or the sample has none; the message names it.
            DataError: Its shard has changed, or cannot be read.
            UnreachableError: The network fails.
        """
        return self._images.read(index)


def _samples(members: Iterable[Member]) -> Iterator[Entry]:
    shown = (item for item in ((_parts(member.name), member) for member in members) if item[0][1])
    for key, files in groupby(shown, key=lambda item: item[0][0]):
        images = [(suffix, member) for (_, suffix), member in files if suffix.lower() in SUFFIXES]
        if len(images) > 1:
            raise DataError(f"sample {key!r}: expected one image, got {', '.join(suffix for suffix, _ in images)}")
        if not images:
            yield key, "", NO_IMAGE, 0, 0
        for suffix, member in images:
            yield key, suffix, member.offset, member.size, member.tail


def _parts(name: str) -> tuple[str, str]:
    """Key and suffix of a file; a hidden one has no suffix."""
    folder, base = split(name)
    stem, dot, rest = base.partition(".")
    return (join(folder, stem), dot + rest) if stem else (name, "")
