"""Small data sets in every layout, written once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.images.layouts import LAYOUTS, write_layout
from pipeline.images.registry import open_source
from pipeline.images.sample import ImageSource

SIZE = (32, 40)
SEED = 7
FOLDERS = {"imagefolder": "imagefolder", "nyud": "nyud", "pascalcontext": "pascal-context"}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Layout name to a folder with 6 training and 3 validation scenes; treat it as read-only."""
    base = tmp_path_factory.mktemp("layouts")
    for layout in LAYOUTS:
        write_layout(layout, out=base / layout, train=6, val=3, size=SIZE, seed=SEED)
    return {layout: base / layout for layout in LAYOUTS}


@pytest.fixture(scope="session")
def opener(folders: dict[str, Path]) -> Callable[..., ImageSource]:
    """Open any registered source on its small data set."""

    def open_small(name: str, split: str = "train", *, images: int | None = None, seed: int = SEED) -> ImageSource:
        if name in FOLDERS:
            root = str(folders[FOLDERS[name]])
            return open_source(name, root=root, split=split, size=None, images=images, seed=seed)
        return open_source(name, root=None, split=split, size=SIZE, images=images or 6, seed=seed)

    return open_small
