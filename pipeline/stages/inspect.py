"""What is in a store, and whether it is what was written: ``ls``, ``info`` and ``verify``."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import yaml
from rich.table import Table

from pipeline.tracking import progress_bar
from sak.teachers.registry import TEACHERS
from store.column import Column
from store.store import Store
from store.verify import verify
from store.viewset import ViewSet

__all__ = ["Verdict", "list_store", "list_teachers", "show", "verify_store"]


class Verdict(NamedTuple):
    """Outcome of a verification: one line for each finding, and whether any is an error."""

    lines: tuple[str, ...]
    failed: bool


def list_store(root: Path, /) -> Table:
    """View sets and their columns, with how far each is and what it takes.

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
    for view_set in store.view_sets():
        table.add_row(f"[bold]{view_set.name}[/bold]", *_cells(view_set))
        for column in store.columns(view_set.name):
            table.add_row(f"  {column.name} ({column.spec.codec.name})", *_cells(column))
    return table


def show(root: Path, name: str, /) -> str:
    """Everything recorded about one view set, or about a column in every view set that has it, as YAML.

    Raises:
        StoreError: There is no such store or name.
    """
    store = Store.open(str(root))
    columns = [column for views in store.view_sets() for column in store.columns(views.name) if column.name == name]
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
    """Read every committed byte again and compare it with its record.

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
    return Verdict(tuple(lines), any(found.severity == "error" for found in findings))


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
