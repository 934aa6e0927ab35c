"""Extraction over a Dask cluster: this process makes view sets and columns, workers their parts.

A part's view comes first and its columns right after it, in one task for all teachers that lack it.
"""

from __future__ import annotations

import dataclasses
import functools
import uuid
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from pipeline.bad_rows import BadRows
from pipeline.calibration import in_batches, sample_rows, shares
from pipeline.cluster.attempt import anywhere
from pipeline.cluster.dask_cluster import DaskCluster
from pipeline.cluster.flight import Done, Job
from pipeline.cluster.work import FitShare, Place, Target, fit_share, make_columns, map_levels, target_of
from pipeline.columns import Wanted, settled_column
from pipeline.config import DataConfig
from pipeline.extraction_progress import ExtractionProgress
from pipeline.maps import exact_column, exact_maps
from pipeline.targets import find_column
from pipeline.tracking import CONSOLE
from pipeline.viewsets import make_part
from store.codecs.base import Codec, Fitter, LevelSpec
from store.codecs.registry import choose_codec, is_fitted, make_fitter
from store.column import Column
from store.store import Store
from store.viewset import ViewSet

__all__ = ["extract_over"]


class _Writer(NamedTuple):
    target: Target
    missing: frozenset[int]


def extract_over(
    cluster: DaskCluster,
    view_set: ViewSet,
    /,
    *,
    data: DataConfig,
    wanted: Sequence[Wanted],
    place: Place,
    progress: ExtractionProgress,
) -> bool:
    """Bring a view set and columns over it to done; whether anything was missing.

    Raises:
        BadImageError: A source image cannot be decoded (see ``on_error``).
        TooManyBadError: More images than are allowed cannot be used.
        TeacherError: A teacher's weights are absent or do not fit.
        PipelineError: Workers died, or the scheduler went away.
        StoreError: The store is damaged or cannot be written.
    """
    place = place._replace(store=anywhere(place.store))
    if data.source.root is not None:
        data = dataclasses.replace(data, source=dataclasses.replace(data.source, root=anywhere(data.source.root)))
    return _Extraction(cluster, view_set, data, place, progress).run(wanted)


class _Extraction:
    def __init__(
        self,
        cluster: DaskCluster,
        view_set: ViewSet,
        data: DataConfig,
        place: Place,
        progress: ExtractionProgress,
        /,
    ) -> None:
        self._cluster, self._view_set, self._data, self._place = cluster, view_set, data, place
        self._store, self._progress = Store.open(place.store), progress
        self._bad_rows = BadRows(view_set, data)

    def run(self, wanted: Sequence[Wanted]) -> bool:
        """See ``extract_over``."""
        self._bad_rows.check()
        absent = self._view_set.missing_parts()
        if absent:
            self._progress.begin_views(self._view_set, missing=absent, engine="dask")
        if absent and any(map(self._has_exact, wanted)):
            # What is made from an exact column is made over the images that that was made over.
            self._stream([self._view_job(part)] for part in absent)
        writers = [writer for item in wanted if (writer := self._writer(item)) is not None]
        missing = frozenset(self._view_set.missing_parts())
        parts = sorted(missing.union(*(writer.missing for writer in writers)))
        if not parts:
            return bool(absent)
        names = ", ".join([*["views"] * bool(missing), *(writer.target.spec.name for writer in writers)])
        CONSOLE.print(
            f"extract {names} over {self._view_set.name}: {len(parts)} shards to make on {self._cluster.name}"
        )
        self._stream(self._chain(part, part in missing, writers) for part in parts)
        bad = self._bad_rows.check()
        if missing and bad:
            CONSOLE.print(
                f"views {self._view_set.name}: {bad} rows left out; their reasons are in the index (sak store info)"
            )
        return True

    def _stream(self, chains: Iterator[Sequence[Job]]) -> None:
        for done in self._cluster.stream(chains, idle=self._progress.tick):
            for report in done.result if done.job.teacher else [done.result]:
                self._progress.landed(report, worker=done.worker)
            self._bad_rows.glance()

    def _chain(self, part: int, views: bool, writers: Sequence[_Writer]) -> list[Job]:
        """A part's view, if it is missing, and then its columns."""
        targets = [writer.target for writer in writers if part in writer.missing]
        name, chain = f"{self._view_set.name} shard {part}", []
        if views:
            chain.append(self._view_job(part))
        if targets:
            arguments = (self._place, targets, part)
            chain.append(Job(f"columns of {name}", make_columns, arguments, teacher=True, beside=True))
        return chain

    def _view_job(self, part: int) -> Job:
        arguments = (self._place.store, self._view_set.name, part, self._data)
        return Job(f"views {self._view_set.name} shard {part}", make_part, arguments, teacher=False)

    def _has_exact(self, wanted: Wanted) -> bool:
        device = torch.device("cpu")
        found = exact_maps(self._store, wanted.spec, codec=wanted.codec, view_set=self._view_set, device=device)
        return found is not None

    def _writer(self, wanted: Wanted) -> _Writer | None:
        """What is missing of a column, which is made first if need be."""
        store, spec = self._store, self._view_set.spec
        column = find_column(store, wanted.spec, view_set=spec, codec=wanted.codec)
        if column is not None and not column.missing_parts():
            return None
        exact = exact_column(store, wanted.spec, view_set=self._view_set, codec=wanted.codec)
        target = target_of(wanted.spec, exact="" if exact is None else exact.name)
        if exact is not None:
            CONSOLE.print(f"extract {wanted.spec.name}: encoded from its exact column; the teacher is not loaded")
        fit = functools.partial(self._fitted, wanted, target, exact)
        column = settled_column(store, wanted, view_set=spec, fit=fit)
        missing = frozenset(column.missing_parts())
        self._progress.begin_column(column, missing=missing)
        return _Writer(target._replace(column=column.name), missing)

    def _fitted(self, wanted: Wanted, target: Target, exact: Column | None) -> tuple[Sequence[LevelSpec], Codec]:
        if exact is not None:
            levels = exact.spec.levels
        else:
            label = f"maps of {wanted.spec.name}"
            levels = self._cluster.call(Job(label, map_levels, (self._place, target), teacher=True))
        if not is_fitted(wanted.codec):
            return levels, choose_codec(wanted.codec)
        fitter = make_fitter(wanted.codec, levels)
        rows = self._sample(fitter.rows)
        with self._progress.fitting(wanted.spec.name, wanted.codec):
            return levels, self._fit(fitter, target, rows)

    def _sample(self, count: int) -> list[int]:
        """The first usable rows, whose parts are made first."""
        spec = self._view_set.spec
        parts = min(spec.parts_per_view, -(-count // spec.rows_per_shard))
        while True:
            done = set(self._view_set.committed_parts())
            missing = [part for part in range(parts) if part not in done]
            self._stream([self._view_job(part)] for part in missing)
            rows = sample_rows(self._view_set, count)
            # Later parts may be there already, and earlier rows come first all the same.
            if parts == spec.parts_per_view or sum(row < spec.part_rows(parts - 1).stop for row in rows) >= count:
                return rows
            parts = min(spec.parts_per_view, 2 * parts)  # some rows were left out

    def _fit(self, fitter: Fitter, target: Target, rows: Sequence[int]) -> Codec:
        """``pipeline.calibration.fit_codecs`` over the cluster: the same shares, merged in the same order."""
        token, batches = uuid.uuid4().hex, in_batches(rows, self._place.batch)
        count, homes = len(shares(len(batches))), self._cluster.homes()
        label = f"fit codec of {target.spec.name}"
        with self._progress.step(label, total=fitter.passes * count, unit="shares") as advance:
            for number in range(fitter.passes):
                work = [
                    FitShare(self._place, target, token, batches, share, number + 1 == fitter.passes)
                    for share in range(count)
                ]
                state = fitter.part()
                # A share's worker keeps its maps from pass to pass.
                near = [homes[item.share % len(homes)] if homes else None for item in work]
                jobs = [
                    [Job(f"{label}, share {item.share}", fit_share, (item,), teacher=True, shared=state, home=home)]
                    for item, home in zip(work, near, strict=True)
                ]
                for done in _in_order(self._cluster.stream(jobs, idle=self._progress.tick)):
                    fitter.merge(done.result)
                    advance(1)
                fitter.end_pass()
        return fitter.codec()


def _in_order(found: Iterator[Done]) -> Iterator[Done]:
    """Results by the number of their share: float sums depend on the order of their terms."""
    early: dict[int, Done] = {}
    expected = 0
    for done in found:
        early[done.job.arguments[0].share] = done
        while expected in early:
            yield early.pop(expected)
            expected += 1
