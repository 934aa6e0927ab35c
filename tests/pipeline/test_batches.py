"""A batch equals what slow, obvious code gives, on however many ranks, micro-batches and threads."""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from pipeline.config import LoaderConfig
from pipeline.distributed import Ranks
from pipeline.images.sample import ImageSample
from pipeline.loader import Batch, Loader
from pipeline.pixels import encode_sample
from pipeline.split import Split
from pipeline.targets import CachedTargets
from store.codecs.registry import make_codec
from store.column import Column
from store.rows import ViewRow
from store.spec import ColumnSpec, LevelSpec, ViewSetSpec
from store.store import Store
from tests.store import plain_reader

IMAGES, VIEWS, BAD = 19, 2, frozenset({4, 25})
LEVELS = (LevelSpec(components=6, height=3, width=2), LevelSpec(components=8, height=2, width=2))
COLUMNS = {"first": ("int8", "zarr"), "second": ("int4", "webdataset")}
CPU = torch.device("cpu")


class Row(NamedTuple):
    pixels: NDArray[np.uint8]
    label: NDArray[np.uint8]
    maps: dict[str, list[NDArray[np.float32]]]


class Place(NamedTuple):
    """A store's folder and what is to be read from it."""

    root: Path
    store: Store
    columns: dict[str, Column]

    def loader(self, *, batch: int, seed: int) -> Loader:
        views = self.store.view_set("views")
        return Loader(views, batch=batch, seed=seed, tasks=("sal",), targets=CachedTargets(self.columns))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("batches")
    store = Store.create(root)
    spec = ViewSetSpec(
        name="views", source={}, view={"size": [6, 5]}, images=IMAGES, views=VIEWS, rows_per_shard=4,
        order_seed=3, seed=0, dataset="scenes", tasks=("sal",),
    )  # fmt: skip
    views = store.create_view_set(spec)
    for part in range(spec.parts):
        views.write_part(part, [_view_row(row) for row in spec.part_rows(part)])
    columns = {}
    for name, (codec, backend) in COLUMNS.items():
        about = ColumnSpec(view_set="views", teacher=name, identity={}, levels=LEVELS, codec=make_codec(codec))
        column = columns[name] = store.create_column(about, backend=backend)
        for part in range(spec.parts):
            rng = np.random.default_rng((part, *name.encode()))
            shapes = [(len(spec.part_rows(part)), level.components, level.height, level.width) for level in LEVELS]
            maps = [rng.normal(0, 2, shape).astype(np.float32) for shape in shapes]
            column.write_part(part, column.spec.encode_levels(maps), keys=views.keys(part))
    return Place(root, store, columns)


def _view_row(row: int) -> ViewRow:
    view, key = row // IMAGES, f"k{row % IMAGES}"
    if row in BAD:
        return ViewRow(row=row, key=key, view=view, files={}, error="cannot be decoded")
    rng = np.random.default_rng(row)
    image, label = rng.integers(0, 256, (6, 5, 3), np.uint8), rng.integers(0, 2, (6, 5), np.uint8)
    return ViewRow(
        row=row, key=key, view=view, files=encode_sample(ImageSample(key=key, image=image, labels={"sal": label}))
    )


@pytest.fixture(scope="module")
def obvious(place: Place) -> dict[int, Row]:
    """Every row, read alone by tarfile and zarr and decoded by the format's page, with none of the store's code."""
    views = plain_reader.ViewSet(place.root, "views")
    columns = {name: plain_reader.Column(place.root, "views", column.name) for name, column in place.columns.items()}
    rows = {}
    for part in range(views.parts):
        files = views.files(part)
        for position, row in enumerate(views.part_rows(part)):
            if row not in BAD:
                pixels, label = (_image(files[f"{row:09d}.{name}"]) for name in ("png", "sal.png"))
                maps = {name: [level[position] for level in column.read(part)] for name, column in columns.items()}
                rows[row] = Row(pixels, label, maps)
    return rows


def _image(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)))


def check(batch: Batch, rows: dict[int, Row], place: Place) -> None:
    """Every tensor of a batch, decoded as the loss does, against the rows read one by one."""
    wanted = [rows[row] for row in batch.rows.tolist()]
    assert np.array_equal(batch.pixels.numpy(), np.stack([row.pixels.transpose(2, 0, 1) for row in wanted]))
    assert np.array_equal(batch.labels["sal"].numpy(), np.stack([row.label[None].astype(np.float32) for row in wanted]))
    decoded = CachedTargets(place.columns).targets(batch.encoded, batch.pixels)
    assert decoded.keys() == COLUMNS.keys()
    for name, maps in decoded.items():
        for level, found in enumerate(maps):
            expected = np.stack([row.maps[name][level] for row in wanted])
            np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-6)


@settings(max_examples=20)
@given(
    micro=st.integers(1, 2),
    world=st.sampled_from([1, 2, 4]),
    accumulate=st.integers(1, 2),
    seed=st.integers(0, 2**31),
    start=st.integers(0, 9),
    ahead=st.sampled_from([0, 1, 2000, 10**6]),
    readers=st.integers(1, 3),
)
@example(micro=1, world=1, accumulate=1, seed=0, start=0, ahead=0, readers=1)
def test_ranks_and_micro_batches_together_are_the_obvious_batch(
    place: Place, obvious: dict[int, Row], micro: int, world: int, accumulate: int, seed: int, start: int, ahead: int,
    readers: int,
) -> None:  # fmt: skip
    batch, stop = micro * world * accumulate, start + 3
    whole = place.loader(batch=batch, seed=seed)
    loading = LoaderConfig(ahead_bytes=ahead, readers=readers)
    steps: dict[int, list[int]] = {step: [] for step in range(start, stop)}
    for rank in range(world):
        split = Split(batch=batch, ranks=Ranks(rank=rank, world=world), accumulate=accumulate)
        # Its own view of the store: another process has its own.
        found = list(place.loader(batch=batch, seed=seed).batches(start, stop, split=split, loading=loading))
        assert [item.step for item in found] == [step for step in range(start, stop) for _ in range(accumulate)]
        for item in found:
            check(item, obvious, place)
            assert len(item.rows) == micro
            if item.share is not None:
                assert item.share == (len(steps[item.step]), batch)
            steps[item.step] += item.rows.tolist()
    assert steps == {step: whole.rows(step).tolist() for step in range(start, stop)}


@given(batch=st.sampled_from([1, 2, 6, 9, 18]), seed=st.integers(0, 2**31), epoch=st.integers(0, 3))
@settings(max_examples=15)
def test_every_row_comes_once_in_an_epoch_of_its_view(place: Place, batch: int, seed: int, epoch: int) -> None:
    loader = place.loader(batch=batch, seed=seed)
    steps = range(epoch * loader.steps_per_cycle, (epoch + 1) * loader.steps_per_cycle)
    seen = sorted(row for step in steps for row in loader.rows(step).tolist())
    view = epoch % VIEWS
    assert seen == sorted(set(range(view * IMAGES, (view + 1) * IMAGES)) - BAD)
