"""Small data sets in every layout, written once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.images.layouts import LAYOUTS, write_layout
from pipeline.images.registry import SourceRequest, open_source
from pipeline.images.sample import ImageSource
from tests.pipeline.images.packing import pack_tar, write_parquet, write_tar

SIZE = (32, 40)
SEED = 7
FOLDERS = {
    "cityscapes": "cityscapes",
    "imagefolder": "imagefolder",
    "nyud": "nyud",
    "pascalcontext": "pascal-context",
}
PACKED = {"parquet": "{split}-*.parquet", "tar": "all.tar", "webdataset": "{split}-{000..001}.tar"}
"""Sources of files that hold many images, and their roots in the folder of packed images."""


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder for each test: no index of another run is found."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SAK_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Layout name to a folder with 6 training and 3 validation scenes; treat it as read-only."""
    base = tmp_path_factory.mktemp("layouts")
    for layout in LAYOUTS:
        write_layout(layout, out=base / layout, train=6, val=3, size=SIZE, seed=SEED)
    return {layout: base / layout for layout in LAYOUTS}


@pytest.fixture(scope="session")
def packed(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photographs of the image folder, packed in every way; treat it as read-only."""
    out, photos = tmp_path_factory.mktemp("packed"), folders["imagefolder"]
    pack_tar(out / "all.tar", photos)
    for split in ("train", "val"):
        files = sorted(path for path in (photos / split).rglob("*") if path.is_file())
        for number in range(2):
            some = files[number::2]
            write_tar(out / f"{split}-{number:03d}.tar", {f"{path.stem}.jpg": path.read_bytes() for path in some})
            write_parquet(
                out / f"{split}-0000{number}-of-00002.parquet", {path.name: path.read_bytes() for path in some}
            )
    return out


@pytest.fixture(scope="session")
def opener(folders: dict[str, Path], packed: Path) -> Callable[..., ImageSource]:
    """Open any registered source on its small data set."""

    def open_small(name: str, split: str = "train", *, images: int | None = None, seed: int = SEED) -> ImageSource:
        if name in FOLDERS or name in PACKED:
            root = str(folders[FOLDERS[name]] if name in FOLDERS else packed / PACKED[name])
            return open_source(SourceRequest(name=name, root=root, split=split, size=None, images=images, seed=seed))
        return open_source(SourceRequest(name=name, root=None, split=split, size=SIZE, images=images or 6, seed=seed))

    return open_small
