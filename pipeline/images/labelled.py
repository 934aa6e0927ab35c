"""A data set with labels, as files in a folder: what all of them share.

Each one is a module beside this that says where its files lie and how they become label maps; a line of
``pipeline.images.registry`` makes it a source, and an entry of ``sak.tasks.DATASETS`` says what its tasks are.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BadImageError, DataError
from pipeline.images.files import content_fingerprint, inside, read_png_map, read_rgb, require_folder, subset
from pipeline.images.sample import ImageSample
from sak.dense.registry import LABELS
from sak.tasks import dataset_spec

__all__ = ["Decoders", "ImageParts", "LabelledFolder", "present", "read_vectors"]

Decoders: TypeAlias = Mapping[str, Callable[[], NDArray[np.generic]]]
"""Task to what reads its label map; it raises ``BadImageError`` with the name of the file."""


class ImageParts(NamedTuple):
    """What can be read of an image and its labels, and what is wrong with the rest: one line a fault."""

    image: NDArray[np.uint8] | None
    labels: Mapping[str, NDArray[np.generic]]
    faults: tuple[str, ...]


class LabelledFolder(ABC):
    """One split of a data set; keys name its images.

    A data set gives the following and the three methods without a body.

    Attributes:
        dataset: Name in ``sak.tasks.DATASETS``, and of the source.
        tasks: Its tasks, in the order in which view sets name them.
        layout: The folder in words, for messages.
        published: Split to its number of images as published.
        marks: Files or folders by which it is told from other data sets.
        made_from: Task to the name of its label file in ``_files``, where the two differ.
    """

    dataset: str
    tasks: tuple[str, ...]
    layout: str
    published: Mapping[str, int]
    marks: tuple[str, ...]
    made_from: Mapping[str, str] = MappingProxyType({})

    def __init__(self, root: Path, *, split: str, images: int | None = None, seed: int = 0) -> None:
        """List the images of a split; none is opened yet.

        Raises:
            DataError: Missing folder, unknown split, no images, or fewer than asked for.
        """
        if split not in self.published:
            raise DataError(f"{self.dataset}: unknown split {split!r}; choose one of {', '.join(self.published)}")
        self._root = require_folder(root, layout=self.layout)
        self._keys = tuple(subset(self._ids(split), images=images, seed=seed, where=f"{root} ({split})"))

    @classmethod
    def is_at(cls, folder: Path, /) -> bool:
        """Whether a folder looks like this data set."""
        return all((folder / mark).exists() for mark in cls.marks)

    @abstractmethod
    def _ids(self, split: str) -> list[str]:
        """Keys of a split, in any order."""

    @abstractmethod
    def _files(self, key: str) -> Mapping[str, Path]:
        """Files of an image; ``image`` is the photograph."""

    @abstractmethod
    def _labels(self, files: Mapping[str, Path], *, size: tuple[int, int] | None) -> Decoders:
        """How to read its label maps.

        Args:
            size: Height and width of the image; None where it cannot be decoded.
        """

    def _facts(self) -> Mapping[str, object]:
        """What labels depend on beside their files."""
        return {}

    def keys(self) -> Sequence[str]:
        """Names of the images."""
        return self._keys

    def fingerprint(self) -> str:
        """Digest of all image and label files; reads every file the first time it is asked for."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        files = [path for key in self._keys for path in self._safe_files(key).values()]
        return content_fingerprint(self.dataset, root=self._root, files=files, facts=self._facts())

    def read(self, index: int, /, *, labels: bool = True) -> ImageSample:
        """Decode one image and its label maps.

        Raises:
            BadImageError: A file is missing, damaged, of another size or has classes that its task has not; the message
                names it.
            DataError: A file leads out of the folder.
        """
        key = self._keys[index]
        files = self._safe_files(key)
        image = read_rgb(files["image"])
        if not labels:
            return ImageSample(key=key, image=image)
        size = image.shape[0], image.shape[1]
        maps = {task: decode() for task, decode in self._labels(files, size=size).items()}
        for task, label in maps.items():
            self._check_size(task, label, files=files, size=size)
            self._check_classes(task, label, files=files)
        return ImageSample(key=key, image=image, labels=maps)

    def read_parts(self, index: int, /) -> ImageParts:
        """Decode whatever can be decoded of one image and its labels, and collect what cannot."""
        try:
            files = self._safe_files(self._keys[index])
        except DataError as error:
            return ImageParts(None, {}, (str(error),))
        image, size, maps, faults = None, None, {}, []
        try:
            image = read_rgb(files["image"])
            size = image.shape[0], image.shape[1]
        except BadImageError as error:
            faults.append(str(error))
        for task, decode in self._labels(files, size=size).items():
            try:
                maps[task] = decode()
                if size is not None:
                    self._check_size(task, maps[task], files=files, size=size)
                self._check_classes(task, maps[task], files=files)
            except BadImageError as error:
                faults.append(str(error))
        # One file may be in two labels; its fault is one.
        return ImageParts(image, maps, tuple(dict.fromkeys(faults)))

    def label_file(self, index: int, /, *, task: str) -> Path:
        """The file that a label map is read from."""
        return self._files(self._keys[index])[self.made_from.get(task, task)]

    def _check_size(
        self, task: str, label: NDArray[np.generic], *, files: Mapping[str, Path], size: tuple[int, int]
    ) -> None:
        if label.shape != LABELS[task].shape(size):
            raise BadImageError(
                f"{files[self.made_from.get(task, task)]}: {task} label has shape {label.shape}, its image"
                f" {files['image'].name} needs {LABELS[task].shape(size)}; replace the label"
            )

    def _check_classes(self, task: str, label: NDArray[np.generic], *, files: Mapping[str, Path]) -> None:
        # A loss meets another class as an index out of bounds, which on a GPU is an error without a name.
        if LABELS[task].shown != "classes":
            return
        classes = dataset_spec(self.dataset).task(task).channels
        numbers = label.astype(np.uint8, copy=False)
        wrong = numbers[(numbers >= classes) & (numbers != LABELS[task].invalid)]
        if wrong.size:
            got = " to ".join(dict.fromkeys(map(str, (wrong.min(), wrong.max()))))
            raise BadImageError(
                f"{files[self.made_from.get(task, task)]}: expected what reads as {task} classes 0 to {classes - 1},"
                f" got {got} in {wrong.size} pixels; replace the label"
            )

    def _safe_files(self, key: str) -> dict[str, Path]:
        return {name: inside(path, root=self._root) for name, path in self._files(key).items()}


def present(folder: Path, *names: str) -> Path:
    """The first of some files that is there; the first of all if none is, so that messages name that."""
    paths = [folder / name for name in names]
    return next((path for path in paths if os.path.isfile(path)), paths[0])


def read_vectors(path: Path) -> NDArray[np.uint8]:
    """Decode an 8-bit RGB image whose channels are the components of a vector.

    Raises:
        BadImageError: Undecodable, or of another kind.
    """
    pixels = read_png_map(path)
    if pixels.ndim != 3:
        raise BadImageError(f"{path}: expected an RGB image of normals, got a single-channel one")
    return pixels
