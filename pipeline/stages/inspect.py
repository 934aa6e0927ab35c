"""What is recorded in a store, and whether it is what was written: ``info``, ``verify`` and ``discard``."""

from __future__ import annotations

from pathlib import Path

import yaml

from pipeline.fidelity import codec_speed, column_fidelity
from pipeline.tracking import progress_bar
from pipeline.verdicts import Verdict, finding_line, remedies
from store.column import Column
from store.errors import MissingColumnError, MissingRowsError
from store.store import Store
from store.verify import verify
from store.viewset import ViewSet

__all__ = ["discard_part", "show", "verify_store"]


def show(root: str | Path, name: str, /) -> str:
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
        for part in sorted({*view_set.commits.ledger().excluded_parts.tolist()})
        for row in view_set.index(part)
        if row.error
    ]
    return _describe(view_set) + (yaml.safe_dump({"left_out": bad}, sort_keys=False) if bad else "")


def verify_store(root: str | Path, /) -> Verdict:
    """Read every committed byte again and compare it with its record; the last lines say what to do about damage.

    Raises:
        StoreError: There is no store at ``root``.
    """
    with progress_bar("objects") as bar:
        shown = bar.add_task("verify", total=None, note="")
        findings = verify(
            Store.open(str(root)), progress=lambda done, total: bar.update(shown, completed=done, total=total)
        )
    lines = [finding_line(found) for found in findings]
    lines += [f"remedy: {line}" for line in remedies(findings, root)]
    return Verdict(tuple(lines), any(found.severity == "error" for found in findings))


def discard_part(root: str | Path, name: str, part: int, /, *, dry_run: bool) -> str:
    """Drop the record of one part, so that the same extraction makes that part again; says what it dropped.

    On an object store what a dead writer left of a part is dropped too, with or without a record.

    Args:
        name: A view set, ``VIEW_SET/COLUMN``, or a column alone where only one view set has it.
        dry_run: Drop nothing, and say what would be.

    Raises:
        StoreError: There is no such store, name or part, or the name is ambiguous.
    """
    store = Store.open(str(root))
    item = _named(store, name)
    relative = item.commits.path(part)
    if part not in item.committed_parts() and not item.commits.obstacles(part):
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
        raise MissingColumnError(f"{store.root.url}: several view sets have column {name}; name one of {choices}")
    return store.column(holders[0], name) if holders else store.view_set(name)


def _describe(item: ViewSet | Column) -> str:
    summary = item.summary()
    facts: dict[str, object] = {
        "spec": item.spec.to_json(),
        "views": f"{summary.committed_views} of {summary.views}",
        "rows": summary.rows,
        "committed_rows": summary.committed_rows,
        "shards": f"{summary.committed_parts} of {summary.parts}",
        "bytes": summary.bytes,
        "seconds": round(summary.spent.total, 2),
    }
    spent, rows = summary.spent._asdict(), max(1, summary.committed_rows)
    for name, unit, scale in (("milliseconds_per_row", float, 1e3), ("bytes_moved_per_row", int, 1.0)):
        known = {step: round(scale * value / rows, 3) for step, value in spent.items() if value and type(value) is unit}
        known.pop("decoded_rows", None)  # a count of neither
        facts |= {name: known} if known else {}
    if summary.fp16_bytes:
        facts |= {"fp16_bytes": summary.fp16_bytes}
    if isinstance(item, Column):
        facts |= {"fidelity": column_fidelity(item, summary)}
        speed = codec_speed(item, summary)
        if speed:
            facts |= {"codec_million_values_per_second": speed}
    return yaml.safe_dump(facts, sort_keys=False)
