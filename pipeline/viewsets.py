"""From a source and a kind of view to the rows of a view set.

``make_part`` is a whole unit of work (decode, draw, apply, encode, commit) that any process can do alone.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from pipeline.config import DataConfig, SourceConfig, Study
from pipeline.errors import BadImageError, NotDoneError, PipelineError
from pipeline.images.registry import SourceRequest, open_source
from pipeline.images.sample import ImageSample, ImageSource
from pipeline.part_report import OF_VIEWS, PartReport, bad_images, report_of
from pipeline.pixels import encode_sample
from pipeline.views import ViewDraw, apply_view, draw_view
from store.commits import CommitLog
from store.costs import Spent
from store.errors import StoreError
from store.order import row_samples
from store.rows import ViewRow
from store.spec import ViewSetSpec
from store.store import Store
from store.viewset import ViewSet

__all__ = [
    "VIEWS",
    "Drawn",
    "Remade",
    "cached_source",
    "complete_views",
    "draw_rows",
    "draw_sample",
    "end_with_parent",
    "make_part",
    "record_digest",
    "remake_part",
    "view_set_spec",
    "view_size",
]

# Raise it whenever the same configuration and source would give other rows: other draws, pixels, labels, encodings.
VIEWS = 1


@lru_cache(maxsize=8)
def cached_source(config: SourceConfig, /) -> ImageSource:
    """The source of a configuration, opened once in each process."""
    return open_source(
        SourceRequest(
            name=config.name,
            root=config.root,
            split=config.split,
            size=config.size_hw,
            images=config.images,
            seed=config.seed,
            key=config.key,
        )
    )


def view_set_spec(data: DataConfig, /, *, labels: bool) -> ViewSetSpec:
    """The view set that this data configuration means; its name ends in a digest of everything that shapes its rows.

    No training seed is in it: studies that differ in theirs read the same rows, and so the same columns. Nor is the
    number of views: one with more is the same one, appended to.
    """
    source = cached_source(data.source)
    about = {"name": data.source.name, "split": data.source.split, "fingerprint": source.fingerprint()}
    kind = f"{data.source.name}-{data.source.split}-{data.view.kind}"
    spec = ViewSetSpec(
        name=kind,
        source=about | {"views": VIEWS},
        view=data.view.to_json(),
        images=len(source.keys()),
        views=data.views,
        rows_per_shard=data.rows_per_shard,
        order_seed=data.seed,
        seed=data.seed,
        dataset=source.dataset if labels else "",
        tasks=tuple(source.tasks) if labels else (),
    )
    return dataclasses.replace(spec, name=f"{kind}-{spec.with_views(1).fingerprint[:8]}")


def view_size(spec: ViewSetSpec, /) -> tuple[int, int]:
    """Height and width of a view set's images."""
    height, width = spec.view["size"]
    return int(height), int(width)


def complete_views(study: Study, data: DataConfig, /, *, labels: bool) -> ViewSet:
    """The stored view set of a data configuration: the views it asks for, however many the store has.

    Raises:
        MissingColumnError: It is absent.
        NotDoneError: It is incomplete.
    """
    spec = view_set_spec(data, labels=labels)
    view_set = Store.open(study.store).view_set(spec.name, views=spec.views)
    if view_set.missing_parts():
        lacks = f"{len(view_set.missing_parts())} of {view_set.spec.parts} shards"
        raise NotDoneError(f"store {study.store}: view set {view_set.name} lacks {lacks}")
    return view_set


def make_part(root: str, name: str, part: int, data: DataConfig) -> PartReport:
    """Make and commit one part of a view set.

    Raises:
        BadImageError: An image or label cannot be decoded and ``data.on_error`` is ``stop``. With ``skip`` the row is
            recorded with its reason and left out by every reader.
    """
    start = time.perf_counter()
    view_set = Store.open(root).view_set(name)
    rows = draw_rows(data, view_set.spec, numbers=view_set.spec.part_rows(part))
    spent = Spent(time.perf_counter() - start)
    commit = view_set.write_part(part, rows, spent=spent)
    return report_of(OF_VIEWS, part, commit, spent=spent, bad=bad_images(rows))


def record_digest(log: CommitLog, part: int, /) -> str | None:
    """SHA-256 of a part's record as it is now; None where there is none, or it is damaged."""
    try:
        return log.load(part).digest()
    except StoreError:
        return None


class Remade(NamedTuple):
    """A part of a view set that was made again.

    Attributes:
        changed: It differs from what its record said before.
        problem: Why it was left as it was instead.
    """

    part: int
    rows: int
    changed: bool = False
    problem: str | None = None


def remake_part(root: str, name: str, part: int, data: DataConfig, *, agreed: Mapping[int, Collection[str]]) -> Remade:
    """Make a damaged part again, unless its rows turn out other than something that cannot be remade was made from.

    Args:
        agreed: Part to digests that its new record must have.
    """
    start = time.perf_counter()
    view_set = Store.open(root).view_set(name)
    count = len(view_set.spec.part_rows(part))
    try:
        rows = draw_rows(data, view_set.spec, numbers=view_set.spec.part_rows(part))
        digest = view_set.planned_commit(part, rows).digest()
        if any(digest != other for other in agreed.get(part, ())):
            return Remade(part, count, problem="its images give other rows than a column over it was made from")
        before = record_digest(view_set.commits, part)
        view_set.discard(part)
        view_set.write_part(part, rows, spent=Spent(time.perf_counter() - start))
    except (PipelineError, StoreError) as error:
        return Remade(part, count, problem=str(error))
    return Remade(part, count, changed=before not in (None, digest))


def draw_rows(data: DataConfig, spec: ViewSetSpec, /, *, numbers: Sequence[int]) -> list[ViewRow]:
    """Make rows of a view set in memory: a pure function of the configuration and the source's images.

    Raises:
        BadImageError: As ``make_part``.
    """
    keys = cached_source(data.source).keys()
    where = row_samples(spec, rows=list(numbers))
    rows = []
    for row, image, view in zip(numbers, where.image.tolist(), where.view.tolist(), strict=True):
        try:
            rows.append(_row(data, spec, row=row, image=image, view=view))
        except BadImageError as error:
            if data.on_error == "stop":
                raise BadImageError(f"{error}; mend or remove it, or set on_error: skip to leave it out") from error
            rows.append(ViewRow(row=row, key=keys[image], view=view, files={}, error=_reason(error, data.source)))
    return rows


def _reason(error: BadImageError, source: SourceConfig) -> str:
    """Why a row is left out, with paths below the source's folder: equal data give equal stores wherever they lie."""
    root = Path(source.root or "").expanduser()
    return str(error) if root == Path() else str(error).replace(f"{root}{os.sep}", "")


def end_with_parent() -> None:
    """End this worker with the process that started it: a killed run must leave none behind.

    Here and not beside the pool, so that a worker imports this module and no torch.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, name="sak-parent-watch", daemon=True).start()


class Drawn(NamedTuple):
    """One view of an image, and how it was cut."""

    sample: ImageSample
    draw: ViewDraw


def draw_sample(data: DataConfig, spec: ViewSetSpec, /, *, image: int, view: int) -> Drawn:
    """Draw one view of one image of the source.

    Raises:
        BadImageError: The image cannot be decoded.
    """
    # A multitask crop is chosen by the labels it holds, so it reads them even where none are kept.
    labels = bool(spec.tasks) or data.view.kind == "multitask"
    sample = cached_source(data.source).read(image, labels=labels)
    draw = draw_view(data.view, seed=spec.seed, key=sample.key, view=view, sample=sample)
    return Drawn(apply_view(draw, sample if spec.tasks else dataclasses.replace(sample, labels={})), draw)


def _row(data: DataConfig, spec: ViewSetSpec, *, row: int, image: int, view: int) -> ViewRow:
    seen, draw = draw_sample(data, spec, image=image, view=view)
    return ViewRow(row=row, key=seen.key, view=view, files=encode_sample(seen), draw=draw.to_dict(), label=seen.label)
