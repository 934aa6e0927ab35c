"""Columns that travel: ``sak store export`` and ``sak store import``."""

from __future__ import annotations

from pipeline.tracking import progress_bar
from store.errors import MissingColumnError
from store.store import Store
from store.transfer import Transferred, export_column, import_column

__all__ = ["export_to", "import_from"]


def export_to(root: str, name: str, out: str, /, *, backend: str, images: bool) -> str:
    """Write one column into a folder of its own; says what it did.

    Args:
        name: ``VIEW_SET/COLUMN``.

    Raises:
        StoreError: There is no such store or column, it is damaged, or the folder holds something else.
    """
    store = Store.open(root)
    view_set, _, column_name = name.rpartition("/")
    if not view_set:
        found = [f"{views}/{column}" for views in store.view_set_names() for column in store.column_names(views)]
        raise MissingColumnError(
            f"{root}: expected VIEW_SET/COLUMN, got {name!r}, found {', '.join(found) or 'no columns'}"
        )
    column = store.column(view_set, column_name)
    with progress_bar("shards") as bar:
        shown = bar.add_task(f"exporting {name}", total=None)
        done = export_column(
            column,
            out,
            backend=backend,
            images=images,
            progress=lambda count, total: bar.update(shown, completed=count, total=total),
        )
    return _report("exported", done, f"to {out} ({backend}, {'with' if images else 'without'} images)")


def import_from(root: str, source: str, /, *, backend: str) -> str:
    """Add an exported column to a store; says what it did.

    Raises:
        StoreError: There is no such store or export, it is damaged, or it does not belong to the store's rows.
    """
    store = Store.open(root)
    with progress_bar("shards") as bar:
        shown = bar.add_task(f"importing {source}", total=None)
        done = import_column(
            store,
            source,
            backend=backend,
            progress=lambda count, total: bar.update(shown, completed=count, total=total),
        )
    return _report("imported", done, f"into {root} ({done.column.backend.name})")


def _report(verb: str, done: Transferred, where: str) -> str:
    skipped = f", {done.skipped} were there" if done.skipped else ""
    name = f"{done.column.view_set.name}/{done.column.name}"
    return f"{verb} {name} {where}: {done.written} shards{skipped}, {done.size / 1e6:,.1f} MB"
