"""What is in a store, and whether it is what was written: ``ls``, ``info`` and ``verify``."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import yaml
from rich.table import Table

from pipeline.tracking import progress_bar
from sak.teachers.registry import TEACHERS
from store.column import Column
from store.errors import MissingColumnError, MissingRowsError, StoreError
from store.store import Store
from store.verify import Finding, PartLocation, locate_part, verify
from store.viewset import ViewSet

__all__ = ["Verdict", "discard_part", "list_store", "list_teachers", "show", "verify_store"]


class Verdict(NamedTuple):
    """Outcome of a verification: one line for each finding, and whether any is an error."""

    lines: tuple[str, ...]
    failed: bool


def list_store(root: Path, /) -> Table:
    """View sets and their columns, with how far each is and what it takes; what is damaged is shown as that.

    Raises:
        StoreError: There is no store at ``root``.
    """
    store = Store.open(str(root))
    table = Table(header_style="bold")
    for name, justify in (
        ("name", "left"),
        ("rows", "right"),
        ("shards", "right"),
        ("size", "right"),
        ("against fp16", "right"),
    ):
        table.add_column(name, justify="right" if justify == "right" else "left")
    for view_set in store.view_set_names():
        table.add_row(*_view_set_row(store, view_set))
        for column in store.column_names(view_set):
            table.add_row(*_column_row(store, view_set, column))
    return table


def show(root: Path, name: str, /) -> str:
    """Everything recorded about one view set, or about a column in every view set that has it, as YAML.

    Raises:
        StoreError: There is no such store or name.
    """
    store = Store.open(str(root))
    columns = [store.column(views, name) for views in store.view_set_names() if name in store.column_names(views)]
    if columns:
        return "---\n".join(_describe(column) for column in columns)
    view_set = store.view_set(name)
    bad = [
        {"row": row.row, "key": row.key, "reason": row.error}
        for part in view_set.committed_parts()
        for row in view_set.index(part)
        if row.error
    ]
    return _describe(view_set) + (yaml.safe_dump({"left_out": bad}, sort_keys=False) if bad else "")


def verify_store(root: Path, /) -> Verdict:
    """Read every committed byte again and compare it with its record; the last lines say what to do about damage.

    Raises:
        StoreError: There is no store at ``root``.
    """
    with progress_bar("objects") as bar:
        shown = bar.add_task("verify", total=None, note="")
        findings = verify(
            Store.open(str(root)), progress=lambda done, total: bar.update(shown, completed=done, total=total)
        )
    lines = []
    for found in findings:
        rows = f" (rows {found.rows.start}-{found.rows.stop - 1})" if found.rows else ""
        lines.append(f"{found.severity}: {found.path}{rows}: {found.problem}")
    lines += [f"remedy: {line}" for line in _remedies(findings, root)]
    return Verdict(tuple(lines), any(found.severity == "error" for found in findings))


def discard_part(root: Path, name: str, part: int, /, *, dry_run: bool) -> str:
    """Drop the record of one part, so that the same extraction makes that part again; says what it dropped.

    Args:
        name: A view set, ``VIEW_SET/COLUMN``, or a column alone where only one view set has it.
        dry_run: Drop nothing, and say what would be.

    Raises:
        StoreError: There is no such store, name or part, or the name is ambiguous.
    """
    store = Store.open(str(root))
    item = _named(store, name)
    relative = item.commits.path(part)
    if part not in item.committed_parts():
        committed = ", ".join(map(str, item.committed_parts()[:8])) or "none"
        raise MissingRowsError(f"{item.folder}: expected a committed part, got {part}; the first of them: {committed}")
    rows = (item.spec if isinstance(item, ViewSet) else item.view_set.spec).part_rows(part)
    if not dry_run:
        item.discard(part)
    did = "would discard" if dry_run else "discarded"
    then = "" if dry_run else "; the same sak extract or sak run makes it again"
    return f"{did} part {part} of {item.folder}, rows {rows.start}-{rows.stop - 1}: {relative}{then}"


def _named(store: Store, name: str) -> ViewSet | Column:
    view_set, _, column = name.rpartition("/")
    if view_set:
        return store.column(view_set, column)
    holders = [views for views in store.view_set_names() if name in store.column_names(views)]
    if len(holders) > 1:
        choices = ", ".join(f"{views}/{name}" for views in holders)
        raise MissingColumnError(f"{store.root.path}: several view sets have column {name}; name one of {choices}")
    return store.column(holders[0], name) if holders else store.view_set(name)


def _remedies(findings: Sequence[Finding], root: Path) -> list[str]:
    """What to do about each damaged part, or file that belongs to none."""
    errors = [found for found in findings if found.severity == "error"]
    damaged = {locate_part(found.path) for found in errors if not found.stray}
    broken = {found.path for found in errors}
    lines: dict[str, None] = {}
    for found in errors:
        where = None if found.stray else locate_part(found.path)
        if where is None:
            kind, _, rest = found.path.partition("/")
            # A column blamed for its view set alone: that one has a line of its own.
            if kind != "columns" or f"views/{rest.partition('/')[0]}/view_set.json" not in broken:
                lines[f"{found.path}: {_file_remedy(found)}"] = None
            continue
        views = PartLocation(f"views/{where.folder.split('/')[1]}", where.part)
        # A column's record that disagrees with a damaged part of its view set agrees again once that part is restored.
        if views != where and views in damaged and "/commits/" in found.path:
            continue
        command = shlex.join(["sak", "store", "discard", str(root), where.folder.split("/", 1)[1], str(where.part)])
        lines[f"{command}, then the same sak extract or sak run: it makes that part again"] = None
    return list(lines)


def _file_remedy(found: Finding) -> str:
    name = found.path.rsplit("/", 1)[-1]
    if found.stray:
        return "delete it; no record needs it"
    if name in ("view_set.json", "column.json"):
        return "delete this file; the same sak extract writes it again and keeps the parts"
    if name == "zarr.json" or "/codec_" in found.path:
        return "delete its column's column.json; the same sak extract writes both again and keeps the parts"
    return "restore it from a copy"


def _view_set_row(store: Store, name: str) -> tuple[str, ...]:
    try:
        return (f"[bold]{name}[/bold]", *_cells(store.view_set(name)))
    except StoreError:
        return (f"[bold]{name}[/bold]", "damaged: sak store verify")


def _column_row(store: Store, view_set: str, name: str) -> tuple[str, ...]:
    try:
        column = store.column(view_set, name)
        return (f"  {name} ({column.spec.codec.name})", *_cells(column))
    except StoreError:
        return (f"  {name}", "damaged: sak store verify")


def list_teachers() -> list[str]:
    """One line for each built-in teacher: its name, timm model and levels."""
    return [f"{name}: timm {spec.timm}, levels {', '.join(map(str, spec.levels))}" for name, spec in TEACHERS.items()]


def _cells(item: ViewSet | Column) -> tuple[str, str, str, str]:
    summary = item.summary()
    against = f"{summary.bytes / summary.fp16_bytes:.1%}" if summary.fp16_bytes else "–"
    return (
        f"{summary.committed_rows}/{summary.rows}",
        f"{summary.committed_parts}/{summary.parts}",
        f"{summary.bytes / 1e6:.1f} MB",
        against,
    )


def _describe(item: ViewSet | Column) -> str:
    summary = item.summary()
    facts: dict[str, object] = {
        "spec": item.spec.to_json(),
        "rows": summary.rows,
        "committed_rows": summary.committed_rows,
        "shards": f"{summary.committed_parts} of {summary.parts}",
        "bytes": summary.bytes,
        "seconds": round(summary.seconds, 2),
    }
    if summary.fp16_bytes:
        facts |= {"fp16_bytes": summary.fp16_bytes, "fidelity": dict(summary.stats)}
    return yaml.safe_dump(facts, sort_keys=False)
