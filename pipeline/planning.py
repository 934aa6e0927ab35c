"""What an extraction will take and save, from counts and measured speeds: pure arithmetic.

Units: bytes, seconds, rows a second; a row is one view of one image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from pipeline.loader import loader_bytes
from pipeline.readahead import Ahead
from pipeline.samples import Drawn
from pipeline.sizes import RowSize
from sak.teachers.footprint import Footprint
from sak.teachers.spec import TeacherSpec

__all__ = [
    "Column",
    "ColumnKey",
    "Engine",
    "Group",
    "Memory",
    "Payback",
    "Plan",
    "Seconds",
    "Speed",
    "Stage",
    "ViewKey",
    "Views",
    "Weights",
    "column_seconds",
    "extract_memory",
    "loader_memory",
    "payback",
    "read_bytes",
    "seconds",
    "view_seconds",
]

_FLOAT = 4
_COPIES = 2  # a shard's arrays, and the files that they become


class ViewKey(NamedTuple):
    """A view set of a store."""

    store: str
    name: str


class ColumnKey(NamedTuple):
    """A column of a view set: whose maps, made how, and encoded how."""

    views: ViewKey
    teacher: str
    made: str
    codec: str


class Views(NamedTuple):
    """A view set; ``images`` is what one of its rows costs.

    Attributes:
        pixels: Bytes of a row's image in memory.
    """

    rows: int
    missing: int
    shard_rows: int
    pixels: int
    images: Drawn


class Speed(NamedTuple):
    """Seconds a row: a teacher's forward (0 where its maps are stored), and encoding, with the check of its error.

    Attributes:
        encode: None where the codec could not be tried.
    """

    forward: float
    encode: float | None

    @property
    def total(self) -> float:
        """Both."""
        return self.forward + (self.encode or 0.0)


Weights: TypeAlias = Literal["here", "hub", "missing"]


class Column(NamedTuple):
    """One teacher's column.

    Attributes:
        spec: The teacher.
        codec: As the recipe gives it.
        cost: What one forward costs.
        exact: It is encoded from an exact column, so that no teacher runs.
        fits: Rows that its codec is still to be fitted to.
        weights: Where the teacher's are.
        speed: None where it was not measured.
    """

    spec: TeacherSpec
    codec: Any
    rows: int
    missing: int
    size: RowSize
    cost: Footprint
    exact: bool
    fits: int
    weights: Weights
    speed: Speed | None = None

    @property
    def missing_bytes(self) -> float:
        """Bytes that are to be written."""
        return self.missing * self.size.stored

    @property
    def native_bytes(self) -> int:
        """The same rows as plain float16."""
        return self.missing * 2 * self.cost.values


class Stage(NamedTuple):
    """A stage of a run that trains on stored features.

    Attributes:
        images: That it sees: steps times batch.
        columns: What it reads of each row.
        ahead: How much its loader reads ahead of its steps.
        share: Of its columns, how many a step takes, where that is not all.
    """

    run: str
    name: str
    views: ViewKey
    columns: tuple[ColumnKey, ...]
    images: int
    batch: int
    ahead: Ahead
    share: float = 1.0


class Group(NamedTuple):
    """Columns that one pass over a view set makes together."""

    views: ViewKey
    columns: tuple[ColumnKey, ...]


class Engine(NamedTuple):
    """How extraction runs.

    Attributes:
        accelerator: Whether teachers run on a device with memory of its own.
        processes: That run teachers as fast as if each were alone: one for each processor or GPU at most.
        workers: All that run teachers, and take memory.
        remote: They are a cluster's, on other machines.
        threads: Of each; 0 for torch's own choice.
        batch: Rows that a teacher sees at once.
        fits: Batches that memory does not hold are cut, so that one row must fit.
        drawing: Processes that make views side by side.
        behind: Encoded shards that are written while the next is made, as many as ``behind_bytes`` hold.
    """

    device: str
    accelerator: bool
    processes: int
    workers: int
    remote: bool
    threads: int
    batch: int
    fits: bool
    drawing: int
    behind: int
    behind_bytes: int

    @property
    def sharing(self) -> int:
        """Workers on one GPU."""
        return -(-self.workers // self.processes)

    def written(self, shard: int, /) -> int:
        """Shards of so many bytes that wait to be written, or are, while the next is made."""
        return min(self.behind, self.behind_bytes // max(1, shard))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What there is to do, and for whom."""

    views: Mapping[ViewKey, Views]
    columns: Mapping[ColumnKey, Column]
    groups: tuple[Group, ...]
    stages: tuple[Stage, ...]
    engine: Engine

    def disk(self, store: str, /) -> float:
        """Bytes that a store is to get: encoded features and images."""
        images = sum(item.missing * item.images.stored for key, item in self.views.items() if key.store == store)
        features = sum(item.missing_bytes for key, item in self.columns.items() if key.views.store == store)
        return images + features

    @property
    def rows(self) -> int:
        """Rows of all view sets and columns."""
        return sum(item.rows for item in self.views.values()) + sum(item.rows for item in self.columns.values())

    @property
    def rows_missing(self) -> int:
        """Those of them that are to be made."""
        views = sum(item.missing for item in self.views.values())
        return views + sum(item.missing for item in self.columns.values())

    @property
    def done(self) -> bool:
        """Whether nothing is missing."""
        return not self.rows_missing

    @property
    def stores(self) -> tuple[str, ...]:
        """Stores of the recipe's runs, each once."""
        return tuple(dict.fromkeys(key.store for key in self.views))


class Memory(NamedTuple):
    """Bytes of one process, by what they are for.

    ``weights`` and ``maps`` (activations of a batch, its maps, and what a fit keeps) are on the accelerator where there
    is one.
    """

    base: int
    pixels: int
    encoded: int
    weights: int
    maps: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self)

    @property
    def device(self) -> int:
        """What would be on an accelerator."""
        return self.weights + self.maps

    @property
    def host(self) -> int:
        """What would be beside one."""
        return self.total - self.device


def extract_memory(plan: Plan, /, *, base: int, keep: int) -> Memory:
    """The most that a process takes: over all view sets, with every missing teacher loaded and a shard in the making.

    Args:
        base: What the process holds before any of that.
        keep: Most bytes of maps that a fit keeps between its passes.
    """
    found = [_group_memory(plan, group, base=base, keep=keep) for group in plan.groups] or [Memory(base, 0, 0, 0, 0)]
    if not plan.engine.accelerator:
        return max(found, key=lambda item: item.total)
    # Both memories must hold whatever comes, be it of different view sets.
    host, device = max(found, key=lambda item: item.host), max(found, key=lambda item: item.device)
    return host._replace(weights=device.weights, maps=device.maps)


def _group_memory(plan: Plan, group: Group, *, base: int, keep: int) -> Memory:
    views = plan.views[group.views]
    missing = [item for item in (plan.columns[key] for key in group.columns) if item.missing]
    if not missing:
        # Shards of images as they are drawn: encoded, and once more as a tar.
        size = int(_COPIES * views.shard_rows * views.images.stored) if views.missing else 0
        return Memory(base, size, 0, 0, 0)
    live = {repr(item.spec): item.cost for item in missing if not item.exact}
    batch = 1 if plan.engine.fits else min(plan.engine.batch, views.shard_rows)
    # Maps of a batch, and those decoded to see what the codec lost.
    maps = max(
        batch * (2 * _FLOAT * item.cost.values + (0 if item.exact else item.cost.activations)) for item in missing
    )
    fit = max(min(keep, item.fits * _FLOAT * item.cost.values) for item in missing)
    encoded = [int(views.shard_rows * item.size.held) for item in missing]
    return Memory(
        base=base,
        pixels=views.shard_rows * views.pixels,
        encoded=max((_COPIES + plan.engine.written(shard)) * shard for shard in encoded),
        weights=sum(cost.parameters * _FLOAT for cost in live.values()),
        maps=maps + fit,
    )


def loader_memory(plan: Plan, /) -> int:
    """The most that batches of a training stage take beside the student, encoded features included."""
    found = [
        loader_bytes(
            plan.views[stage.views].rows,
            batch=stage.batch,
            image=int(plan.views[stage.views].images.decoded),
            encoded=int(sum(plan.columns[key].size.held for key in stage.columns)),
            ahead=stage.ahead,
        )
        for stage in plan.stages
    ]
    return max(found, default=0)


def read_bytes(plan: Plan, stage: Stage, /) -> float:
    """Bytes that a stage reads for each image on average: what is stored of its teachers, and the image."""
    features = sum(plan.columns[key].size.stored for key in stage.columns)
    return stage.share * features + plan.views[stage.views].images.stored


class Seconds(NamedTuple):
    """How long it takes on this machine, or one of a cluster's workers; None where a speed is not known."""

    views: float | None
    columns: float | None


def seconds(plan: Plan, /) -> Seconds:
    """Time to make what is missing, the processes of this machine side by side."""
    drawing = [view_seconds(item, processes=1) for item in plan.views.values()]
    making = [column_seconds(item, processes=1) for item in plan.columns.values()]
    return Seconds(_sum(drawing, share=plan.engine.drawing), _sum(making, share=plan.engine.processes))


def view_seconds(views: Views, /, *, processes: int) -> float | None:
    """Time to make what is missing of a view set."""
    if not views.missing:
        return 0.0
    return None if views.images.seconds is None else views.missing * views.images.seconds / processes


def column_seconds(column: Column, /, *, processes: int) -> float | None:
    """Time to make what is missing of a column."""
    if not column.missing:
        return 0.0
    return None if column.speed is None else column.missing * column.speed.total / processes


def _sum(parts: Sequence[float | None], *, share: int) -> float | None:
    known = [part for part in parts if part is not None]
    return sum(known) / share if len(known) == len(parts) else None


class Payback(NamedTuple):
    """Student runs after which making the columns has cost less than running teachers in each.

    Attributes:
        runs: None where no run reads a teacher.
        extraction: What all columns cost, those that are there included.
        online: What teachers would cost in a run, on average over the recipe's.
        unit: ``s``, or ``MAC`` where speeds are not known: then encoding counts nothing.
    """

    runs: float | None
    extraction: float
    online: float
    unit: Literal["s", "MAC"]


def payback(plan: Plan, /) -> Payback:
    """Cost of all views of all columns, against steps x batch x teachers' forwards of each run."""
    timed = all(item.speed for item in plan.columns.values()) and not all(item.exact for item in plan.columns.values())
    forward = _forwards(plan, timed=timed)
    extraction = sum(
        item.rows * (item.speed.total if timed and item.speed else 0.0 if item.exact else float(item.cost.macs))
        for item in plan.columns.values()
    )
    runs = {stage.run for stage in plan.stages}
    online = sum(stage.images * stage.share * sum(forward[key] for key in stage.columns) for stage in plan.stages)
    mean = online / len(runs) if runs else 0.0
    return Payback(extraction / mean if mean else None, extraction, mean, "s" if timed else "MAC")


def _forwards(plan: Plan, *, timed: bool) -> dict[ColumnKey, float]:
    """What a live teacher would cost for a row, for a column that is encoded from an exact one as well."""
    if not timed:
        return {key: float(item.cost.macs) for key, item in plan.columns.items()}
    live = {
        (repr(item.spec), item.cost.input): item.speed.forward
        for item in plan.columns.values()
        if item.speed and not item.exact
    }
    rates = [item.speed.forward / item.cost.macs for item in plan.columns.values() if item.speed and not item.exact]
    # A teacher that ran nowhere here costs by its arithmetic what the others cost.
    mean = sum(rates) / len(rates) if rates else 0.0
    return {
        key: live.get((repr(item.spec), item.cost.input), mean * item.cost.macs) for key, item in plan.columns.items()
    }
