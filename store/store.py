"""A store: view sets, and the columns that teachers added to them."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from store.backends.base import Backend
from store.backends.registry import backend_of
from store.column import Column
from store.commits import CommitLog, digest_objects, locate_part
from store.document import MAX_DOCUMENT_BYTES, parse_document, render_document
from store.errors import ConflictError, FormatError, MissingColumnError
from store.layout import column_files, load_record
from store.root import Root, check_name
from store.roots import open_root
from store.spec import ColumnSpec, ViewSetSpec
from store.viewset import ReadOptions, ViewSet

__all__ = ["Store"]

_RECORD = "store.json"
_MANY_PARTS = 1024


class Store:
    """A root folder that holds view sets and columns.

    Use ``Store.open`` or ``Store.create``.
    """

    def __init__(self, root: Root, *, options: ReadOptions) -> None:
        self.root = root
        self._options = options
        self._kept: dict[tuple[str, str], Column] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[object, ...]:
        return (_reopen, (self.root, self._options))

    @classmethod
    def open(cls, root: str | os.PathLike[str], /, *, options: ReadOptions | None = None) -> Store:
        """Open a store that exists.

        Raises:
            FormatError: There is none, or a newer sak made it.
            CorruptShardError: ``store.json`` has changed.
        """
        options = options or ReadOptions()
        opened = open_root(root, cache_bytes=options.cache_bytes)
        if opened.stamp(_RECORD) is None:
            raise FormatError(f"{opened.url}: expected a store, found no {_RECORD}; sak extract makes one")
        data = opened.read_bytes(_RECORD, max_bytes=MAX_DOCUMENT_BYTES)
        parse_document(data, kind="store", where=opened.where(_RECORD))
        return cls(opened, options=options)

    @classmethod
    def create(cls, root: str | os.PathLike[str], /, *, options: ReadOptions | None = None) -> Store:
        """Open a store, made first where there is none.

        Raises:
            FormatError: The folder holds something else, or a store of a newer version.
            StoreError: The disk is full or fails.
        """
        target = open_root(root)
        if target.stamp(_RECORD) is None:
            target.prepare()
            target.write_atomic(_RECORD, render_document("store", {"created_by": "sak"}))
        target.clean(None)
        return cls.open(root, options=options)

    def view_set_names(self) -> tuple[str, ...]:
        """Names of all view sets, sorted; opens none, so that damage to one hides no other."""
        names = self.root.names("views")
        return tuple(name for name in names if self.root.exists(f"views/{name}/view_set.json"))

    def column_names(self, view_set: str) -> tuple[str, ...]:
        """Names of a view set's columns, sorted; opens none. Empty where there is no such view set.

        Raises:
            FormatError: The name is not safe.
        """
        folder = f"columns/{check_name(view_set, what='view set name')}"
        names = self.root.names(folder)
        return tuple(name for name in names if self.root.exists(f"{folder}/{name}/column.json"))

    def view_sets(self) -> tuple[ViewSet, ...]:
        """All view sets, by name.

        Raises:
            StoreError: One of them is damaged.
        """
        return tuple(self.view_set(name) for name in self.view_set_names())

    def view_set(self, name: str, *, views: int | None = None) -> ViewSet:
        """One view set, or just its first so many views: whoever reads those need not know how many are stored.

        Raises:
            MissingColumnError: There is none of that name; lists those there are.
            FormatError: The name is not safe, or the description is malformed.
        """
        check_name(name, what="view set name")
        if not self.root.exists(f"views/{name}/view_set.json"):
            found = ", ".join(self.root.names("views")) or "none"
            raise MissingColumnError(f"{self.root.url}: no view set {name!r}, found {found}")
        return ViewSet(self.root, name, views=views, options=self._options)

    def columns(self, view_set: str) -> tuple[Column, ...]:
        """All columns of a view set, by name.

        Raises:
            MissingColumnError: There is no such view set.
            StoreError: One of them is damaged.
        """
        views = self.view_set(view_set)
        return tuple(
            Column(self.root, name, view_set=views, options=self._options) for name in self.column_names(view_set)
        )

    def column(self, view_set: str, name: str, *, views: int | None = None) -> Column:
        """One column, or what it holds of the first so many views.

        Raises:
            MissingColumnError: There is none of that name; lists those there are.
            FormatError: The name is not safe, or the description is malformed.
        """
        check_name(name, what="column name")
        seen = self.view_set(view_set, views=views)
        found = self.column_names(view_set)
        if name not in found:
            raise MissingColumnError(
                f"{self.root.url}: view set {view_set} has no column {name!r}, found {', '.join(found) or 'none'}"
            )
        return Column(self.root, name, view_set=seen, options=self._options)

    def create_view_set(self, spec: ViewSetSpec, /) -> ViewSet:
        """Make a view set, or return the one there is; clears away what writers that died left.

        Of one with fewer views the others are appended, as ``extend_view_set`` does; of one with more those asked for
        are returned.

        Raises:
            FormatError: One of that name has another spec; names the fields that differ.
            StoreError: The disk is full or fails.
        """
        folder = f"views/{spec.name}"
        with self.root.lock(folder):
            self.root.clean(folder)
            if not self.root.exists(f"{folder}/view_set.json"):
                with self._unless_made(f"{folder}/view_set.json"):
                    self.root.write_atomic(f"{folder}/view_set.json", render_document("view_set", spec.to_json()))
            stored = self.view_set(spec.name).stored
            old, new = stored.to_json(), spec.with_views(stored.views).to_json()
            differing = [f"{name} ({old[name]!r} there, {new[name]!r} asked)" for name in new if old[name] != new[name]]
            if differing:
                raise FormatError(
                    f"{self.root.url}/{folder}: a view set of this name exists with another {', '.join(differing)}; "
                    "choose another name"
                )
            if stored.views < spec.views:
                self._grow(spec)
        return self.view_set(spec.name, views=spec.views)

    def extend_view_set(self, name: str, /, *, views: int) -> ViewSet:
        """Append views to a view set: the parts that there are, and what columns hold of them, stay as they are.

        ``create_column`` then brings a column's description up to the new rows, and their parts are written like any
        others. Doing it again with the same number of views changes nothing.

        Raises:
            MissingColumnError: There is no such view set.
            FormatError: It has more views already.
            StoreError: The disk is full or fails.
        """
        folder = f"views/{check_name(name, what='view set name')}"
        self.view_set(name)
        with self.root.lock(folder):
            self.root.clean(folder)
            spec = self.view_set(name).stored
            if views < spec.views:
                raise FormatError(f"{self.root.url}/{folder}: expected at least its {spec.views} views, got {views}")
            if views > spec.views:
                self._grow(spec.with_views(views))
        return self.view_set(name)

    def _grow(self, spec: ViewSetSpec) -> None:
        data = render_document("view_set", spec.to_json())
        self.root.write_atomic(f"views/{spec.name}/view_set.json", data, replace=True)

    def create_column(self, spec: ColumnSpec, /, *, backend: str = "zarr") -> Column:
        """Make a column, or return the one there is, however it is stored; clears away what writers that died left.

        Args:
            backend: How a new column is stored: ``zarr``, or ``webdataset`` for tars.

        Raises:
            MissingColumnError: Its view set does not exist.
            FormatError: A column of that name has another spec, or there is no such backend.
            StoreError: The disk is full or fails.
        """
        self.view_set(spec.view_set)
        folder = f"columns/{spec.view_set}/{spec.name}"
        stored = backend_of(backend, where=folder)
        with self.root.lock(folder):
            views = self.view_set(spec.view_set)  # no earlier: views may have been appended meanwhile
            done = frozenset(CommitLog(self.root, folder, spec=views.spec).parts())
            # Every array has folders for every part. To look into millions takes minutes, and what a writer left behind
            # in a part that another made does no harm; gc finds that.
            done = done if len(done) > _MANY_PARTS else frozenset()
            self.root.clean(folder, skip=lambda path: (at := locate_part(path)) is not None and at.part in done)
            new = not self.root.exists(f"{folder}/column.json")
            with self._unless_made(f"{folder}/column.json"):
                for relative, data in self._described(folder, spec, views.stored, backend=stored).items():
                    self.root.write_atomic(f"{folder}/{relative}", data, replace=not new)
        column = self.column(spec.view_set, spec.name)
        if column.spec.to_json() != spec.to_json():
            raise FormatError(f"{self.root.url}/{folder}: holds another column than the one asked for")
        return column

    @contextlib.contextmanager
    def _unless_made(self, record: str) -> Iterator[None]:
        """Where nothing is locked another writer may be faster: then its record stands, and is compared as any."""
        try:
            yield
        except ConflictError:
            if not self.root.exists(record):
                raise

    def _described(self, folder: str, spec: ColumnSpec, view_set: ViewSetSpec, *, backend: Backend) -> dict[str, bytes]:
        """Files to be written so that a column is described for all rows of its view set, ``column.json`` last."""
        if not self.root.exists(f"{folder}/column.json"):
            return column_files(spec, view_set, backend=backend)
        record = load_record(self.root, folder)
        files = column_files(spec, view_set, backend=record.backend)
        objects = digest_objects({path: data for path, data in files.items() if path != "column.json"})
        # Another column's record is for the caller to refuse.
        return {} if record.spec != spec.to_json() or record.objects == objects else files

    def read(
        self,
        view_set: str,
        *,
        columns: Sequence[str],
        rows: Sequence[int] | NDArray[np.int64],
        levels: Sequence[int] | None = None,
    ) -> dict[str, list[NDArray[np.float32]]]:
        """Decoded features of rows from several columns, each proven to belong to the view set.

        Touches no other column, level or shard. Columns stay open for the next call, with the shards that they have
        verified; another ``Store`` sees what was discarded and made again since.

        Args:
            columns: Names as ``column_names`` gives them.
            rows: Row numbers of the view set, in any order, repeated or not.
            levels: Numbers from 0; all where it is None.

        Shapes:
            returns: column name to one float32 ``(len(rows), C, h, w)`` per asked level, in the order asked for; C, h
                and w are the level's own (``column.spec.levels``).

        Raises:
            MissingColumnError: A column does not exist.
            MissingRowsError: Rows are not committed.
            CorruptShardError: Stored bytes differ from what was committed.
            FormatError: A column was made from other rows or images, or has no such level.
            UnreachableError: A remote store cannot be reached.
        """
        rows_N = np.asarray(rows, dtype=np.int64).reshape(-1)
        result = {}
        for name in columns:
            column = self._kept_column(view_set, name)
            found = column.read_floats(rows_N, levels=levels)
            for part in np.unique(column.view_set.spec.parts_of(rows_N)).tolist():
                column.check_join_part(column.view_set, part)
            result[name] = found
        return result

    def _kept_column(self, view_set: str, name: str) -> Column:
        with self._lock:
            if (view_set, name) not in self._kept:
                self._kept[view_set, name] = self.column(view_set, name)
            return self._kept[view_set, name]


def _reopen(root: Root, options: ReadOptions) -> Store:
    return Store(root, options=options)
