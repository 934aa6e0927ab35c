from __future__ import annotations

import shutil
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.calibration import column_codec
from pipeline.column_engine import Lane, Output, Overlap, fill_columns, overlap_of
from pipeline.columns import Wanted, measured_rows, settled_column
from pipeline.config import DataConfig, SourceConfig
from pipeline.features import load_pixels
from pipeline.fidelity import Fidelity
from pipeline.maps import LiveMaps
from pipeline.part_pixels import Batches
from pipeline.views import ViewSpec
from pipeline.viewsets import make_part, view_set_spec
from sak.teachers.model import load_teacher
from sak.teachers.spec import TeacherSpec
from store.codecs.registry import CodecChoice
from store.column import Column
from store.commits import PartCommit
from store.errors import CorruptShardError, StoreError
from store.store import Store
from store.viewset import ViewSet
from tests.tiny_recipe import NETWORK, STEM, files_of

BATCH = 3
ROWS = 14
TORN = (3, 9)
CODECS: dict[str, CodecChoice] = {
    "first": "fp32",
    "second": {"name": "int8", "scale": "float16"},
    "third": {"name": "klt", "error": 0.2, "rows": 8},
}
MISSING = {"first": {0, 1, 2}, "second": {1}, "third": {0, 2}}
OVERLAPS = {
    "in turn": Overlap(1),
    "in threads": Overlap(3),
    "ahead": Overlap(2, ahead=2),
    "behind": Overlap(1, behind=1),
    "all": Overlap(2, ahead=5, behind=2),
}


def spec_of(name: str) -> TeacherSpec:
    return TeacherSpec(
        name=name,
        timm=STEM,
        random=list(CODECS).index(name),
        levels=(0, 1, 2, 3),
        overrides={"img_size": 32, **NETWORK},
    )


@pytest.fixture(scope="module")
def teachers() -> dict[str, LiveMaps]:
    return {name: LiveMaps(load_teacher(spec_of(name))) for name in CODECS}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, teachers: dict[str, LiveMaps]) -> Path:
    """A store with views of 14 rows in shards of 6, two of them without an image, and three columns, empty."""
    folder = tmp_path_factory.mktemp("engine")
    (folder / "photos").mkdir()
    for number in range(ROWS):
        pixels = np.random.default_rng(number).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        path = folder / "photos" / f"p{number:02d}.png"
        Image.fromarray(pixels).save(path)
        if number in TORN:
            path.write_bytes(path.read_bytes()[:99])
    source = SourceConfig(name="imagefolder", root=str(folder / "photos"), split="all")
    data = DataConfig(
        source=source, view=ViewSpec(kind="full", size=32), rows_per_shard=6, on_error="skip", max_bad=0.5
    )
    store = Store.create(str(folder / "store"))
    view_set = store.create_view_set(view_set_spec(data, labels=False))
    for part in range(view_set.spec.parts):
        make_part(store.root.url, view_set.name, part, data)
    assert len(view_set.usable_rows()) == ROWS - len(TORN)
    for name, choice in CODECS.items():
        wanted = Wanted(spec_of(name), choice)
        settled_column(store, wanted, view_set=view_set.spec, fit=lambda w=wanted: fitted(view_set, teachers, w))
    return folder / "store"


def fitted(view_set: ViewSet, teachers: dict[str, LiveMaps], wanted: Wanted) -> Any:
    source = teachers[wanted.spec.name]
    levels = source.levels(view_set)
    return levels, column_codec(wanted.codec, source=source, view_set=view_set, levels=levels, batch=BATCH)


class Place:
    """A copy of the store to fill, and what the engine told."""

    def __init__(self, root: Path, teachers: dict[str, LiveMaps]) -> None:
        self.root, self.store = root, Store.open(str(root))
        (name,) = self.store.view_set_names()
        self.view_set = self.store.view_set(name)
        self.columns = {column.spec.teacher: column for column in self.store.columns(name)}
        self.teachers: dict[str, Any] = dict(teachers)
        self.rows: dict[str, int] = {}
        self.told: list[tuple[str, int, PartCommit]] = []
        self.caller = threading.get_ident()

    def fill(self, overlap: Overlap) -> None:
        outputs = [
            Output(self.teachers[name], self.columns[name], frozenset(missing)) for name, missing in MISSING.items()
        ]
        lane = Lane(overlap=overlap)
        fill_columns(self.view_set, outputs, batch=BATCH, advance=self.advance, finished=self.finished, lane=lane)

    def fill_part(self, name: str, part: int, lane: Lane) -> None:
        output = Output(self.teachers[name], self.columns[name], frozenset([part]))
        fill_columns(self.view_set, [output], batch=BATCH, advance=lambda *_: None, finished=lambda *_: None, lane=lane)

    def advance(self, name: str, rows: int) -> None:
        assert threading.get_ident() == self.caller
        self.rows[name] = self.rows.get(name, 0) + rows

    def finished(self, name: str, part: int, commit: PartCommit) -> None:
        assert threading.get_ident() == self.caller
        self.told.append((name, part, commit))

    def committed(self) -> dict[str, set[int]]:
        return {name: set(column.committed_parts()) for name, column in self.columns.items()}

    def stored(self) -> dict[str, bytes]:
        return {name: (self.root / name).read_bytes() for name in files_of(self.root) if "/costs/" not in name}


@pytest.fixture
def place(made: Path, teachers: dict[str, LiveMaps], tmp_path: Path) -> Place:
    shutil.copytree(made, tmp_path / "store")
    return Place(tmp_path / "store", teachers)


def slowly(place: Place) -> None:
    """The same, said as plainly as can be: one teacher, one part, one batch after the other."""
    for name, missing in MISSING.items():
        column = place.columns[name]
        for part in missing:
            index = place.view_set.index(part)
            good = [row.row for row in index if row.error is None]
            pixels = torch.zeros((len(index), 3, 32, 32), dtype=torch.uint8)
            for row in good:
                pixels[row - index[0].row] = load_pixels(place.view_set, [row])[0]
            chosen = measured_rows(torch.tensor([row.error is None for row in index]))
            batches, errors = [], [Fidelity() for _ in column.spec.levels]
            for first in range(0, len(index), BATCH):
                feats = place.teachers[name].maps(range(0), pixels[first : first + BATCH])
                batches.append(column.spec.encode_levels(feats))
                backs = column.spec.decode_levels(dict(enumerate(batches[-1])))
                at = [row - first for row in chosen if first <= row < first + BATCH]
                for error, feat, back in zip(errors, feats, backs, strict=True):
                    error.add(feat[at], back[at])
            levels = [
                {key: torch.cat([batch[level][key] for batch in batches]).numpy() for key in batches[0][level]}
                for level in range(4)
            ]
            stats = {
                f"level_{level}": found._asdict() for level, error in enumerate(errors) if (found := error.result())
            }
            column.write_part(part, levels, keys=[row.key for row in index], stats=stats)


@pytest.mark.parametrize("overlap", OVERLAPS.values(), ids=OVERLAPS)
def test_bytes_are_those_of_slow_code(
    place: Place, made: Path, teachers: dict[str, LiveMaps], tmp_path: Path, overlap: Overlap
) -> None:
    shutil.copytree(made, tmp_path / "slow")
    slow = Place(tmp_path / "slow", teachers)
    slowly(slow)
    place.fill(overlap)
    assert place.committed() == MISSING
    assert place.stored() == slow.stored()
    counts = {name: sum(len(place.view_set.spec.part_rows(part)) for part in parts) for name, parts in MISSING.items()}
    assert place.rows == counts
    assert {(name, part) for name, part, _ in place.told} == {
        (n, part) for n, parts in MISSING.items() for part in parts
    }
    for name, part, commit in place.told:
        assert commit == place.columns[name].commits.require([part])[0]
    assert not ours()


def ours() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("sak-ahead", "sak-behind"))]


class _Stop(Exception):
    pass


def failing(real: Any, at: int, error: type[BaseException]) -> Callable[..., Any]:
    calls = 0

    def call(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise error("stopped here")
        return real(*arguments, **options)

    return call


class _Failing:
    """A teacher that fails at its so many-th batch."""

    def __init__(self, real: LiveMaps, at: int, error: type[BaseException]) -> None:
        self.spec, self.device, self.reads_pixels = real.spec, real.device, True
        self.maps = failing(real.maps, at, error)


@pytest.mark.parametrize("overlap", OVERLAPS.values(), ids=OVERLAPS)
@pytest.mark.parametrize("error", [_Stop, KeyboardInterrupt])
def test_what_was_whole_before_a_teacher_failed_is_kept(
    place: Place, overlap: Overlap, error: type[BaseException]
) -> None:
    place.teachers["first"] = _Failing(place.teachers["first"], 4, error)
    with pytest.raises(error, match="stopped here"):
        place.fill(overlap)
    assert place.committed() == {"first": {0}, "second": set(), "third": {0}}
    assert not ours()
    place.teachers["first"] = LiveMaps(load_teacher(spec_of("first")))
    MISSING_NOW = {name: parts - place.committed()[name] for name, parts in MISSING.items()}
    outputs = [Output(place.teachers[n], place.columns[n], frozenset(parts)) for n, parts in MISSING_NOW.items()]
    fill_columns(
        place.view_set,
        outputs,
        batch=BATCH,
        advance=place.advance,
        finished=place.finished,
        lane=Lane(overlap=overlap),
    )
    assert place.committed() == MISSING


@pytest.mark.parametrize("overlap", OVERLAPS.values(), ids=OVERLAPS)
def test_of_two_errors_the_first_in_order_is_told(
    place: Place, overlap: Overlap, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full at the second write, and the teacher that comes after it fails as well."""

    class Full(StoreError):
        pass

    monkeypatch.setattr(Column, "write_part", failing(Column.write_part, 2, Full))
    place.teachers["first"] = _Failing(place.teachers["first"], 3, _Stop)
    with pytest.raises(Full, match="stopped here"):
        place.fill(overlap)
    assert place.committed()["first"] == {0}
    assert not ours()


@pytest.mark.parametrize("overlap", OVERLAPS.values(), ids=OVERLAPS)
def test_a_part_that_cannot_be_read_stops_there(place: Place, overlap: Overlap) -> None:
    tar = next(place.root.glob("views/*/images/part-00001.tar"))
    data = bytearray(tar.read_bytes())
    data[len(data) // 3] ^= 1
    tar.write_bytes(bytes(data))
    with pytest.raises(CorruptShardError, match="part-00001"):
        place.fill(overlap)
    assert place.committed() == {"first": {0}, "second": set(), "third": {0}}
    assert not ours()


def test_costs_tell_what_was_done(place: Place) -> None:
    place.fill(Overlap(1))
    column = place.columns["second"]
    spent = column.commits.spent(1)
    assert min(spent.total, spent.forward, spent.encode, spent.decode, spent.measure, spent.write) > 0
    assert spent.total >= spent.forward + spent.encode + spent.decode + spent.measure
    assert (spent.copy, spent.device_bytes, spent.host_bytes) == (0, 0, 0)
    assert spent.written_bytes == column.commits.require([1])[0].size
    first = place.columns["first"].commits.spent(1)
    tar = next(place.root.glob("views/*/images/part-00001.tar"))
    assert first.read > 0 == spent.read, "the first of several teachers reads for all"
    assert first.read_bytes > tar.stat().st_size + place.columns["first"].commits.require([1])[0].size


@pytest.mark.parametrize(
    ("usable", "expected"),
    [
        ([], []),
        ([False, True, False], [1]),
        ([True] * 9, [0, 1, 2, 3, 4, 5, 6, 7]),
        ([False, True] * 64, [1, 17, 33, 49, 65, 81, 97, 113]),
    ],
)
def test_rows_that_are_measured_are_spread_evenly(usable: Sequence[bool], expected: Sequence[int]) -> None:
    assert measured_rows(torch.tensor(usable, dtype=torch.bool)) == list(expected)
    assert len(measured_rows(torch.ones(256, dtype=torch.bool))) == 32


def test_on_a_cpu_only_writing_runs_beside_the_teacher() -> None:
    assert overlap_of(torch.device("cpu"), batch_bytes=1) == Overlap(torch.get_num_threads(), behind=1)
    beside = overlap_of(torch.device("cuda"), batch_bytes=64 << 20)
    assert beside.ahead == 4
    assert beside.behind > 0
    assert beside.pinned


class _Noting:
    """A teacher that notes when it begins and ends a batch."""

    def __init__(self, real: LiveMaps, steps: list[str]) -> None:
        self.spec, self.device, self.reads_pixels = real.spec, real.device, True
        self._real, self._steps = real, steps

    def maps(self, rows: Sequence[int], pixels: torch.Tensor) -> list[torch.Tensor]:
        self._steps.append("begin")
        found = self._real.maps(rows, pixels)
        self._steps.append("end")
        return found


@pytest.mark.parametrize("overlap", [Overlap(1, behind=1), Overlap(1, ahead=2, behind=2)])
def test_a_call_makes_way_where_the_next_has_something_to_do_beside_it(
    place: Place, overlap: Overlap, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: weakref.WeakSet[Batches] = weakref.WeakSet()

    class Watched(Batches):
        def __init__(self, stream: Iterator[Any], count: int) -> None:
            super().__init__(stream, count)
            held.add(self)

    monkeypatch.setattr("pipeline.part_pixels.Batches", Watched)
    steps: list[str] = []

    def leave() -> None:
        steps.append("left with pixels" if held else "left")

    place.teachers["first"] = _Noting(place.teachers["first"], steps)
    place.fill_part("first", 0, Lane(leave=leave, overlap=overlap))
    batches = ["begin", "end"] * 2
    assert steps == (["left with pixels", *batches] if overlap.ahead else [*batches, "left"])


def test_teachers_of_one_lane_run_one_call_at_a_time(place: Place) -> None:
    steps: list[str] = []
    place.teachers["first"] = _Noting(place.teachers["first"], steps)
    lane = Lane(overlap=Overlap(1, ahead=2, behind=2))
    calls = [threading.Thread(target=place.fill_part, args=("first", part, lane)) for part in range(3)]
    for call in calls:
        call.start()
    for call in calls:
        call.join()
    assert place.committed()["first"] == {0, 1, 2}
    assert steps == ["begin", "end"] * 5


@pytest.mark.gpu
@pytest.mark.parametrize("fits", [False, True])
def test_beside_a_gpu_the_bytes_are_those_of_steps_in_turn(made: Path, tmp_path: Path, fits: bool) -> None:
    """Streams, page-locked memory and threads against the same device with none of them."""
    gpu = torch.device("cuda")
    teachers = {name: LiveMaps(load_teacher(spec_of(name), device=gpu), fits=fits) for name in CODECS}
    places = []
    for name, overlap in (("turn", Overlap(1)), ("beside", overlap_of(gpu, batch_bytes=BATCH * 3 * 32 * 32))):
        shutil.copytree(made, tmp_path / name)
        places.append(Place(tmp_path / name, teachers))
        places[-1].fill(overlap)
    assert places[0].committed() == MISSING
    assert places[0].stored() == places[1].stored()
    spent = places[1].columns["first"].commits.spent(0)
    assert spent.device_bytes == 6 * 3 * 32 * 32
    assert spent.host_bytes > 0
