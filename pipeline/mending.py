"""Making damaged things again, by the code that made them, whenever it is given all that they were made from."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby

import torch

from pipeline.columns import encode_part
from pipeline.damage import Item, Rank, newer_record
from pipeline.descriptions import is_describable, write_column_description, write_view_set_description
from pipeline.errors import PipelineError
from pipeline.makers import Makers, TeacherMaker
from pipeline.maps import EXACT, LiveMaps, MapSource, exact_maps
from pipeline.part_pixels import PartPixels, part_pixels
from pipeline.pool import parts_done
from pipeline.runtime import pick_device, torch_threads
from pipeline.tracking import progress_bar
from pipeline.viewsets import record_digest, remake_part
from sak.errors import SakError
from store.column import Column
from store.commits import part_name
from store.errors import StoreError
from store.store import Store

__all__ = ["Mender", "describe"]

_REFUSALS = (PipelineError, SakError, StoreError)
_CHANGED = "; its bytes are not those of before, and experiments that read them will refuse to go on"


class Mender:
    """Mends one store with what a recipe can make.

    Attributes:
        store: The store; opened anew after each change, so that nothing read before is believed.
        lines: What was done.
    """

    def __init__(self, store: Store, makers: Makers, /) -> None:
        self.store = store
        self.lines: list[str] = []
        self._makers = makers
        self._teachers: dict[str, LiveMaps] = {}

    def refusal(self, item: Item, /) -> str | None:
        """Why something cannot be made again; None where it may be tried."""
        newer = newer_record(self.store.root, item)
        if newer is not None:
            return f"{newer} is of a newer sak; upgrade this one"
        try:
            return self._lack(item)
        except StoreError as error:
            return str(error)

    def mend(self, items: Sequence[Item], /) -> dict[Item, str | None]:
        """Mend things of one rank; returns why each was left as it was, or None."""
        reasons = {item: self.refusal(item) for item in items}
        todo = [item for item, reason in reasons.items() if reason is None]
        if not todo:
            return reasons
        rank = todo[0].rank
        if rank == Rank.VIEW_PART:
            reasons |= self._view_parts(todo)
        elif rank == Rank.COLUMN_PART:
            reasons |= self._column_parts(todo)
        else:
            reasons |= {item: self._file(item) for item in todo}
        self.store = Store.open(self.store.root.url)
        return reasons

    def touched(self, item: Item, /) -> Iterator[str]:
        """Files and folders to verify after something was mended: what it is, and what was made from it."""
        if item.rank in (Rank.COST, Rank.COLUMN):
            yield item.folder
        elif item.rank == Rank.VIEWS:
            yield from (item.folder, f"columns/{item.views}")
        elif item.rank == Rank.VIEW_PART:
            name = part_name(item.part)
            files = (f"commits/{name}.json", f"images/{name}.tar", f"index/{name}.parquet", f"costs/{name}.json")
            yield from (f"{item.folder}/{path}" for path in files)
            yield from (f"columns/{item.views}/{column}/commits/{name}.json" for column in self._committed_over(item))
        elif item.rank == Rank.COLUMN_PART:
            column = self.store.column(item.views, item.column)
            yield from (column.commits.path(item.part), column.commits.cost_path(item.part))
            yield from (f"{item.folder}/{path}" for path in column.part_files(item.part))
        else:
            raise AssertionError(item.rank)

    def _lack(self, item: Item) -> str | None:
        if item.rank == Rank.COST:
            return None
        if item.rank in (Rank.VIEWS, Rank.VIEW_PART):
            return None if self._makers.of_views(item.views) else self._makers.lack("data")
        if item.rank == Rank.COLUMN:
            known = is_describable(self.store, item.views, item.column, makers=self._makers)
            return None if known else self._makers.lack("teacher")
        if item.rank == Rank.COLUMN_PART:
            column = self.store.column(item.views, item.column)
            return None if self._makers.of_column(column) else self._makers.lack("teacher and codec")
        raise AssertionError(item.rank)

    def _file(self, item: Item) -> str | None:
        try:
            if item.rank == Rank.COST:
                self.store.root.remove(item.folder)
                self.lines.append(f"removed {item.folder}: how long that shard took is lost")
                return None
            if item.rank == Rank.VIEWS:
                maker = self._makers.of_views(item.views)
                assert maker is not None
                write_view_set_description(self.store, maker.spec)
            else:
                write_column_description(self.store, item.views, item.column, makers=self._makers, load=self._teacher)
        except _REFUSALS as error:
            return str(error)
        self.lines.append(f"rewrote the description of {describe(self.store, item)}")
        return None

    def _view_parts(self, items: Sequence[Item]) -> dict[Item, str | None]:
        reasons: dict[Item, str | None] = {}
        with progress_bar("rows") as bar:
            for name, some in groupby(items, key=lambda item: item.views):
                wanted = {item.part: item for item in some}
                view_set = self.store.view_set(name)
                maker = self._makers.of_views(name)
                assert maker is not None
                total = sum(len(view_set.spec.part_rows(part)) for part in wanted)
                shown = bar.add_task(f"views {name}", total=total)
                make = functools.partial(remake_part, agreed=self._agreed(wanted))
                workers = min(maker.workers, len(wanted))
                with torch_threads(maker.threads):
                    for made in parts_done(make, view_set, list(wanted), data=maker.data, workers=workers):
                        bar.advance(shown, made.rows)
                        reasons[wanted[made.part]] = made.problem
                        if made.problem is None:
                            self._remade(wanted[made.part], changed=made.changed)
        return reasons

    def _agreed(self, wanted: Mapping[int, Item]) -> dict[int, frozenset[str]]:
        """For each part the digests that columns hold of its record which this recipe could not make again."""
        return {part: frozenset(self._held(item)) for part, item in wanted.items()}

    def _held(self, item: Item) -> Iterator[str]:
        for name in self._committed_over(item):
            try:
                column = self.store.column(item.views, name)
                held = column.commits.load(item.part).view_commit
            except StoreError:
                continue
            if held is not None and self._makers.of_column(column) is None:
                yield held

    def _committed_over(self, item: Item) -> list[str]:
        """Columns that have a part, by name."""
        record = f"commits/{part_name(item.part)}.json"
        columns = self.store.column_names(item.views)
        return [name for name in columns if self.store.root.exists(f"columns/{item.views}/{name}/{record}")]

    def _column_parts(self, items: Sequence[Item]) -> dict[Item, str | None]:
        reasons: dict[Item, str | None] = {}
        with progress_bar("rows") as bar:
            total = sum(len(self.store.view_set(item.views).spec.part_rows(item.part)) for item in items)
            shown = bar.add_task("columns", total=total)
            ordered = sorted(items, key=lambda item: (item.views, item.part, not self._is_exact(item), item.folder))
            for _, some in groupby(ordered, key=lambda item: (item.views, item.part)):
                pixels: PartPixels | None = None  # one decode of a part's pixels feeds all of its columns
                for item in some:
                    column = self.store.column(item.views, item.column)
                    maker = self._makers.of_column(column)
                    assert maker is not None
                    try:
                        pixels = pixels or part_pixels(column.view_set, item.part, batch=maker.batch)
                        with torch_threads(maker.threads):
                            self._column_part(item, column, maker, pixels, functools.partial(bar.advance, shown))
                        reasons[item] = None
                    except torch.OutOfMemoryError:
                        reasons[item] = f"no memory for {maker.batch} rows at a time; lower extract.batch, or take auto"
                    except _REFUSALS as error:
                        reasons[item] = str(error)
        return reasons

    def _is_exact(self, item: Item) -> bool:
        """Whether other columns can be made from this one, so that it comes first."""
        return self.store.column(item.views, item.column).spec.codec.name == EXACT

    def _column_part(
        self, item: Item, column: Column, maker: TeacherMaker, pixels: PartPixels, done: Callable[[int], object]
    ) -> None:
        part = item.part
        made = encode_part(self._source(maker, column, part), column.spec, pixels, done=done)
        # Nothing is removed before what takes its place is there.
        before = record_digest(column.commits, part)
        column.discard(part)
        keys = column.view_set.keys(part)
        commit = column.write_part(part, made.levels, keys=keys, stats=made.stats, spent=made.spent)
        self._remade(item, changed=before not in (None, commit.digest()))

    def _source(self, maker: TeacherMaker, column: Column, part: int) -> MapSource:
        """A sound part of the teacher's exact column, which other codecs' columns are made from, or the teacher."""
        device = pick_device(maker.device)
        try:
            source = exact_maps(self.store, maker.spec, codec=maker.codec, view_set=column.view_set, device=device)
            if source is not None:
                source.column.check_join_part(column.view_set, part)  # made from the images that are there now
                source.column.check_content(part)
                return source
        except StoreError:  # damaged or not all there: then it is no witness
            pass
        return self._teacher(maker)

    def _remade(self, item: Item, *, changed: bool) -> None:
        self.lines.append(f"remade {describe(self.store, item)}{_CHANGED if changed else ''}")

    def _teacher(self, maker: TeacherMaker) -> LiveMaps:
        """A teacher, built when something of it is to be made and kept for what else is."""
        key = f"{maker.device} {maker.fits} {maker.spec!r}"
        if key not in self._teachers:
            self._teachers[key] = maker.load()
        return self._teachers[key]


def describe(store: Store, item: Item, /) -> str:
    """Something damaged in words: its folder, and for a part its number and rows."""
    if item.part < 0:
        return item.folder
    try:
        rows = store.view_set(item.views).spec.part_rows(item.part)
    except StoreError:
        return f"{item.folder} part {item.part}"
    return f"{item.folder} part {item.part}, rows {rows.start}-{rows.stop - 1}"
