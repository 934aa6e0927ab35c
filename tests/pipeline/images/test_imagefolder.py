"""Folders of photographs: keys, labels, damage and hostile links."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import BadImageError, DataError
from pipeline.images.imagefolder import ImageFolder


def put(path: Path, *, shade: int = 0, size: tuple[int, int] = (24, 16)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(shade)
    Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(path)
    return path


def test_finds_every_suffix_at_every_depth_and_labels_by_first_folder(tmp_path: Path) -> None:
    for name in ("b/x.jpg", "a/deep/er/y.JPEG", "a/z.png", "top.webp"):
        put(tmp_path / name)
    (tmp_path / "a/notes.txt").write_text("no image")
    (tmp_path / "a/.hidden.jpg").write_bytes(b"")
    source = ImageFolder(tmp_path)
    assert source.keys() == ("a/deep/er/y", "a/z", "b/x", "top")
    assert [source.read(index).label for index in range(4)] == [0, 0, 1, None]
    assert source.classes == ("a", "b")


def test_labels_do_not_change_when_only_some_images_are_taken(tmp_path: Path) -> None:
    for number, name in enumerate(("a/1.png", "b/2.png", "c/3.png")):
        put(tmp_path / name, shade=number)
    for seed in range(5):
        part = ImageFolder(tmp_path, images=1, seed=seed)
        assert part.read(0).label == "abc".index(part.keys()[0][0])


def test_same_key_twice_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg")
    put(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"two images with one key 'a'"):
        ImageFolder(tmp_path)


@pytest.mark.parametrize("keep", [0, 1, 20, 300, -40])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_truncated_image_is_named(tmp_path: Path, suffix: str, keep: int) -> None:
    path = put(tmp_path / f"cut{suffix}", size=(48, 64))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BadImageError, match=f"cut\\{suffix}: cannot be decoded"):
        ImageFolder(tmp_path).read(0)


def test_text_in_disguise_is_named(tmp_path: Path) -> None:
    (tmp_path / "page.jpg").write_text("<html>not found</html>")
    with pytest.raises(BadImageError, match=r"page\.jpg"):
        ImageFolder(tmp_path).read(0)


def test_huge_image_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(BadImageError, match=r"bomb\.png: refused"):
        ImageFolder(tmp_path).read(0)


def test_links_may_stay_inside_but_not_lead_out(tmp_path: Path) -> None:
    root = tmp_path / "data"
    put(root / "real.png")
    (root / "alias.png").symlink_to(root / "real.png")
    assert ImageFolder(root).keys() == ("alias", "real")
    (root / "escape.png").symlink_to(put(tmp_path / "secret.png"))
    with pytest.raises(DataError, match=r"escape\.png: leads outside"):
        ImageFolder(root)


def test_linked_folders_are_refused_rather_than_ignored(tmp_path: Path) -> None:
    put(tmp_path / "far/a.png")
    put(tmp_path / "data/b.png")
    (tmp_path / "data/more").symlink_to(tmp_path / "far")
    with pytest.raises(DataError, match="linked folders are not followed"):
        ImageFolder(tmp_path / "data")


@pytest.mark.parametrize("split", ["all", "train", "unlabeled"])
def test_undivided_folder_is_one_training_split(tmp_path: Path, split: str) -> None:
    put(tmp_path / "a.png")
    assert ImageFolder(tmp_path, split=split).keys() == ("a",)


def test_undivided_folder_has_no_held_out_images(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    with pytest.raises(DataError, match=rf"not divided into splits; put .* as in {tmp_path}/train and {tmp_path}/val"):
        ImageFolder(tmp_path, split="val")


def test_divided_folder_never_lends_validation_images(tmp_path: Path) -> None:
    put(tmp_path / "val/a.png")
    assert ImageFolder(tmp_path, split="val").keys() == ("a",)
    with pytest.raises(DataError, match="no folder 'train'; it has val"):
        ImageFolder(tmp_path, split="train")


def test_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images found"):
        ImageFolder(tmp_path)


def test_fingerprint_follows_content_and_name_but_not_time(tmp_path: Path) -> None:
    path = put(tmp_path / "a.png")
    first = ImageFolder(tmp_path).fingerprint()
    path.touch()
    assert ImageFolder(tmp_path).fingerprint() == first
    put(path, shade=1)
    second = ImageFolder(tmp_path).fingerprint()
    path.rename(tmp_path / "b.png")
    assert len({first, second, ImageFolder(tmp_path).fingerprint()}) == 3


def test_grey_and_transparent_images_become_rgb(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 9), 77, dtype=np.uint8)).save(tmp_path / "grey.png")
    Image.fromarray(np.full((8, 9, 4), 50, dtype=np.uint8)).save(tmp_path / "rgba.png")
    source = ImageFolder(tmp_path)
    assert (source.read(0).image == 77).all()
    assert source.read(1).image.shape == (8, 9, 3)


def test_sixteen_bits_of_grey_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    deep = np.array([[0, 128, 129, 4096], [32768, 65535, 257, 514]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    image = ImageFolder(tmp_path).read(0).image
    assert image[..., 0].tolist() == [[0, 0, 1, 16], [128, 255, 1, 2]]
    assert (image == image[..., :1]).all()
