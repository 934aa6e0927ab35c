"""A folder of photographs, in any nesting; the first folder level, if there is one, names a class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from pipeline.errors import DataError
from pipeline.images.files import (
    SPLITS,
    SUFFIXES,
    choose_split,
    content_fingerprint,
    inside,
    read_rgb,
    require_folder,
    subset,
)
from pipeline.images.sample import ImageSample, Unlabelled

__all__ = ["LAYOUT", "ImageFolder"]

LAYOUT = "a folder of .jpg, .jpeg, .png or .webp files, in subfolders or not, optionally below train/ and val/"


class ImageFolder(Unlabelled):
    """Photographs below ``root/<split>``, or below ``root`` when it is not divided into splits.

    Keys are paths relative to that folder without suffix. Links that stay inside are followed, others refused.
    """

    def __init__(self, root: Path, *, split: str = "all", images: int | None = None, seed: int = 0) -> None:
        """List the files; none is opened yet.

        Raises:
            DataError: Missing folder or split, no images, a link that leads outside, or two files with one key.
        """
        self._base = _split_folder(require_folder(root, layout=LAYOUT), split)
        files = _by_key(self._base, root)
        chosen = subset(files, images=images, seed=seed, where=str(self._base))
        self._files = {key: files[key] for key in chosen}
        self._keys = tuple(chosen)
        folders = sorted({key.split("/")[0] for key in files if "/" in key})
        self._classes = {name: number for number, name in enumerate(folders)}

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the first-level folders, in label order."""
        return tuple(self._classes)

    def fingerprint(self) -> str:
        """Digest of all keys and file contents; reads every file the first time it is asked for."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        facts = {"classes": list(self._classes)}
        return content_fingerprint("imagefolder", root=self._base, files=self._files.values(), facts=facts)

    def keys(self) -> Sequence[str]:
        """Relative posix paths without suffix."""
        return self._keys

    def read(self, index: int, /, *, labels: bool = True) -> ImageSample:
        """Decode one photograph.

        Raises:
            BadImageError: It cannot be decoded; the message names the file.
        """
        key = self._keys[index]
        label = self._classes.get(key.split("/")[0]) if labels and "/" in key else None
        return ImageSample(key=key, image=read_rgb(self._files[key]), label=label)


def _split_folder(root: Path, split: str) -> Path:
    present = [name for name in SPLITS if (root / name).is_dir()]
    return root / (choose_split(split, present=present, where=str(root)) or "")


def _by_key(base: Path, root: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for folder, folders, names in os.walk(base, followlinks=False):
        folders.sort()
        for name in folders:
            # os.walk does not enter linked folders; saying nothing would lose their images silently.
            if (Path(folder) / name).is_symlink():
                raise DataError(f"{Path(folder) / name}: linked folders are not followed; copy the images into {root}")
        for name in names:
            path = Path(folder) / name
            if path.suffix.lower() not in SUFFIXES or name.startswith("."):
                continue
            inside(path, root=root)
            key = path.relative_to(base).with_suffix("").as_posix()
            if key in files:
                raise DataError(f"{path} and {files[key]}: two images with one key {key!r}; rename one of them")
            files[key] = path
    return files
