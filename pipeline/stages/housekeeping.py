"""What a store holds, who uses it, and what could go: ``ls``, ``du`` and ``gc``."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from rich.table import Table

from store.column import Column
from store.du import disk_usage
from store.errors import StoreError
from store.gc import Plan, collect, plan
from store.root import Root
from store.store import Store
from store.summary import progress
from store.uses import USES, Use, load_use
from store.viewset import ViewSet

__all__ = ["Collected", "collect_garbage", "list_store", "measure_store", "short_identity"]

_SHOWN = 40


class Collected(NamedTuple):
    """What a collection did, one line each, the sum last; and the bytes that it frees."""

    lines: tuple[str, ...]
    bytes: int


def list_store(root: str | Path, /) -> Table:
    """View sets and their columns: how far each is, what it takes, who uses it and who could.

    What is damaged is shown as that.

    Raises:
        StoreError: There is no store at ``root``.
    """
    store = Store.open(str(root))
    table = Table(header_style="bold")
    for name in ("name", "views", "rows", "shards", "size", "against fp16", "used by", "holds"):
        table.add_column(name, justify="left" if name in ("name", "holds") else "right")
    users = _users(store.root)
    for view_set in store.view_set_names():
        table.add_row(*_view_set_row(store, view_set, users))
        for column in store.column_names(view_set):
            table.add_row(*_column_row(store, view_set, column, users))
    return table


def measure_store(root: str | Path, /) -> Table:
    """Bytes by view set, column and level, and the dead ones among them.

    Raises:
        StoreError: There is no store at ``root``.
    """
    table = Table(header_style="bold")
    for name in ("path", "files", "size", "dead", "levels"):
        table.add_column(name, justify="left" if name in ("path", "levels") else "right")
    usage = disk_usage(Store.open(str(root)))
    for item in usage:
        levels = ", ".join(f"{level.level}: {_size(level.bytes)}" for level in item.levels)
        table.add_row(item.path or "(records)", str(item.files), _size(item.bytes), _size(item.dead), levels)
    files, size, dead = (sum(getattr(item, name) for item in usage) for name in ("files", "bytes", "dead"))
    table.add_row("[bold]all[/bold]", str(files), _size(size), _size(dead), "")
    return table


def collect_garbage(root: str | Path, /, *, dry_run: bool, grace_hours: float, forget_missing: bool) -> Collected:
    """Remove the columns and view sets that no experiment uses, and what writers that died left behind.

    Args:
        dry_run: Remove nothing, and say what would go.
        grace_hours: What was written to within so many hours stays.
        forget_missing: Drop the uses of experiments on this host whose folder is gone.

    Raises:
        StoreError: There is no store at ``root``, the record of a use is damaged, or the disk fails.
    """
    store = Store.open(str(root))
    forget = _missing(store.root) if forget_missing else ()
    if dry_run:
        return _told(plan(store, grace=grace_hours * 3600, forget=forget), did="would remove")
    return _told(collect(store, grace=grace_hours * 3600, forget=forget), did="removed")


def short_identity(column: Column, /) -> str:
    """In one line what a recipe must ask for to read this column: network, levels, input, grid, statistics."""
    about: Mapping[str, object] = column.spec.identity
    grids = dict.fromkeys(f"{level.height}x{level.width}" for level in column.spec.levels)
    words = [str(about.get("timm", column.spec.teacher)), f"levels {_numbers(about.get('levels'))}"]
    words += [f"grid {', '.join(grids)}"]
    size = about.get("input_size")
    if size:
        words.append(f"input {_numbers(size).replace(' ', 'x')} {about.get('resize', '')}".rstrip())
    words += [f"{name} {_numbers(about[name])}" for name in ("mean", "std") if name in about]
    return ", ".join(words)


def _numbers(value: object) -> str:
    if not isinstance(value, list):
        return str(value)
    return " ".join(f"{item:.3g}" if isinstance(item, float) else str(item) for item in value)


def _told(found: Plan, *, did: str) -> Collected:
    lines = [f"{did} {item.kind} {item.path}: {len(item.files)} files, {_size(item.bytes)}" for item in found.garbage]
    lines += [f"kept {item.path}: {item.why}" for item in found.kept[:_SHOWN]]
    if len(found.kept) > _SHOWN:
        lines.append(f"kept {len(found.kept) - _SHOWN} more")
    return Collected((*lines, f"{did} {_size(found.bytes)}"), found.bytes)


def _missing(root: Root) -> tuple[str, ...]:
    """Uses from this host whose folder is gone; those of other hosts are for them to judge."""
    uses = (load_use(root, name) for name in root.names(USES))
    return tuple(use.id for use in uses if use.host == socket.gethostname() and not Path(use.folder).is_dir())


def _users(root: Root) -> Counter[str]:
    """Folder of a view set or column to the number of experiments that use it."""
    found: Counter[str] = Counter()
    for name in root.names(USES):
        try:
            use: Use = load_use(root, name)
        except StoreError:  # sak store verify names it, and gc stops at it
            continue
        found.update(list(use.commits))
    return found


def _view_set_row(store: Store, name: str, users: Mapping[str, int]) -> tuple[str, ...]:
    try:
        view_set = store.view_set(name)
        about = f"{view_set.spec.images} images"
        return (f"[bold]{name}[/bold]", *_cells(view_set), _count(users, view_set), about)
    except StoreError:
        return (f"[bold]{name}[/bold]", "damaged: sak store verify")


def _column_row(store: Store, view_set: str, name: str, users: Mapping[str, int]) -> tuple[str, ...]:
    try:
        column = store.column(view_set, name)
        return (
            f"  {name} ({column.spec.codec.name})",
            *_cells(column),
            _count(users, column),
            short_identity(column),
        )
    except StoreError:
        return (f"  {name}", "damaged: sak store verify")


def _count(users: Mapping[str, int], item: ViewSet | Column) -> str:
    return str(users.get(item.folder) or "–")


def _cells(item: ViewSet | Column) -> tuple[str, str, str, str, str]:
    spec = item.spec if isinstance(item, ViewSet) else item.view_set.spec
    done = progress(item.commits.ledger(), spec=spec)
    fp16_bytes = 0 if isinstance(item, ViewSet) else done.rows * item.spec.fp16_bytes_per_row
    return (
        f"{done.views}/{spec.views}",
        f"{done.rows}/{spec.rows}",
        f"{done.parts}/{spec.parts}",
        f"{done.bytes / 1e6:.1f} MB",
        f"{done.bytes / fp16_bytes:.1%}" if fp16_bytes else "–",
    )


def _size(count: int) -> str:
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"
