"""Columns that travel between stores: an export is a small store of one column and what proves whose rows it holds.

Identity travels with it: the view set's description, its index with every sample key, and its commit records, so that
a column can only be imported where the very same rows were made from the very same images.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import NamedTuple

from store.backends.registry import backend_of
from store.column import Column
from store.commits import PartCommit
from store.document import MAX_DOCUMENT_BYTES, parse_document, render_document
from store.errors import CorruptShardError, FormatError, MissingColumnError, MissingRowsError
from store.fingerprint import digest_bytes
from store.root import Root
from store.store import Store
from store.viewset import ViewSet

__all__ = ["EXPORT_RECORD", "ExportRecord", "Transferred", "export_column", "import_column", "load_export"]

EXPORT_RECORD = "export.json"
_MAX_OBJECT_BYTES = 8 << 30

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRecord:
    """What makes a store an export: which column is in it, and whether the images are."""

    view_set: str
    column: str
    backend: str
    images: bool


class Transferred(NamedTuple):
    """What an export or import did.

    Units:
        size: bytes of the column's shards where they are now.
    """

    column: Column
    written: int
    skipped: int
    size: int


def load_export(root: Root, /) -> ExportRecord | None:
    """What a store says of itself as an export; None for one that is none.

    Raises:
        FormatError: The record is malformed or of a newer version.
        CorruptShardError: Its bytes have changed.
    """
    if root.stamp(EXPORT_RECORD) is None:
        return None
    where = root.where(EXPORT_RECORD)
    body = parse_document(root.read_bytes(EXPORT_RECORD, max_bytes=MAX_DOCUMENT_BYTES), kind="export", where=where)
    try:
        record = ExportRecord(**body)
    except TypeError as error:
        raise FormatError(f"{where}: not an export of this version ({error})") from error
    texts = (record.view_set, record.column, record.backend)
    if type(record.images) is not bool or not all(isinstance(text, str) for text in texts):
        raise FormatError(f"{where}: not an export of this version")
    return record


def export_column(
    column: Column,
    target: str | os.PathLike[str],
    /,
    *,
    backend: str = "webdataset",
    images: bool = False,
    progress: Progress | None = None,
) -> Transferred:
    """Write a column's committed parts and what they belong to into a store of their own, part by part.

    Run again after an interruption it does what is missing.

    Args:
        target: A folder that is empty or holds this export already, or a prefix of an object store.
        backend: How the column is stored there.
        images: Copy the view set's images too.
        progress: Called with parts done and parts in all.

    Raises:
        FormatError: The folder holds something else, or the column does not belong to its view set.
        CorruptShardError: Stored bytes or numbers differ from what was committed.
        StoreError: The disk is full or fails.
    """
    views = column.view_set
    record = ExportRecord(
        view_set=views.name, column=column.name, backend=backend_of(backend, where="export").name, images=images
    )
    column.check_join(views)
    out = _begin(target, record)
    target_views = out.create_view_set(views.spec)
    for part in column.committed_parts():
        copy_view_part(views, target_views, part, images=images)
    return _copy(column, out.create_column(column.spec, backend=backend), progress)


def import_column(
    store: Store,
    source: str | os.PathLike[str],
    /,
    *,
    backend: str = "zarr",
    progress: Progress | None = None,
) -> Transferred:
    """Add an exported column to a store, part by part, after proving that it belongs to the store's view set.

    Where the store has no such view set and the export has its images, the view set is added too. Run again after an
    interruption it does what is missing.

    Raises:
        FormatError: It is no export, or its rows, keys or images are not those of the store's view set.
        MissingColumnError: The store has no such view set, and the export lacks the images.
        MissingRowsError: The store's view set lacks parts that the column has, and the export lacks the images.
        CorruptShardError: The export's bytes or numbers differ from what was committed.
        StoreError: The disk is full or fails.
    """
    origin = Store.open(source)
    record = load_export(origin.root)
    if record is None:
        raise FormatError(
            f"{origin.root.url}: expected an export, found no {EXPORT_RECORD}; sak store export makes one"
        )
    column = origin.column(record.view_set, record.column)
    column.check_join(column.view_set)
    views = _target_views(store, column.view_set, record)
    absent = _prove(column, views, record)
    for part in absent:
        copy_view_part(column.view_set, views, part, images=True)
    return _copy(column, store.create_column(column.spec, backend=backend), progress)


def copy_view_part(source: ViewSet, target: ViewSet, part: int, /, *, images: bool) -> None:
    """Copy a view set's part byte for byte, its record last; one that is there already must be the same.

    Raises:
        FormatError: Another part is there.
        CorruptShardError: The source's bytes differ from its record.
    """
    commit = source.commits.require([part])[0]
    with target.commits.writing(part):
        standing = target.commits.find(part)
        if standing is not None and standing.digest() != commit.digest():
            raise FormatError(f"{target.root.url}: {_differs(target, part)}")
        for path, digest in commit.objects.items():
            relative = f"{source.folder}/{path}"
            wanted = images or not path.startswith("images/")
            found = target.root.stamp(relative)
            if wanted and (standing is None or found is None or found.size != digest.size):
                data = source.root.read_bytes(relative, max_bytes=min(digest.size, _MAX_OBJECT_BYTES))
                if digest_bytes(data) != digest.sha256:
                    raise CorruptShardError(
                        f"{source.root.where(relative)}: rows {commit.start} to {commit.stop - 1}: its SHA-256 differs "
                        "from the commit record; run sak store verify"
                    )
                target.root.write_atomic(relative, data)
        if standing is None:
            target.root.write_atomic(target.commits.path(part), commit.render())


def _begin(target: str | os.PathLike[str], record: ExportRecord) -> Store:
    out = Store.create(target)
    found = load_export(out.root)
    if found is None and (out.root.names("views") or out.root.names("columns")):
        raise FormatError(f"{out.root.url}: expected an empty folder or an export, found a store; choose another")
    if found is not None and found != record:
        raise FormatError(
            f"{out.root.url}: expected an empty folder or this export, found the export of {found.view_set}/"
            f"{found.column} ({found.backend}, {'with' if found.images else 'without'} images); choose another"
        )
    if found is None:
        out.root.write_atomic(EXPORT_RECORD, render_document("export", asdict(record)))
    return out


def _target_views(store: Store, source: ViewSet, record: ExportRecord) -> ViewSet:
    if source.name in store.view_set_names():
        views = store.view_set(source.name)
        old, new = views.spec.to_json(), source.spec.to_json()
        # A store may have more views than there were at the time of the export: they come after all others.
        differing = [name for name in new if old[name] != new[name] and (name != "views" or old[name] < new[name])]
        if differing:
            raise FormatError(
                f"{store.root.url}: view set {source.name} differs from that of the export in {', '.join(differing)}; "
                "a column belongs to one view set alone"
            )
        return views
    if record.images:
        return store.create_view_set(source.spec)
    raise MissingColumnError(
        f"{store.root.url}: no view set {source.name!r}, to which the column belongs; extract it there first, or "
        "export the column --with-images"
    )


def _prove(column: Column, views: ViewSet, record: ExportRecord) -> list[int]:
    """Parts of the view set that the store lacks and the export can give; all others must be the same."""
    absent = []
    for part in column.committed_parts():
        if views.commits.find(part) is None:
            absent.append(part)
        else:
            _prove_part(column.commits.require([part])[0], views, part)
    if absent and not record.images:
        rows = views.spec.part_rows(absent[0])
        raise MissingRowsError(
            f"{views.root.url}: {views.folder}: {len(absent)} parts of the column have no rows there yet, the first "
            f"rows {rows.start} to {rows.stop - 1}; extract them first, or export the column --with-images"
        )
    return absent


def _prove_part(commit: PartCommit, views: ViewSet, part: int) -> None:
    standing = views.commits.require([part])[0]
    if (commit.keys_sha256, commit.view_commit) != (standing.keys_sha256, standing.digest()):
        raise FormatError(f"{views.root.url}: {_differs(views, part)}")


def _differs(views: ViewSet, part: int) -> str:
    rows = views.spec.part_rows(part)
    return (
        f"view set {views.name}, rows {rows.start} to {rows.stop - 1}: other keys or images than those the column was "
        "made from; a column can only be imported where the same images were extracted with the same seed"
    )


def _copy(source: Column, target: Column, progress: Progress | None) -> Transferred:
    parts, written = source.committed_parts(), 0
    for done, part in enumerate(parts):
        if progress is not None:
            progress(done, len(parts))
        commit, standing = source.commits.require([part])[0], target.commits.find(part)
        if standing is None:
            levels = source.read_part(part)
            keys = source.view_set.keys(part)
            spent = source.commits.spent(part)
            standing = target.write_part(part, levels, keys=keys, stats=commit.stats, spent=spent)
            written += 1
        if commit.content and standing.content and standing.content != commit.content:
            raise FormatError(
                f"{target.commits.path(part)}: the column there holds other numbers in rows {commit.start} to "
                f"{commit.stop - 1}; run sak store discard on that part to take these"
            )
    if progress is not None:
        progress(len(parts), len(parts))
    return Transferred(target, written, len(parts) - written, target.summary().bytes)
