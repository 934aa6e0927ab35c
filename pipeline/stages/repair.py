"""Stage ``repair``: what a verification finds damaged is made again, and nothing else is touched.

View sets come first, from their images; columns then, from the stored pixels. Where a part of a view set comes out as
it was, byte for byte, what was made from it stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.config import Study
from pipeline.damage import Item, Rank, damage, merged
from pipeline.makers import makers_of
from pipeline.mending import Mender, describe
from pipeline.tracking import progress_bar
from pipeline.verdicts import Verdict, finding_line, remedies
from store.document import render_document
from store.errors import CorruptShardError, FormatError, StoreError
from store.root import is_temporary
from store.roots import open_root
from store.store import Store
from store.verify import Finding, verify

__all__ = ["repair_store"]

_RECORD = "store.json"
_WOULD = {
    Rank.COST: "remove the damaged note",
    Rank.VIEWS: "rewrite the description of",
    Rank.VIEW_PART: "remake",
    Rank.COLUMN: "rewrite the description of",
    Rank.COLUMN_PART: "remake",
}


def repair_store(
    root: str | Path, studies: Sequence[Study], /, *, dry_run: bool = False, delete_stray: bool = False
) -> Verdict:
    """Verify a store, make what is damaged again, and verify that.

    Killed at any moment it leaves a store that another repair finishes.

    Args:
        studies: What says where images and teachers are.
        dry_run: Change nothing; say what would be done.
        delete_stray: Delete files that belong to nothing, and temporary files whose writers have died.

    Returns:
        What was done and what is left, and whether damage is left.

    Raises:
        StoreError: There is no store at ``root``, or a newer sak made it.
    """
    lines = _mend_root(str(root), dry_run=dry_run)
    if lines and dry_run:
        return Verdict((*lines, "what else is damaged shows only then"), True)
    store = Store.open(str(root))
    findings = _verify(store)
    mender = Mender(store, makers_of(studies))
    if dry_run:
        items = damage(store, findings)
        reasons = {item: mender.refusal(item) for item in items}
        lines += [f"would {_WOULD[item.rank]} {describe(store, item)}" for item in items if reasons[item] is None]
        findings = [found for found in findings if not _is_mended(store, found, reasons)]
    else:
        reasons, findings = _mend_all(mender, findings)
        lines += mender.lines
    gone = _delete_strays(store, findings, dry_run=dry_run) if delete_stray else []
    lines += [f"{'would delete' if dry_run else 'deleted'} {path}" for path in gone]
    findings = [found for found in findings if found.path not in gone]
    return Verdict((*lines, *_left(store, findings, reasons, root=str(root))), _failed(findings))


def _mend_all(mender: Mender, findings: list[Finding]) -> tuple[dict[Item, str | None], list[Finding]]:
    """Mend what can be, one rank after the other; what was touched is verified before the next.

    Returns:
        What was tried with the reasons of what was refused, and what is found now.
    """
    tried: dict[Item, str | None] = {}
    while items := [item for item in damage(mender.store, findings) if item not in tried]:
        now = [item for item in items if item.rank == items[0].rank]
        reasons = mender.mend(now)
        tried |= reasons
        paths = {path for item in now if reasons[item] is None for path in mender.touched(item)}
        if paths:
            findings = merged(findings, verify(mender.store, paths=paths), paths=paths)
    return tried, findings


def _is_mended(store: Store, found: Finding, reasons: dict[Item, str | None]) -> bool:
    items = damage(store, [found])
    return bool(items) and all(reasons[item] is None for item in items)


def _failed(findings: Sequence[Finding]) -> bool:
    return any(found.severity == "error" for found in findings)


def _left(store: Store, findings: Sequence[Finding], reasons: dict[Item, str | None], *, root: str) -> list[str]:
    """What was found and is still there, why, and what to do about it by hand."""
    why = {describe(store, item): reason for item, reason in reasons.items() if reason}
    return [
        *(finding_line(found) for found in findings),
        *(f"not repaired: {what}: {' '.join(reason.split())}" for what, reason in why.items()),
        *(f"remedy: {line}" for line in remedies(findings, root)),
    ]


def _mend_root(root: str, *, dry_run: bool) -> list[str]:
    """Write ``store.json`` anew where it is damaged or gone; it says nothing but what this folder is."""
    try:
        Store.open(root)
    except (FormatError, CorruptShardError) as error:
        opened = open_root(root)
        is_store = any(opened.folders(name) for name in ("views", "columns"))
        gone = opened.stamp(_RECORD) is None
        if not is_store or not (gone or isinstance(error, CorruptShardError)):
            raise
        if dry_run:
            return [f"would write {_RECORD} anew"]
        opened.write_atomic(_RECORD, render_document("store", {"created_by": "sak"}), replace=True)
        return [f"wrote {_RECORD} anew"]
    return []


def _verify(store: Store) -> list[Finding]:
    with progress_bar("objects") as bar:
        shown = bar.add_task("verify", total=None)
        return verify(store, progress=lambda done, total: bar.update(shown, completed=done, total=total))


def _delete_strays(store: Store, findings: Sequence[Finding], *, dry_run: bool) -> list[str]:
    """Delete what belongs to nothing; returns what is gone, or would be."""
    dead = set(store.root.abandoned())
    gone: list[str] = []
    for found in findings:
        try:
            if found.stray and not dry_run:
                store.root.remove(found.path)
            elif is_temporary(found.path.rsplit("/", 1)[-1]) and found.path in dead and not dry_run:
                store.root.clean(found.path.rpartition("/")[0] or None)
            elif not found.stray and found.path not in dead:
                continue
        except StoreError:  # a name or a link that the store refuses to follow: the finding stands
            continue
        gone.append(found.path)
    return gone
