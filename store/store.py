"""A store: view sets, and the columns that teachers added to them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from store.column import Column
from store.document import MAX_DOCUMENT_BYTES, parse_document, render_document
from store.errors import FormatError, MissingColumnError
from store.layout import column_files
from store.root import Root, check_name
from store.spec import ColumnSpec, ViewSetSpec
from store.viewset import ReadOptions, ViewSet

__all__ = ["Store"]

_RECORD = "store.json"


class Store:
    """A root folder that holds view sets and columns.

    Use ``Store.open`` or ``Store.create``.
    """

    def __init__(self, root: Root, *, options: ReadOptions) -> None:
        self.root = root
        self._options = options

    @classmethod
    def open(cls, root: str | os.PathLike[str], /, *, options: ReadOptions | None = None) -> Store:
        """Open a store that exists.

        Raises:
            FormatError: There is none, or a newer sak made it.
            CorruptShardError: ``store.json`` has changed.
        """
        opened = Root(_local_path(root))
        if not opened.path.is_dir() or opened.stamp(_RECORD) is None:
            raise FormatError(f"{opened.path}: expected a store, found no {_RECORD}; sak extract makes one")
        data = opened.read_bytes(_RECORD, max_bytes=MAX_DOCUMENT_BYTES)
        parse_document(data, kind="store", where=str(opened.path / _RECORD))
        return cls(opened, options=options or ReadOptions())

    @classmethod
    def create(cls, root: str | os.PathLike[str], /, *, options: ReadOptions | None = None) -> Store:
        """Open a store, made first where there is none.

        Raises:
            FormatError: The folder holds something else, or a store of a newer version.
            StoreError: The disk is full or fails.
        """
        path = _local_path(root)
        if path.exists() and not path.is_dir():
            raise FormatError(f"{path}: expected a folder for the store, got a file")
        target = Root(path)
        if not path.is_dir() or target.stamp(_RECORD) is None:
            if path.is_dir() and _foreign(path):
                raise FormatError(f"{path}: expected an empty folder or a store, found other files; choose another")
            target.write_atomic(_RECORD, render_document("store", {"created_by": "sak"}))
        target.clean(None)
        return cls.open(path, options=options)

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

    def view_set(self, name: str) -> ViewSet:
        """One view set.

        Raises:
            MissingColumnError: There is none of that name; lists those there are.
            FormatError: The name is not safe, or the description is malformed.
        """
        check_name(name, what="view set name")
        if not self.root.exists(f"views/{name}/view_set.json"):
            found = ", ".join(self.root.names("views")) or "none"
            raise MissingColumnError(f"{self.root.path}: no view set {name!r}, found {found}")
        return ViewSet(self.root, name, options=self._options)

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

    def column(self, view_set: str, name: str) -> Column:
        """One column.

        Raises:
            MissingColumnError: There is none of that name; lists those there are.
            FormatError: The name is not safe, or the description is malformed.
        """
        check_name(name, what="column name")
        views = self.view_set(view_set)
        found = self.column_names(view_set)
        if name not in found:
            raise MissingColumnError(
                f"{self.root.path}: view set {view_set} has no column {name!r}, found {', '.join(found) or 'none'}"
            )
        return Column(self.root, name, view_set=views, options=self._options)

    def create_view_set(self, spec: ViewSetSpec, /) -> ViewSet:
        """Make a view set, or return the one there is; clears away what writers that died left.

        Raises:
            FormatError: One of that name has another spec; names the fields that differ.
            StoreError: The disk is full or fails.
        """
        folder = f"views/{spec.name}"
        with self.root.lock(folder):
            self.root.clean(folder)
            if not self.root.exists(f"{folder}/view_set.json"):
                self.root.write_atomic(f"{folder}/view_set.json", render_document("view_set", spec.to_json()))
        found = self.view_set(spec.name)
        old, new = found.spec.to_json(), spec.to_json()
        differing = [f"{name} ({old[name]!r} there, {new[name]!r} asked)" for name in new if old[name] != new[name]]
        if differing:
            raise FormatError(
                f"{self.root.path}/{folder}: a view set of this name exists with another {', '.join(differing)}; "
                "choose another name"
            )
        return found

    def create_column(self, spec: ColumnSpec, /) -> Column:
        """Make a column, or return the one there is; clears away what writers that died left.

        Raises:
            MissingColumnError: Its view set does not exist.
            FormatError: A column of that name has another spec.
            StoreError: The disk is full or fails.
        """
        views = self.view_set(spec.view_set)
        folder = f"columns/{spec.view_set}/{spec.name}"
        with self.root.lock(folder):
            self.root.clean(folder)
            if not self.root.exists(f"{folder}/column.json"):
                for relative, data in column_files(spec, views.spec).items():
                    self.root.write_atomic(f"{folder}/{relative}", data)
        column = self.column(spec.view_set, spec.name)
        if column.spec.to_json() != spec.to_json():
            raise FormatError(f"{self.root.path}/{folder}: holds another column than the one asked for")
        return column

    def read(
        self,
        view_set: str,
        *,
        columns: Sequence[str],
        rows: Sequence[int] | NDArray[np.int64],
        levels: Sequence[int] | None = None,
    ) -> dict[str, list[NDArray[np.float32]]]:
        """Decoded features of rows from several columns, each proven to belong to the view set.

        Shapes:
            returns: column name to one float32 ``(len(rows), C, h, w)`` per asked level.

        Raises:
            MissingColumnError: A column does not exist.
            MissingRowsError: Rows are not committed.
            CorruptShardError: Stored bytes differ from what was committed.
            FormatError: A column was made from other rows or images.
        """
        result = {}
        for name in columns:
            column = self.column(view_set, name)
            column.check_join(column.view_set)
            result[name] = column.read_floats(rows, levels=levels)
        return result


def _local_path(root: str | os.PathLike[str]) -> Path:
    text = os.fspath(root)
    if "://" in text:
        raise FormatError(f"{text}: expected a local folder; object stores are not supported yet")
    return Path(text).absolute()


def _foreign(path: Path) -> bool:
    return any(not entry.name.startswith(".") for entry in path.iterdir())
