"""Re-reads and re-hashes every byte of a store and names what differs; never repairs.

A writer may work beside it. Its files come before its record and are in a listing that is made first, so that what
looks like a part without a record may be one in the making. Where the root has locks the part is locked then, until the
record is there; where it has none (object stores, some network file systems) a writer is believed to be at
work for an hour after the youngest of the part's files. A record of a view set or column that is replaced meanwhile
(views are appended) makes its checks begin again. What cannot be told from damage: a part that ``repair`` or
``discard`` removes at this very moment, and writers on another host whose locks do not reach this one.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Collection, Iterator
from functools import partial

from store.audit import Audit, Finding, Progress, Scope, part_record, record_of
from store.column import Column
from store.commits import ObjectDigest, PartCommit, PartLocation, is_at_work, locate_part, part_name
from store.document import MAX_DOCUMENT_BYTES, parse_document
from store.errors import StoreError
from store.fingerprint import digest_bytes
from store.layout import column_files, load_record
from store.root import is_name, is_temporary
from store.store import Store
from store.tarball import scan_tar
from store.transfer import EXPORT_RECORD, load_export
from store.uses import USES, Use, load_use
from store.viewset import ReadOptions, ViewSet

__all__ = ["UNSETTLED_SECONDS", "Finding", "PartLocation", "locate_part", "verify"]

UNSETTLED_SECONDS = 3600.0
"""Without locks, the files of a part may wait so long for its record before it is missed."""

_OWNED_FILE = re.compile(r"(?P<folder>views/[^/]+|columns/[^/]+/[^/]+)/.+", re.DOTALL)
# Files are digested whole here, once; opening them need not do it again.
_OPTIONS = ReadOptions(verify="row")
_TRIES = 5

_Views = dict[str, ViewSet]


def verify(store: Store, /, *, paths: Collection[str] | None = None, progress: Progress | None = None) -> list[Finding]:
    """Check every file of a store, or some.

    Finds flipped, missing, truncated, swapped and extra bytes, rows that do not decode to what was encoded, records
    that disagree with what they describe, columns that do not belong to their view set, parts whose record is gone
    while their files or the experiments that read them are not, and files that no record accounts for. Rows that are
    still to be written are ``info``.

    Args:
        paths: Check only these files, and what is in these folders of view sets and columns, with the records that
            vouch for them. For one part or column of a large store.
        progress: Called with files checked and files in all.

    Returns:
        Findings in the order of their paths; a sound store has none of severity ``error``.
    """
    audit = Audit(store.root, Scope(paths), progress)
    _check_export(audit)
    if audit.scope.has("store.json"):
        _check_document(audit, "store.json", kind="store")
    views: _Views = {}
    for name in audit.root.folders("views"):
        if audit.scope.touches(f"views/{name}") or audit.scope.touches(f"columns/{name}"):
            _until_settled(audit, views, partial(_check_view_set, audit, name, views))
    for name in _folders(audit, "columns"):
        for column in _folders(audit, f"columns/{name}"):
            _until_settled(audit, views, partial(_check_column, audit, f"columns/{name}/{column}", views))
    _check_uses(audit)
    _check_left(audit)
    _tell_missing(audit)
    return sorted(audit.findings, key=lambda finding: (finding.path, finding.severity, finding.problem))


def _until_settled(audit: Audit, views: _Views, check: Callable[[], None]) -> None:
    """Check again what was described anew while it was being checked: it is measured by another record then."""
    for left in reversed(range(_TRIES)):
        count = len(audit.findings)
        check()
        failed = any(found.severity == "error" for found in audit.findings[count:])
        changed = [path for path, stamp in audit.stamps.items() if failed and audit.root.stamp(path) != stamp]
        if not changed or not left:
            return
        del audit.findings[count:]
        views.clear()
        audit.stamps.clear()


def _check_export(audit: Audit) -> None:
    """Whether this is an export that was made without images; accounts for its record."""
    if not audit.scope.has(EXPORT_RECORD) or audit.root.stamp(EXPORT_RECORD) is None:
        return
    audit.account(EXPORT_RECORD)
    try:
        export = load_export(audit.root)
    except StoreError as error:
        audit.error(EXPORT_RECORD, str(error))
    else:
        audit.imageless = export is not None and not export.images


def _folders(audit: Audit, relative: str) -> list[str]:
    """Names of real folders to look into; a link is reported later as a file that does not belong."""
    return [name for name in audit.root.folders(relative) if audit.scope.touches(f"{relative}/{name}")]


def _is_unborn(audit: Audit, folder: str) -> bool:
    """Whether it has neither a record nor a part that has one: a writer died before the first, or is not there yet."""
    return audit.root.stamp(record_of(folder)) is None and not audit.root.names(f"{folder}/commits")


def _check_document(audit: Audit, path: str, *, kind: str) -> None:
    audit.account(path)
    try:
        parse_document(audit.root.read_bytes(path, max_bytes=MAX_DOCUMENT_BYTES), kind=kind, where=path)
    except StoreError as error:
        audit.error(path, str(error))


def _checked_commits(audit: Audit, owner: ViewSet | Column) -> Iterator[PartCommit]:
    """Records that are sound, after checking their objects."""
    for part in audit.scope.parts(owner.folder, owner.committed_parts()):
        path, rows = owner.commits.path(part), audit.part_rows(owner.folder, part)
        audit.account(path)
        try:
            commit = owner.commits.load(part)
        except StoreError as error:
            if audit.root.stamp(path) is not None:  # else it was removed since it was listed
                audit.error(path, str(error), rows=rows)
            continue
        audit.digests[path] = commit.digest()
        whole = [
            audit.check_file(f"{owner.folder}/{relative}", digest, rows=rows)
            for relative, digest in commit.objects.items()
        ]
        cost = owner.commits.cost_path(part)
        if audit.scope.has(cost) and audit.root.stamp(cost) is not None:
            _check_document(audit, cost, kind="cost")
        if all(whole):
            yield commit


def _check_view_set(audit: Audit, name: str, views: _Views) -> None:
    folder = f"views/{name}"
    record = record_of(folder)
    audit.stamps[record] = audit.root.stamp(record)
    if _is_unborn(audit, folder):
        return
    audit.account(record)
    try:
        view_set = views[name] = ViewSet(audit.root, name, options=_OPTIONS)
    except StoreError as error:
        audit.error(record, str(error))
        return
    audit.specs[folder] = view_set.spec
    if audit.scope.has(folder):
        audit.missing[folder] = view_set.missing_parts()
    for commit in _checked_commits(audit, view_set):
        _check_images(audit, view_set, commit)


def _check_images(audit: Audit, view_set: ViewSet, commit: PartCommit) -> None:
    path = f"{view_set.folder}/images/{part_name(commit.part)}.tar"
    try:
        index = view_set.index(commit.part)
        if audit.imageless and audit.root.stamp(path) is None:
            return
        with contextlib.closing(audit.root.open(path)) as file:
            members = scan_tar(file, where=path)
        view_set.check_part(commit.part)
    except (StoreError, OSError) as error:
        audit.error(path, str(error), rows=commit.rows)
        return
    listed = {(row.row, entry.suffix, entry.offset, entry.size) for row in index for entry in row.files}
    if {tuple(member) for member in members if member.suffix != "json"} != listed:
        audit.error(path, "its members are not those of the index", rows=commit.rows)
    if commit.excluded != tuple(row.row for row in index if row.error is not None):
        audit.error(view_set.commits.path(commit.part), "excluded rows differ from the index", rows=commit.rows)


def _check_column(audit: Audit, folder: str, views: _Views) -> None:
    record, (_, name, column_name) = record_of(folder), folder.split("/")
    audit.stamps[record] = audit.root.stamp(record)
    if _is_unborn(audit, folder):
        return
    view_set = _known_view_set(audit, name, views)
    if view_set is None:
        audit.error(record, "its view set is missing or damaged")
        return
    audit.account(record)
    try:
        column = Column(audit.root, column_name, view_set=view_set, options=_OPTIONS)
    except StoreError as error:
        audit.error(record, str(error))
        _check_described(audit, folder, None, view_set=view_set)
        return
    audit.specs[folder] = view_set.spec
    _check_described(audit, folder, column, view_set=view_set)
    if audit.scope.has(folder):
        audit.missing[folder] = column.missing_parts()
    for commit in _checked_commits(audit, column):
        if set(commit.objects) != set(column.part_files(commit.part)):
            audit.error(column.commits.path(commit.part), "lists other files than the column has", rows=commit.rows)
            continue
        try:
            column.check_join_part(view_set, commit.part)
        except StoreError as error:
            audit.error(column.commits.path(commit.part), str(error), rows=commit.rows)
        _check_content(audit, column, commit)


def _known_view_set(audit: Audit, name: str, views: _Views) -> ViewSet | None:
    """The view set as it was opened, or opened again where it has changed since; its own damage is found elsewhere."""
    record = record_of(f"views/{name}")
    if record not in audit.stamps:
        audit.stamps[record] = audit.root.stamp(record)
        with contextlib.suppress(StoreError):
            views[name] = ViewSet(audit.root, name, options=_OPTIONS)
    return views.get(name)


def _check_described(audit: Audit, folder: str, column: Column | None, *, view_set: ViewSet) -> None:
    """Check the files that describe a column's arrays; one that cannot be opened is blamed already."""
    try:
        objects = column.objects if column else load_record(audit.root, folder).objects
    except StoreError:
        return
    sound = True

    def grown(path: str, digest: ObjectDigest) -> bool:
        if column is None or not _is_grown(audit, path, digest, column=column, view_set=view_set):
            return False
        audit.account(path)
        audit.info(path, "describes more rows than its column.json; a rerun completes it")
        return True

    for relative, digest in objects.items():
        path = f"{folder}/{relative}"
        if grown(path, digest):
            sound = False
        else:
            sound &= audit.check_file(path, digest, rows=None)
    if column is not None and sound and audit.scope.has(f"{folder}/zarr.json"):
        try:
            column.check_metadata()
        except StoreError as error:
            # Asked again, because a writer beside us may have described the views that it appends meanwhile.
            if not sum(grown(f"{folder}/{relative}", digest) for relative, digest in objects.items()):
                audit.error(f"{folder}/column.json", str(error))


def _is_grown(audit: Audit, path: str, digest: ObjectDigest, *, column: Column, view_set: ViewSet) -> bool:
    """Whether a file tells of more rows than ``column.json``: a writer died while views were being appended."""
    if view_set.spec.views == 1 or not path.endswith("/zarr.json") or not audit.scope.has(path):
        return False
    grown = column_files(column.spec, view_set.spec, backend=column.backend).get(path.split("/", 3)[3])
    found = None
    with contextlib.suppress(StoreError):  # what cannot be read is told where the file itself is checked
        found = audit.root.digest(path) if audit.root.stamp(path) else None
    return grown is not None and found not in (None, digest.sha256) and digest_bytes(grown) == found


def _check_content(audit: Audit, column: Column, commit: PartCommit) -> None:
    """Unpack every row: files may be what their record says and still not hold what was encoded."""
    try:
        column.check_content(commit.part)
    except StoreError as error:
        audit.error(column.commits.path(commit.part), str(error), rows=commit.rows)


def _check_uses(audit: Audit) -> None:
    blamed = audit.blamed()
    for name in audit.root.names(USES):
        path = f"{USES}/{name}"
        try:
            use = load_use(audit.root, name)
        except StoreError as error:
            if audit.scope.has(path):
                audit.account(path)
                audit.error(path, str(error))
            continue
        if audit.scope.has(path):
            audit.account(path)
        for folder, parts in use.commits.items():
            record = record_of(folder)
            if record in blamed:
                continue
            if audit.root.stamp(record) is None and (audit.scope.has(path) or audit.scope.has(record)):
                audit.error(record, f"missing, and {_reads(use)} {len(parts)} parts of it; {_RESTORE}")
                continue
            for part, digest in parts.items():
                commit = f"{folder}/commits/{part_name(part)}.json"
                if commit not in blamed and (audit.scope.has(path) or audit.scope.has(commit)):
                    _check_used(audit, use, commit, digest)


_RESTORE = "run the same sak extract, and if that does not give the same bytes, restore it from a copy"


def _reads(use: Use) -> str:
    return f"experiment {use.experiment} (in {use.folder} on {use.host}) reads"


def _check_used(audit: Audit, use: Use, commit: str, digest: str) -> None:
    """Compare a part's record with the one that an experiment found."""
    try:
        found = audit.digests.get(commit) or (audit.root.digest(commit) if audit.root.stamp(commit) else None)
    except StoreError:  # it went at this moment
        found = None
    if found is None:
        _check_unrecorded(audit, commit, f"missing, and {_reads(use)} it; {_RESTORE}", files=[])
    elif found != digest:
        where = locate_part(commit)
        rows = audit.part_rows(*where) if where else None
        problem = f"{_reads(use)} another {commit} than there is: the part was made again with other bytes"
        audit.error(use.path, f"{problem}; restore it from a copy, or delete that folder to train anew", rows=rows)


def _check_left(audit: Audit) -> None:
    """Files that no record accounts for: harmless where a writer at work explains them, else errors."""
    blamed = audit.blamed()
    parts: dict[str, list[str]] = {}
    for path in audit.left():
        owner = _OWNED_FILE.fullmatch(path)
        folder = owner["folder"] if owner and all(map(is_name, owner["folder"].split("/"))) else None
        commit = part_record(path)
        if audit.root.is_link(path):
            audit.error(path, "a link; only plain files belong in a store", stray=True)
        elif is_temporary(path.rsplit("/", 1)[-1]):
            audit.info(path, "temporary file of a writer that runs or died")
        elif all(map(is_name, path.split("/"))) and not audit.root.exists(path):
            continue  # removed since it was listed
        elif folder is not None and {commit, record_of(folder)} & blamed:
            continue  # what a broken record would have told of is not worth a line each
        elif commit is not None and commit not in audit.digests and not _is_beyond(audit, path):
            parts.setdefault(commit, []).append(path)
        elif folder is not None and commit is None and folder not in audit.specs:
            audit.info(path, "belongs to something without a record yet; a rerun completes it")
        else:
            audit.error(path, "no record accounts for this file", stray=True)
    for commit, files in parts.items():
        names = files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more files of the part"
        problem = f"missing, though there still is {names}: left by a writer that died, or the record was deleted"
        _check_unrecorded(audit, commit, f"{problem}; the same sak extract makes the part again", files=files)


def _tell_missing(audit: Audit) -> None:
    """Parts of which there is nothing yet, which is no damage."""
    told = {found.path for found in audit.findings}
    for folder, parts in audit.missing.items():
        missing = [part for part in parts if f"{folder}/commits/{part_name(part)}.json" not in told]
        if missing:
            spec = audit.specs[folder]
            rows = spec.part_rows(missing[0])
            problem = f"{len(missing)} of {spec.parts} parts are still to be written, the first one rows {rows.start}"
            audit.info(record_of(folder), f"{problem} to {rows.stop - 1}; the same sak extract writes them")


def _is_beyond(audit: Audit, path: str) -> bool:
    """Whether a file is named like that of a part that its view set does not have."""
    where = locate_part(path)
    spec = audit.spec_of(where.folder) if where else None
    return where is not None and spec is not None and where.part >= spec.parts


def _check_unrecorded(audit: Audit, commit: str, problem: str, *, files: list[str]) -> None:
    """A part that should have a record: whether one is being written, has been meanwhile, or is missed."""
    where = locate_part(commit)
    assert where is not None
    rows = audit.part_rows(*where)
    # Asked before the record is looked for: a writer that ends in between has left it.
    locked = is_at_work(audit.root, where)
    if audit.root.stamp(commit) is not None:
        audit.info(commit, "written while this ran; verify again to have it checked", rows=rows)
    elif locked or (locked is None and _is_young(audit, files)):
        audit.info(commit, "not there yet: a writer is at work, or was within the last hour", rows=rows)
    else:
        audit.unrecorded(commit, problem, rows=rows)


def _is_young(audit: Audit, files: list[str]) -> bool:
    stamps = [stamp for path in files if (stamp := audit.root.stamp(path)) is not None]
    return any(stamp.modified_ns / 1e9 > time.time() - UNSETTLED_SECONDS for stamp in stamps)
