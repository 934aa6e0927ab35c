"""Damaged label files: each gives one error that names the file."""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from pipeline.errors import BadImageError, DataError
from pipeline.images.cityscapes import Cityscapes
from pipeline.images.files import decode_normals
from pipeline.images.nyud import Nyud
from pipeline.images.pascal_context import PascalContext, map_edges


@pytest.fixture
def nyud(folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders["nyud"], tmp_path / "nyud"))


@pytest.fixture
def pascal(folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders["pascal-context"], tmp_path / "pascal"))


@pytest.fixture
def cityscapes(folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders["cityscapes"], tmp_path / "cityscapes"))


FILES = {
    "cityscapes": [
        "leftImg8bit/train/scenes/scenes_000000_{}_leftImg8bit.png",
        "gtFine/train/scenes/scenes_000000_{}_gtFine_labelIds.png",
        "disparity/train/scenes/scenes_000000_{}_disparity.png",
    ],
    "nyud": ["images/{}.png", "segmentation/{}.png", "normals/{}.png", "edge/{}.png", "depth/{}.npy"],
    "pascal": [
        "JPEGImages/{}.jpg",
        "semseg/VOC12/{}.png",
        "pascal-context/trainval/{}.mat",
        "human_parts/{}.mat",
        "sal_distill/{}.png",
        "normals_distill/{}.png",
    ],
}
CASES = [(kind, name) for kind, names in FILES.items() for name in names]


@pytest.mark.parametrize(("kind", "name"), CASES)
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "noise"])
def test_every_file_of_a_sample_is_checked(request: pytest.FixtureRequest, kind: str, name: str, damage: str) -> None:
    root: Path = request.getfixturevalue(kind)
    path = root / name.format("000001" if kind == "cityscapes" else "train_000001")
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "noise": b"\x00\x7f" * 40}[damage])
    source = {"cityscapes": Cityscapes, "nyud": Nyud, "pascal": PascalContext}[kind](root, split="train")
    source.read(0)
    with pytest.raises(BadImageError, match=path.name.replace(".", r"\.")):
        source.read(1)


def test_pickled_depth_is_refused_and_not_run(nyud: Path, tmp_path: Path) -> None:
    class Bad:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return (Path.touch, (tmp_path / "owned",))

    path = nyud / "depth/train_000000.npy"
    for content in (pickle.dumps(Bad()), None):
        if content is None:
            np.save(path, np.array([Bad()], dtype=object), allow_pickle=True)
        else:
            path.write_bytes(content)
        with pytest.raises(BadImageError, match=r"train_000000\.npy"):
            Nyud(nyud, split="train").read(0)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("folder", ["segmentation", "edge", "normals"])
def test_label_of_another_size_is_named(nyud: Path, folder: str) -> None:
    shape = (9, 9, 3) if folder == "normals" else (9, 9)
    Image.fromarray(np.zeros(shape, dtype=np.uint8)).save(nyud / folder / "train_000000.png")
    with pytest.raises(BadImageError, match=r"train_000000.*label has shape"):
        Nyud(nyud, split="train").read(0)


def test_nyud_zero_is_ignored_and_bad_depth_is_invalid(nyud: Path) -> None:
    semseg = np.asarray(Image.open(nyud / "segmentation/train_000000.png")).copy()
    semseg[0, :5] = 0
    Image.fromarray(semseg).save(nyud / "segmentation/train_000000.png")
    depth = np.load(nyud / "depth/train_000000.npy")
    depth[0, :4] = [0, -1, np.nan, np.inf]
    np.save(nyud / "depth/train_000000.npy", depth[..., None])
    labels = Nyud(nyud, split="train").read(0).labels
    assert (labels["semseg"][0, :5] == 255).all()
    assert (labels["depth"][0, :4] == 255.0).all()


def test_wide_label_images_are_refused(nyud: Path) -> None:
    Image.fromarray(np.zeros((32, 40), dtype=np.uint16)).save(nyud / "segmentation/train_000000.png")
    with pytest.raises(BadImageError, match="8-bit"):
        Nyud(nyud, split="train").read(0)


def test_palette_labels_give_indices(pascal: Path) -> None:
    path = pascal / "semseg/VOC12/train_000000.png"
    values = np.asarray(Image.open(path))
    picture = Image.fromarray(values, mode=None).convert("L")
    picture = Image.frombytes("P", picture.size, picture.tobytes())
    picture.putpalette([(7 * i) % 256 for i in range(768)])
    picture.save(path)
    np.testing.assert_array_equal(PascalContext(pascal, split="train").read(0).labels["semseg"], values)


def test_semseg_falls_back_to_the_context_folder(pascal: Path) -> None:
    before = PascalContext(pascal, split="train").read(0).labels["semseg"]
    (pascal / "semseg/pascal-context").mkdir()
    name = "train_000000.png"
    (pascal / "semseg/VOC12" / name).rename(pascal / "semseg/pascal-context" / name)
    np.testing.assert_array_equal(PascalContext(pascal, split="train").read(0).labels["semseg"], before)


def test_unknown_part_names_the_file(pascal: Path) -> None:
    parts = np.zeros((1, 1), dtype=[("part_name", object), ("mask", object)])
    parts[0, 0] = ("tail", np.ones((32, 40), dtype=np.uint8))
    objects = np.zeros((1, 1), dtype=[(name, object) for name in ("class", "class_ind", "mask", "parts")])
    objects[0, 0] = ("person", 15, np.ones((32, 40), dtype=np.uint8), parts)
    savemat(pascal / "human_parts/train_000000.mat", {"anno": {"imname": "x", "objects": objects}})
    with pytest.raises(BadImageError, match=r"train_000000\.mat.*tail"):
        PascalContext(pascal, split="train").read(0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("a\na\n", "'a' is listed twice"),
        ("../../etc/passwd\n", "leads outside"),
        ("a\0b\n", "no name of a file"),
    ],
)
def test_bad_split_lists_are_named(nyud: Path, text: str, words: str) -> None:
    (nyud / "gt_sets/train.txt").write_text(text)
    with pytest.raises(DataError, match=words):
        Nyud(nyud, split="train")


def test_a_name_too_long_for_a_file_is_a_missing_one(pascal: Path) -> None:
    (pascal / "ImageSets/Context/train.txt").write_text(f"{'a' * 5000}\n")
    source = PascalContext(pascal, split="train")
    assert len(source.fingerprint()) == 64
    with pytest.raises(BadImageError, match="File name too long"):
        source.read(0)


def test_linked_label_outside_is_refused(nyud: Path, tmp_path: Path) -> None:
    path = nyud / "edge/train_000000.png"
    path.rename(tmp_path / "elsewhere.png")
    path.symlink_to(tmp_path / "elsewhere.png")
    with pytest.raises(DataError, match="leads outside"):
        Nyud(nyud, split="train").read(0)


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"wall": 1e999}', pytest.param("[" * 100_000, id="deep")])
def test_broken_class_tables_are_named(pascal: Path, text: str) -> None:
    (pascal / "json/context_classes.json").write_text(text)
    with pytest.raises(DataError, match=r"context_classes\.json"):
        PascalContext(pascal, split="train")


def test_fingerprint_follows_labels(nyud: Path) -> None:
    before = Nyud(nyud, split="train").fingerprint()
    path = nyud / "edge/train_000003.png"
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    assert Nyud(nyud, split="train").fingerprint() != before


def test_decoded_normals_are_unit_and_codes_for_nothing_are_zero() -> None:
    pixels = np.array([[[255, 128, 128], [128, 128, 128], [0, 0, 0], [127, 127, 0]]], dtype=np.uint8)
    normals = decode_normals(pixels)
    np.testing.assert_allclose(normals[0, 0], [1, 0, 0], atol=0.005)
    assert (normals[0, 1:3] == 0).all()
    np.testing.assert_allclose(normals[0, 3], [0, 0, -1], atol=0.005)


def test_map_edges_of_a_square_are_thin_and_closed() -> None:
    regions = np.zeros((12, 12), dtype=np.uint16)
    regions[3:9, 3:9] = 5
    edges = map_edges(regions)
    assert edges.dtype == np.uint8
    assert edges[5].sum() == 2
    assert edges[:, 5].sum() == 2
    assert not edges[0].any()
    assert not map_edges(np.full((6, 6), 3)).any()


@pytest.mark.parametrize("shape", [(10**7, 10**7), (10**40,), (33, 40)])
def test_a_depth_file_smaller_than_its_header_claims_is_refused(nyud: Path, shape: tuple[int, ...]) -> None:
    path = nyud / "depth/train_000000.npy"
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        file.write(b"\x00" * 32 * 40 * 4)
    with pytest.raises(BadImageError, match=r"train_000000\.npy.*its header claims \d+ bytes, it holds 5120"):
        Nyud(nyud, split="train").read(0)


@pytest.mark.parametrize("kind", ["S8", "complex64", "datetime64[s]", [("metres", "f4")]])
def test_arrays_of_other_than_numbers_are_refused(nyud: Path, kind: str) -> None:
    np.save(nyud / "depth/train_000000.npy", np.zeros((32, 40), dtype=kind))
    with pytest.raises(BadImageError, match=r"train_000000\.npy: cannot be read .*its values are of type"):
        Nyud(nyud, split="train").read(0)


def test_depths_beyond_float32_are_invalid(nyud: Path) -> None:
    np.save(nyud / "depth/train_000000.npy", np.full((32, 40), 1e300))
    assert (Nyud(nyud, split="train").read(0).labels["depth"] == 255).all()


@pytest.mark.parametrize(("stored", "got"), [((41,), "40 in 1 pixels"), ((41, 60, 255), "40 to 254 in 3 pixels")])
def test_classes_that_the_task_has_not_never_reach_a_loss(nyud: Path, stored: tuple[int, ...], got: str) -> None:
    path = nyud / "segmentation/train_000000.png"
    labels = np.asarray(Image.open(path)).copy()
    labels[0, : len(stored)] = stored
    Image.fromarray(labels).save(path)
    with pytest.raises(BadImageError, match=rf"train_000000\.png: expected what reads as semseg .* 0 to 39, got {got}"):
        Nyud(nyud, split="train").read(0)


def test_a_missing_file_is_part_of_the_fingerprint(nyud: Path) -> None:
    path = nyud / "depth/train_000001.npy"
    path.rename(path.with_suffix(".away"))
    without = Nyud(nyud, split="train").fingerprint()
    path.with_suffix(".away").rename(path)
    assert Nyud(nyud, split="train").fingerprint() != without


class_tables = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.sampled_from(["wall", "tvmonitor"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["wall", "tvmonitor"]), inner),
    max_leaves=4,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
@given(indoor=class_tables, context=class_tables)
def test_any_class_tables_are_read_or_named(pascal: Path, indoor: object, context: object) -> None:
    (pascal / "json/nyu_classes.json").write_text(json.dumps(indoor))
    (pascal / "json/context_classes.json").write_text(json.dumps(context))
    with contextlib.suppress(DataError):
        PascalContext(pascal, split="train")


def annotation(part: object) -> object:
    parts = np.zeros((1, 1), dtype=[("part_name", object), ("mask", object)])
    parts[0, 0] = part
    objects = np.zeros((1, 1), dtype=[(name, object) for name in ("class", "class_ind", "mask", "parts")])
    objects[0, 0] = ("person", 15, np.ones((32, 40), dtype=np.uint8), parts)
    return {"imname": "x", "objects": objects}


@pytest.mark.parametrize(
    "value",
    [
        3,
        "text",
        {"imname": "x"},
        {"objects": 3},
        {"objects": "text"},
        {"objects": {"class_ind": 15, "parts": "text"}},
        {"objects": {"class_ind": "person", "parts": 1, "mask": 1}},
        {"objects": {"class_ind": np.inf, "parts": 1, "mask": 1}},
        {"objects": {"class_ind": 15, "parts": {"part_name": 3, "mask": 1}}},
        annotation(("head", np.ones((3, 3), np.uint8))),
        annotation(("head", "text")),
        annotation((np.zeros((2, 2)), np.ones((32, 40)))),
    ],
)
def test_annotations_of_another_structure_are_named(pascal: Path, value: object) -> None:
    savemat(pascal / "human_parts/train_000000.mat", {"anno": value})
    with pytest.raises(BadImageError, match=r"train_000000\.mat: not an annotation of objects"):
        PascalContext(pascal, split="train").read(0)


@pytest.mark.parametrize(
    "value",
    ["text", np.zeros((3, 32, 40)), np.zeros((0, 5)), np.full((32, 40), np.nan), np.full((32, 40), 1e300), {"a": 1}],
)
def test_region_maps_that_are_none_are_named(pascal: Path, value: object) -> None:
    savemat(pascal / "pascal-context/trainval/train_000000.mat", {"LabelMap": value})
    with pytest.raises(BadImageError, match=r"train_000000\.mat: expected a LabelMap \(H, W\)"):
        PascalContext(pascal, split="train").read(0)


@pytest.mark.parametrize(("ids", "words"), [(34, "label ids 0 to 33, got 34"), (255, "got 255")])
def test_other_kinds_of_cityscapes_labels_are_refused(cityscapes: Path, ids: int, words: str) -> None:
    path = cityscapes / "gtFine/train/scenes/scenes_000000_000000_gtFine_labelIds.png"
    Image.fromarray(np.full((32, 40), ids, dtype=np.uint8)).save(path)
    with pytest.raises(BadImageError, match=words):
        Cityscapes(cityscapes, split="train").read(0)


def test_eight_bits_of_disparity_are_refused(cityscapes: Path) -> None:
    path = cityscapes / "disparity/train/scenes/scenes_000000_000000_disparity.png"
    Image.fromarray(np.zeros((32, 40), dtype=np.uint8)).save(path)
    with pytest.raises(BadImageError, match=r"disparity\.png: expected pixels of mode"):
        Cityscapes(cityscapes, split="train").read(0)
