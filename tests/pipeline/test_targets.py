from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.loader import load_samples
from pipeline.needs import needs
from pipeline.sampling import TeacherDraw
from pipeline.targets import CachedTargets, OnlineTargets, find_column, find_columns
from pipeline.tensors import to_tensors
from pipeline.viewsets import view_set_spec
from store.errors import CorruptShardError, FormatError, MissingColumnError
from store.store import Store
from tests.conftest import Finished

CPU = torch.device("cpu")


class Place:
    """The finished recipe's distillation views and teachers."""

    def __init__(self, finished: Finished, root: Path | None = None) -> None:
        self.study = finished.recipe.runs[0].study
        self.store = Store.open(root or self.study.store)
        need = needs(self.study)[0]
        self.view_set = view_set_spec(need.data, labels=need.labels)
        self.specs = {name: teacher.spec(name) for name, teacher in self.study.teachers.items()}

    def columns(self) -> dict[str, Any]:
        return find_columns(
            self.store, list(self.specs.values()), view_set=self.view_set, codecs=dict.fromkeys(self.specs, "fp32")
        )


@pytest.fixture
def place(finished: Finished) -> Place:
    return Place(finished)


@pytest.fixture
def copied(finished: Finished, tmp_path: Path) -> Place:
    """The same in a copy of the store, to be damaged."""
    shutil.copytree(finished.root / "store", tmp_path / "store")
    return Place(finished, tmp_path / "store")


def test_stored_and_live_targets_agree(place: Place) -> None:
    cached, online = CachedTargets(place.columns()), OnlineTargets(place.specs, device=CPU)
    rows = np.array([9, 2, 17])
    pixels = to_tensors(load_samples(place.store.view_set(place.view_set.name), rows.tolist(), tasks=())).pixels
    stored = cached.targets(cached.read(rows), pixels)
    live = online.targets(online.read(rows), pixels)
    assert stored.keys() == live.keys() == {"first", "second"}
    for name in live:
        assert len(stored[name]) == len(live[name]) == 4
        for level, other in zip(stored[name], live[name], strict=True):
            assert level.shape == other.shape == (3, 24, 4, 4)
            assert level.dtype == other.dtype == torch.float32
            torch.testing.assert_close(level, other, rtol=1e-5, atol=1e-5)
    assert dict(cached.widths) == dict(online.widths) == {"first": (24,) * 4, "second": (24,) * 4}
    # Two teachers, two answers: the comparison above is of something.
    assert not torch.allclose(live["first"][0], live["second"][0], atol=0.1)


def test_online_targets_read_nothing_and_track_no_gradient(place: Place) -> None:
    online = OnlineTargets(place.specs, device=CPU)
    assert online.read(np.array([0, 1])) == {}
    maps = online.targets({}, torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    assert not any(level.requires_grad for levels in maps.values() for level in levels)


def test_online_targets_stay_in_full_precision_under_autocast(place: Place) -> None:
    online = OnlineTargets(place.specs, device=CPU)
    pixels = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    plain = online.targets({}, pixels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = online.targets({}, pixels)
    assert all(torch.equal(a, b) for name in plain for a, b in zip(plain[name], under[name], strict=True))


def test_finding_a_column_builds_no_teacher(place: Place, no_teacher: Callable[..., Any]) -> None:
    columns = place.columns()
    assert {name: column.spec.teacher for name, column in columns.items()} == {"first": "first", "second": "second"}
    CachedTargets(columns).read(np.array([0]))


@pytest.mark.parametrize(
    ("change", "codec"),
    [
        ({"random": 3}, "fp32"),
        ({"name": "third"}, "fp32"),
        ({"resize": "squash", "mean": (0.1, 0.1, 0.1), "std": (1.0, 1.0, 1.0)}, "fp32"),
        ({}, "int8"),
    ],
    ids=["weights", "name", "statistics", "codec"],
)
def test_only_this_very_teacher_and_codec_is_found(place: Place, change: dict[str, Any], codec: str) -> None:
    spec = place.specs["first"]
    assert find_column(place.store, spec, view_set=place.view_set, codec="fp32") is not None
    other = dataclasses.replace(spec, **change)
    assert find_column(place.store, other, view_set=place.view_set, codec=codec) is None


def test_an_absent_column_names_itself(place: Place) -> None:
    other = dataclasses.replace(place.specs["first"], random=3)
    with pytest.raises(MissingColumnError) as caught:
        find_columns(place.store, [other], view_set=place.view_set, codecs={other.name: "fp32"})
    text = str(caught.value)
    for part in (
        "the fp32 column of teacher first",
        place.view_set.name,
        "is absent",
    ):
        assert part in text
    assert len(text.splitlines()) == 1


def test_a_column_of_another_normalisation_is_refused_with_both(place: Place) -> None:
    """A recipe that turns to the published code's statistics does not read columns made with the teacher's own."""
    spec = place.specs["first"]
    other = dataclasses.replace(spec, normalization="reference", mean=None, std=None)
    with pytest.raises(MissingColumnError) as caught:
        find_columns(place.store, [other], view_set=place.view_set, codecs={"first": "fp32"})
    text = str(caught.value)
    assert "is absent; first-" in text
    assert "holds normalization mean " in text
    assert "where the recipe asks for mean 0.485 0.456 0.406 std 0.229 0.224 0.225 (ImageNet, as reference)" in text
    assert len(text.splitlines()) == 1


def test_an_incomplete_column_is_refused(copied: Place) -> None:
    column = find_column(copied.store, copied.specs["second"], view_set=copied.view_set, codec="fp32")
    assert column is not None
    column.discard(1)
    fresh = Store.open(copied.store.root.path)
    with pytest.raises(MissingColumnError, match=r"teacher second .* is incomplete \(1 shards missing\)$"):
        find_columns(fresh, [copied.specs["second"]], view_set=copied.view_set, codecs={"second": "fp32"})


def test_a_column_of_other_images_is_refused(copied: Place) -> None:
    """Views made anew with other pixels under old features do not join."""
    column = find_column(copied.store, copied.specs["first"], view_set=copied.view_set, codec="fp32")
    assert column is not None
    view_set = copied.store.view_set(copied.view_set.name)
    rows = view_set.read_part(0)
    view_set.discard(0)
    swapped = [dataclasses.replace(row, files=rows[(index + 1) % len(rows)].files) for index, row in enumerate(rows)]
    view_set.write_part(0, swapped)
    copied.store = Store.open(copied.store.root.path)
    with pytest.raises(FormatError, match="made from other images"):
        copied.columns()


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_damage_elsewhere_blocks_nothing(copied: Place) -> None:
    root = copied.store.root.path
    others = [path for path in (root / "views").iterdir() if path.name != copied.view_set.name]
    assert len(others) == 2
    for path in others:
        damage(path / "view_set.json")
    (second,) = (root / "columns" / copied.view_set.name).glob("second-*")
    damage(second / "column.json")
    spec = copied.specs["first"]
    copied.store = Store.open(root)
    assert find_columns(copied.store, [spec], view_set=copied.view_set, codecs={spec.name: "fp32"}).keys() == {"first"}
    # A damaged column that may be the one is no missing one: made again, it would be the same folder.
    with pytest.raises(CorruptShardError, match=second.name):
        find_column(copied.store, copied.specs["second"], view_set=copied.view_set, codec="fp32")


def test_a_codec_with_options_is_another_codec(place: Place) -> None:
    spec = place.specs["first"]
    assert find_column(place.store, spec, view_set=place.view_set, codec={"name": "fp32"}) is not None
    codec = {"name": "fp16", "clip": True}
    with pytest.raises(MissingColumnError, match=r"the fp16 \(clip: True\) column of teacher first .* is absent"):
        find_columns(place.store, [spec], view_set=place.view_set, codecs={spec.name: codec})


def test_only_the_drawn_teachers_columns_are_read(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = TeacherDraw(teachers=("second", "first"), count=1, seed=0)
    columns, read = place.columns(), []
    for name, column in columns.items():
        real = column.read
        monkeypatch.setattr(column, "read", lambda rows, name=name, real=real: (read.append(name), real(rows))[1])
    cached = CachedTargets(columns, draw=draw)
    rows = np.array([0, 5])
    pixels = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    for step in range(6):
        read.clear()
        encoded = cached.read(rows, step=step)
        assert tuple(encoded) == tuple(read) == draw(step)
        assert tuple(cached.targets(encoded, pixels)) == draw(step)
    assert {draw(step) for step in range(6)} == {("first",), ("second",)}
    # Scoring has no step, and compares with every teacher.
    assert set(cached.read(rows)) == {"first", "second"}


@pytest.mark.parametrize("drawn", [True, False])
def test_only_the_drawn_teachers_shards_are_opened_ahead(
    place: Place, monkeypatch: pytest.MonkeyPatch, drawn: bool
) -> None:
    """Each once, however many of the next steps ask for it; again when it comes back."""
    draw = TeacherDraw(teachers=("second", "first"), count=1, seed=0)
    first = next(step for step in range(99) if draw(step) == ("first",) and draw(step + 1) == ("second",))
    columns, asked = place.columns(), dict[str, list[list[int]]]()
    for name, column in columns.items():
        monkeypatch.setattr(column, "prefetch", asked.setdefault(name, []).append)
    cached = CachedTargets(columns, draw=draw if drawn else None)
    for soon in ({first: [0, 2], first + 1: [1]}, {first + 1: [1]}, {first: [0]}):
        cached.prefetch(soon)
    assert asked["first"] == ([[0, 2], [], [0]] if drawn else [[0, 1, 2], [], [0]])
    assert asked["second"] == ([[1], [], []] if drawn else [[0, 1, 2], [], [0]])


def test_only_the_drawn_teachers_are_run(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = TeacherDraw(teachers=("second", "first"), count=1, seed=0)
    online = OnlineTargets(place.specs, device=CPU, draw=draw)
    pixels = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    every = online.targets({}, pixels)
    for step in range(4):
        found = online.targets(online.read(np.array([0]), step=step), pixels)
        assert tuple(found) == draw(step)
        assert all(torch.equal(a, b) for name in found for a, b in zip(found[name], every[name], strict=True))
