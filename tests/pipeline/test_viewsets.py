from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from pipeline import viewsets
from pipeline.config import DataConfig, SourceConfig
from pipeline.errors import BadImageError
from pipeline.images.layouts import write_layout
from pipeline.loader import load_samples
from pipeline.part_pixels import part_pixels
from pipeline.pixels import LABEL_FILES, encode_sample
from pipeline.views import Kind, ViewDraw, ViewSpec, apply_view
from pipeline.viewsets import cached_source, make_part, view_set_spec, view_size
from store.store import Store
from tests.pipeline.images.packing import pack_tar

CROP = ViewSpec(kind="random_resized_crop", size=(24, 24))
SOURCE = SourceConfig(name="scenes", images=6, size=32)


def scenes(**changes: Any) -> DataConfig:
    return DataConfig(**({"source": SOURCE, "view": CROP, "rows_per_shard": 4} | changes))


def make(root: Path, data: DataConfig, *, labels: bool) -> Any:
    store = Store.create(root)
    view_set = store.create_view_set(view_set_spec(data, labels=labels))
    for part in range(view_set.spec.parts):
        assert make_part(str(root), view_set.name, part, data).rows == len(view_set.spec.part_rows(part))
    return Store.open(root).view_set(view_set.name)


def test_the_name_follows_everything_that_shapes_the_rows() -> None:
    names = {
        view_set_spec(data, labels=labels).name
        for data, labels in [
            (scenes(), False),
            (scenes(), True),
            (scenes(seed=1), False),
            (scenes(rows_per_shard=3), False),
            (scenes(view=dataclasses.replace(CROP, area=(0.5, 1.0))), False),
            (scenes(view=ViewSpec(kind="full", size=(24, 24))), False),
            (scenes(source=dataclasses.replace(SOURCE, seed=1)), False),
            (scenes(source=dataclasses.replace(SOURCE, split="val")), False),
            (scenes(source=dataclasses.replace(SOURCE, images=5)), False),
        ]
    }
    assert len(names) == 9
    # What to do about a bad image changes no row that is there, and more views come after all others.
    assert view_set_spec(scenes(on_error="skip"), labels=False).name in names
    assert view_set_spec(scenes(views=3), labels=False).name == view_set_spec(scenes(), labels=False).name


def test_other_code_gives_other_view_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    before = view_set_spec(scenes(), labels=True).name
    monkeypatch.setattr(viewsets, "VIEWS", viewsets.VIEWS + 1)
    assert view_set_spec(scenes(), labels=True).name != before


def test_the_seed_decides_views_and_order(tmp_path: Path) -> None:
    one, other = (make(tmp_path / str(seed), scenes(seed=seed), labels=False) for seed in (0, 1))
    first, second = ([row for part in (0, 1) for row in views.read_part(part)] for views in (one, other))
    assert sorted(row.key for row in first) == sorted(row.key for row in second)
    assert [row.key for row in first] != [row.key for row in second]
    draws = {row.key: dict(row.draw) for row in second}
    assert any(dict(row.draw) != draws[row.key] for row in first)


def test_the_size_of_the_images_is_the_views() -> None:
    data = scenes(view=ViewSpec(kind="full", size=(24, 40)))
    assert view_size(view_set_spec(data, labels=False)) == (24, 40)


def test_making_a_part_is_timed(tmp_path: Path) -> None:
    assert make(tmp_path, scenes(), labels=False).summary().spent.total > 0


def test_rows_are_remade_to_the_byte(tmp_path: Path) -> None:
    digests = []
    for name in ("a", "b"):
        view_set = make(tmp_path / name, scenes(views=2), labels=True)
        digests.append([hashlib.sha256(view_set.tar_path(part).read_bytes()).hexdigest() for part in range(4)])
    assert digests[0] == digests[1]


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_stored_draw_replays_to_the_stored_bytes_of_pixels_and_labels(
    tmp_path: Path, kind: Kind, flip: float
) -> None:
    options: dict[str, Any] = {"flip": flip} if kind in ("random_resized_crop", "multitask") else {}
    data = scenes(view=ViewSpec(kind=kind, size=(32, 40), **options), views=2)
    view_set = make(tmp_path / "store", data, labels=True)
    source = cached_source(SOURCE)
    keys = list(source.keys())
    for row in view_set.read_part(1):
        draw = ViewDraw.from_dict(dict(row.draw))
        assert draw.flip is bool(options.get("flip"))
        seen = apply_view(draw, source.read(keys.index(row.key)))
        assert encode_sample(seen) == dict(row.files)
        assert {*row.files} == {"png", *(LABEL_FILES[task] for task in view_set.spec.tasks)}


@pytest.mark.parametrize("kind", get_args(Kind))
def test_teachers_and_students_see_the_drawn_pixels(tmp_path: Path, kind: Kind) -> None:
    view_set = make(tmp_path / "store", scenes(view=ViewSpec(kind=kind, size=(32, 40)), views=2), labels=True)
    source = cached_source(SOURCE)
    keys = list(source.keys())
    for part in range(view_set.spec.parts):
        shown = part_pixels(view_set, part, batch=2)
        rows = view_set.read_part(part)
        students = load_samples(view_set, list(shown.rows), tasks=("semseg", "depth"))
        for row, teacher, student in zip(rows, shown.pixels.numpy(), students, strict=True):
            seen = apply_view(ViewDraw.from_dict(dict(row.draw)), source.read(keys.index(row.key)))
            assert np.array_equal(teacher.transpose(1, 2, 0), seen.image)
            assert np.array_equal(student.image, seen.image)
            assert np.array_equal(student.labels["semseg"], seen.labels["semseg"])
            assert np.array_equal(student.labels["depth"], seen.labels["depth"])


def test_a_tar_gives_the_shards_of_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAK_CACHE", str(tmp_path / "cache"))
    write_layout("imagefolder", out=tmp_path / "data", train=5, val=1, size=(32, 40), seed=3)
    pack_tar(tmp_path / "data.tar", tmp_path / "data")
    digests = []
    for name, root in (("imagefolder", "data"), ("tar", "data.tar")):
        data = scenes(source=SourceConfig(name=name, root=str(tmp_path / root)), views=2)
        view_set = make(tmp_path / name, data, labels=False)
        digests.append([view_set.commits.load(part).objects for part in range(view_set.spec.parts)])
    assert digests[0] == digests[1]


def test_views_without_labels_store_none(tmp_path: Path) -> None:
    bare, full = (make(tmp_path / str(labels), scenes(), labels=labels) for labels in (False, True))
    assert {*bare.read_part(0)[0].files} == {"png"}
    assert {"png", "semseg.png", "depth.npy"} < {*full.read_part(0)[0].files}
    for one, other in zip(bare.read_part(1), full.read_part(1), strict=True):
        assert one.files["png"] == other.files["png"]
        assert dict(one.draw) == dict(other.draw)


def test_a_multitask_crop_reads_labels_even_where_none_are_kept(tmp_path: Path) -> None:
    data = scenes(view=ViewSpec(kind="multitask", size=(24, 24), max_class_ratio=0.3))
    bare, full = (make(tmp_path / str(labels), data, labels=labels) for labels in (False, True))
    assert [dict(row.draw) for row in bare.read_part(0)] == [dict(row.draw) for row in full.read_part(0)]
    assert {*bare.read_part(0)[0].files} == {"png"}


@pytest.fixture
def photos(tmp_path: Path) -> DataConfig:
    """Seven photographs, the third damaged."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(7):
        Image.new("RGB", (40, 30), (number * 30, 9, 9)).save(folder / f"p{number}.jpg")
    data = (folder / "p2.jpg").read_bytes()
    (folder / "p2.jpg").write_bytes(data[: len(data) // 3])
    return DataConfig(source=SourceConfig(name="imagefolder", root=str(folder)), view=CROP, rows_per_shard=7)


def test_a_bad_image_stops_with_its_name_and_the_way_out(tmp_path: Path, photos: DataConfig) -> None:
    with pytest.raises(BadImageError, match=r"p2\.jpg.*on_error: skip") as caught:
        make(tmp_path / "store", photos, labels=False)
    assert len(str(caught.value).splitlines()) == 1
    store = Store.open(tmp_path / "store")
    assert store.view_sets()[0].committed_parts() == ()


def test_a_skipped_image_is_recorded_and_not_read(tmp_path: Path, photos: DataConfig) -> None:
    view_set = make(tmp_path / "store", dataclasses.replace(photos, on_error="skip"), labels=False)
    (bad,) = [row for row in view_set.index(0) if row.error]
    assert bad.key == "p2"
    assert "p2.jpg" in str(bad.error)
    assert bad.row not in view_set.usable_rows().tolist()
    assert len(view_set.usable_rows()) == 6


def test_missing_files_are_skipped_and_told_the_same_wherever_the_data_lie(tmp_path: Path) -> None:
    reasons = []
    for place in ("here", "further/down"):
        root = tmp_path / place / "data"
        write_layout("nyud", out=root, train=4, val=1, size=(32, 32), seed=3)
        (root / "depth/train_000001.npy").unlink()
        (root / "edge/train_000002.png").write_bytes(b"")
        source = SourceConfig(name="nyud", root=str(root), split="train")
        data = scenes(source=source, on_error="skip")
        view_set = make(tmp_path / place / "store", data, labels=True)
        assert len(view_set.usable_rows()) == 2
        reasons.append({row.key: row.error for row in view_set.index(0) if row.error})
        with pytest.raises(BadImageError, match=r"train_00000[12].*on_error: skip"):
            make(tmp_path / place / "other", scenes(source=source), labels=True)
    assert reasons[0] == reasons[1]
    assert reasons[0]["train_000001"].startswith("depth/train_000001.npy: file not found")
    assert reasons[0]["train_000002"].startswith("edge/train_000002.png: ")
