"""What a recipe's runs need of their stores, what of it is there, and what the rest will take; nothing is written.

Networks are counted without memory and a few images are drawn; no weights are loaded.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence

import torch

from pipeline.column_engine import behind_bytes, overlap_of
from pipeline.config import DataConfig, Study
from pipeline.loader import default_ahead
from pipeline.loop import steps_of
from pipeline.maps import EXACT, exact_column
from pipeline.needs import Need, needs
from pipeline.planning import Column, ColumnKey, Engine, Group, Plan, Stage, ViewKey, Views, Weights
from pipeline.readahead import Ahead
from pipeline.samples import image_bound, image_cost
from pipeline.sizes import RowSize, row_size
from pipeline.targets import find_column
from pipeline.viewsets import view_set_spec, view_size
from sak.errors import TeacherError
from sak.teachers.footprint import Footprint, footprint
from sak.teachers.identity import teacher_identity
from sak.teachers.spec import TeacherSpec
from store.codecs.base import LevelSpec
from store.codecs.registry import CodecChoice, choice_json, is_fitted, make_fitter
from store.column import Column as StoredColumn
from store.roots import open_root
from store.spec import ViewSetSpec
from store.store import Store
from store.viewset import ViewSet
from store.workers import processors

__all__ = ["Survey", "levels_of", "open_store", "survey"]

_COMMITS = 16  # of a column that is begun, to tell what its rows take


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """A plan without speeds, and what it takes to measure them: the data that each view set is drawn from."""

    plan: Plan
    data: dict[ViewKey, DataConfig]
    specs: dict[ViewKey, ViewSetSpec]


def survey(
    studies: Sequence[tuple[str, Study]], /, *, device: torch.device, done: bool = True, draw: bool = True
) -> Survey:
    """Look at the stores of labelled studies; every view set and column once, however many studies need it.

    Args:
        done: Look at what is complete as well; else only what is missing is counted, and nothing if nothing is.
        draw: Draw a few rows to know what images take; else that is a bound from their shape.

    Raises:
        PipelineError: A source cannot be read.
        TeacherError: A network takes no view of its size.
        StoreError: A store is damaged.
    """
    look = _Look(studies, done=done, draw=draw)
    groups: list[Group] = []
    stages: list[Stage] = []
    for label, study in studies:
        for need in needs(study):
            key = look.key(study, need)
            columns = tuple(look.column(key, study, name, codec) for name, codec in need.teachers.items())
            kept = tuple(column for column in columns if column in look.columns)
            groups.append(Group(key, kept))
            ahead = study.loader.ahead(default_ahead(), on_cpu=device.type == "cpu")
            stages += _stages(label, study, need, groups[-1], images=look.specs[key].images, ahead=ahead)
    plan = Plan(
        views=look.views,
        columns=look.columns,
        groups=tuple(dict.fromkeys(groups)),
        stages=tuple(stages),
        engine=_engine(studies[0][1], device),
    )
    return Survey(plan=plan, data=look.data, specs=look.specs)


class _Look:
    """What was found so far."""

    def __init__(self, studies: Sequence[tuple[str, Study]], *, done: bool, draw: bool) -> None:
        self._done, self._draw = done, draw
        self.data: dict[ViewKey, DataConfig] = {}
        self.specs: dict[ViewKey, ViewSetSpec] = {}
        self.columns: dict[ColumnKey, Column] = {}
        self._counted: dict[tuple[str, tuple[int, int]], Footprint] = {}
        for _, study in studies:
            for need in needs(study):
                spec, key = view_set_spec(need.data, labels=need.labels), self.key(study, need)
                if key not in self.specs or self.specs[key].views < spec.views:
                    self.specs[key], self.data[key] = spec, need.data
        stores = {key.store: open_store(key.store) for key in self.specs}
        self._stored = {key: _view_set(stores[key.store], spec) for key, spec in self.specs.items()}
        self._stores = stores
        self.views = {key: self._views(key) for key in self.specs}

    def key(self, study: Study, need: Need) -> ViewKey:
        """The view set of a need."""
        return ViewKey(study.store, view_set_spec(need.data, labels=need.labels).name)

    def column(self, key: ViewKey, study: Study, name: str, codec: CodecChoice) -> ColumnKey:
        """Look at a column, unless that was done."""
        spec = study.teachers[name].spec(name)
        found = _column_key(key, spec, codec)
        if found not in self.columns:
            item = self._column(key, spec, codec)
            if item is not None:
                self.columns[found] = item
        return found

    def _views(self, key: ViewKey) -> Views:
        spec, stored = self.specs[key], self._stored[key]
        missing, (height, width) = _missing(stored, spec), view_size(spec)
        wanted = self._draw and (missing or self._done)
        drawn, size = image_cost(self.data[key], spec) if wanted else image_bound(spec), _stored_size(stored)
        drawn = drawn if size is None else drawn._replace(stored=size)
        return Views(spec.rows, missing, min(spec.rows_per_shard, spec.images), 3 * height * width, drawn)

    def _column(self, key: ViewKey, spec: TeacherSpec, codec: CodecChoice) -> Column | None:
        """A column; None where it is complete, and those are not asked for."""
        views, view_set, weights = self.specs[key], self._stored[key], _weights(spec)
        store = self._stores[key.store] if view_set is not None and weights != "missing" else None
        stored = find_column(store, spec, view_set=views, codec=codec) if store else None
        missing = _missing(stored, views)
        if not missing and not self._done:
            return None
        planned = choice_json(codec)["name"] != EXACT and _column_key(key, spec, EXACT) in self.columns
        there = exact_column(store, spec, view_set=view_set, codec=codec) if store and view_set and missing else None
        exact = planned or there is not None
        # Whose teacher will not run need not be counted where just what is missing is asked.
        cost = _stored_cost(there) if there and not self._done else self._count(spec, view_size(views))
        fits = min(make_fitter(codec, levels_of(cost)).rows, views.images) if is_fitted(codec) and not stored else 0
        return Column(spec, codec, views.rows, missing, _size(stored, cost, codec), cost, exact, fits, weights)

    def _count(self, spec: TeacherSpec, view: tuple[int, int]) -> Footprint:
        key = repr(spec), view
        if key not in self._counted:
            self._counted[key] = footprint(spec, view=view)
        return self._counted[key]


def open_store(where: str, /) -> Store | None:
    """A store, where there is one.

    Raises:
        StoreError: It is damaged.
    """
    return None if open_root(where).stamp("store.json") is None else Store.open(where)


def levels_of(cost: Footprint, /) -> tuple[LevelSpec, ...]:
    """Shapes of a teacher's maps, as the store describes them."""
    return tuple(LevelSpec(components=channels, height=rows, width=columns) for channels, rows, columns in cost.maps)


def _stored_cost(column: StoredColumn) -> Footprint:
    """What reading a teacher's maps takes."""
    return Footprint(0, 0, (0, 0), tuple(level.shape for level in column.spec.levels), 0)


def _view_set(store: Store | None, spec: ViewSetSpec) -> ViewSet | None:
    if store is None or spec.name not in store.view_set_names():
        return None
    return store.view_set(spec.name, views=spec.views)


def _missing(stored: ViewSet | StoredColumn | None, spec: ViewSetSpec) -> int:
    """Rows that are not committed."""
    if stored is None:
        return spec.rows
    return sum(len(spec.part_rows(part)) for part in stored.missing_parts())


def _stored_size(stored: ViewSet | StoredColumn | None) -> float | None:
    """Bytes a row of what is committed already; None where nothing is."""
    parts = stored.committed_parts()[:_COMMITS] if stored else ()
    if stored is None or not parts:
        return None
    commits = stored.commits.require(parts)
    return sum(commit.size for commit in commits) / sum(len(commit.rows) for commit in commits)


def _column_key(key: ViewKey, spec: TeacherSpec, codec: CodecChoice) -> ColumnKey:
    return ColumnKey(key, spec.name, repr(spec), json.dumps(choice_json(codec), sort_keys=True))


def _size(stored: StoredColumn | None, cost: Footprint, codec: CodecChoice) -> RowSize:
    """What a row takes: as those that are stored, or else from its shapes."""
    counted, size = row_size(levels_of(cost), codec=codec), _stored_size(stored)
    if stored is None:
        return counted
    held = sum(array.spec.row_bytes for array in stored.arrays)
    return RowSize(counted.stored, held, counted.basis) if size is None else RowSize(size, held, "stored")


def _weights(spec: TeacherSpec) -> Weights:
    try:
        teacher_identity(spec)
    except TeacherError:
        return "missing"
    return "hub" if spec.pretrained else "here"


def _stages(label: str, study: Study, need: Need, group: Group, *, images: int, ahead: Ahead) -> Iterator[Stage]:
    """The training stage that a need is of, where that reads stored features."""
    config = {"distill": study.distill, "finetune": study.finetune}.get(need.purpose)
    if config is None or not group.columns:
        return
    drop_last, share = False, 1.0
    if need.purpose == "distill" and study.distill is not None:
        count, drop_last = study.distill.teachers_per_step, study.distill.drop_last
        share = 1.0 if count == "all" else count / len(need.teachers)
    steps = steps_of(config.steps, config.epochs, images=images, batch=config.batch, drop_last=drop_last)
    yield Stage(label, need.purpose, *group, steps * config.batch, config.batch, ahead, share)


def _engine(study: Study, device: torch.device) -> Engine:
    """How extraction runs; every run of a recipe is taken to ask for it as the first does."""
    config, cores = study.extract, processors()
    remote = config.scheduler is not None
    own = config.engine == "dask" and not remote
    workers = config.workers if own else 1
    most = cores
    if device.type == "cuda":
        most = torch.cuda.device_count() if device.index is None else 1
    # Workers of this machine share its processors out, so each is as fast as its share.
    threads = study.threads or (max(1, cores // config.workers) if own and device.type == "cpu" else 0)
    return Engine(
        device=device.type,
        accelerator=device.type != "cpu",
        processes=min(workers, max(1, most)),
        workers=workers,
        remote=remote,
        threads=threads,
        batch=config.batch_rows,
        fits=config.batch == "auto",
        drawing=1 if remote else min(config.workers, cores),
        behind=overlap_of(device, batch_bytes=1).behind,
        behind_bytes=behind_bytes(workers),
    )
