"""What a verification found, in words, and what to do about it by hand."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from store.errors import one_line
from store.verify import Finding, PartLocation, locate_part

__all__ = ["Verdict", "finding_line", "remedies"]


class Verdict(NamedTuple):
    """Outcome of a verification: one line for each finding, and whether any is an error."""

    lines: tuple[str, ...]
    failed: bool


def finding_line(found: Finding, /) -> str:
    """A finding in words."""
    rows = f" (rows {found.rows.start}-{found.rows.stop - 1})" if found.rows else ""
    return one_line(f"{found.severity}: {found.path}{rows}: {found.problem}")


def remedies(findings: Sequence[Finding], root: str | Path) -> list[str]:
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
        if found.unrecorded:
            lines[f"the same sak extract or sak run: it makes part {where.part} of {where.folder} again"] = None
            continue
        command = shlex.join(["sak", "store", "discard", str(root), where.folder.split("/", 1)[1], str(where.part)])
        lines[f"{command}, then the same sak extract or sak run: it makes that part again"] = None
    return list(lines)


def _file_remedy(found: Finding) -> str:
    name = found.path.rsplit("/", 1)[-1]
    if found.stray:
        return "delete it; no record needs it"
    if found.path.startswith("uses/") and found.rows is not None:
        return "restore the part that it names from a copy, or train its experiment anew"
    if found.path.startswith("uses/"):
        return "delete it; its experiment writes it again when it is resumed"
    if name in ("view_set.json", "column.json"):
        return "delete this file; the same sak extract writes it again and keeps the parts"
    if name == "zarr.json" or "/codec_" in found.path:
        return "delete its column's column.json; the same sak extract writes both again and keeps the parts"
    return "restore it from a copy"
