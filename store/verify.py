"""Re-reads and re-hashes every byte of a store and names what differs; never repairs."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from store.column import Column
from store.commits import ObjectDigest, PartCommit, PartLocation, locate_part, part_name
from store.document import MAX_DOCUMENT_BYTES, parse_document
from store.errors import StoreError
from store.fingerprint import digest_bytes
from store.layout import column_files, load_record
from store.root import Root, is_name, is_temporary
from store.store import Store
from store.tarball import scan_tar
from store.transfer import EXPORT_RECORD, load_export
from store.uses import USES, load_use
from store.viewset import ViewSet

__all__ = ["Finding", "PartLocation", "locate_part", "verify"]

Progress = Callable[[int, int], None]

_IMAGES = re.compile(r"views/[^/]+/images/.+")
_OWNED_FILE = re.compile(r"(?P<folder>views/[^/]+|columns/[^/]+/[^/]+)/.+", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is not as it should be, or worth knowing.

    ``rows`` are those that cannot be trusted, None where the file serves all rows or none. ``info`` is what a rerun or
    another writer explains: unfinished parts and temporary files. ``stray`` is a file that belongs to nothing.
    """

    path: str
    rows: range | None
    problem: str
    severity: Literal["error", "info"]
    stray: bool = False


class _Scope:
    """Which files are to be checked: all, or these files and the view sets and columns in these folders."""

    def __init__(self, paths: Collection[str] | None) -> None:
        self._paths = None if paths is None else frozenset(paths)

    def has(self, path: str) -> bool:
        if self._paths is None:
            return True
        names = path.split("/")
        return any("/".join(names[:count]) in self._paths for count in range(1, len(names) + 1))

    def touches(self, folder: str) -> bool:
        """Whether anything in a folder is to be checked."""
        if self._paths is None or self.has(folder):
            return True
        return any(path.startswith(f"{folder}/") for path in self._paths)

    def parts(self, folder: str, committed: Sequence[int]) -> list[int]:
        """Those of a view set's or column's parts of which anything is to be checked."""
        if self._paths is None or self.has(folder):
            return list(committed)
        named = {found.part for path in self._paths if (found := locate_part(path)) and found.folder == folder}
        return [part for part in committed if part in named]

    def files(self, root: Root) -> list[str]:
        if self._paths is None:
            return root.files()
        if all(root.stamp(path) is not None for path in self._paths):
            return sorted(self._paths)
        return [path for path in root.files() if self.has(path)]


class _Audit:
    """Collects findings and remembers which files have been accounted for."""

    def __init__(self, root: Root, scope: _Scope, progress: Progress | None) -> None:
        self.root = root
        self.scope = scope
        self.findings: list[Finding] = []
        self.files = scope.files(root)
        self._left = set(self.files)
        self._progress = progress
        self.imageless = self._is_imageless()

    def _is_imageless(self) -> bool:
        """Whether this is an export that was made without images; accounts for its record."""
        if not self.scope.has(EXPORT_RECORD) or self.root.stamp(EXPORT_RECORD) is None:
            return False
        self.account(EXPORT_RECORD)
        try:
            export = load_export(self.root)
        except StoreError as error:
            self.error(EXPORT_RECORD, str(error))
            return False
        return export is not None and not export.images

    def error(self, path: str, problem: str, *, rows: range | None = None, stray: bool = False) -> None:
        self.findings.append(Finding(path=path, rows=rows, problem=problem, severity="error", stray=stray))

    def info(self, path: str, problem: str, *, rows: range | None = None) -> None:
        self.findings.append(Finding(path=path, rows=rows, problem=problem, severity="info"))

    def account(self, path: str) -> None:
        self._left.discard(path)
        if self._progress is not None:
            self._progress(len(self.files) - len(self._left), len(self.files))

    def left(self) -> list[str]:
        return sorted(self._left)

    def check_file(self, path: str, digest: ObjectDigest, *, rows: range | None) -> bool:
        """Compare one file with what was recorded; True when it is whole, or not to be checked."""
        if not self.scope.has(path):
            return True
        self.account(path)
        try:
            stamp = self.root.stamp(path)
            if stamp is None and self.imageless and _IMAGES.fullmatch(path):
                self.info(path, "left out of this export", rows=rows)
                return True
            if stamp is None:
                self.error(path, "missing", rows=rows)
            elif stamp.size != digest.size:
                self.error(path, f"expected {digest.size} bytes, got {stamp.size}", rows=rows)
            elif self.root.digest(path) != digest.sha256:
                self.error(path, "its SHA-256 differs from its record", rows=rows)
            else:
                return True
        except StoreError as error:
            self.error(path, str(error), rows=rows)
        return False


def verify(store: Store, /, *, paths: Collection[str] | None = None, progress: Progress | None = None) -> list[Finding]:
    """Check every file of a store, or some.

    Finds flipped, missing, truncated, swapped and extra bytes, rows that do not decode to what was encoded, records
    that disagree with what they describe, columns that do not belong to their view set, and files that no record
    accounts for.

    Args:
        paths: Check only these files, and what is in these folders of view sets and columns, with the records that
            vouch for them. For one part or column of a large store.
        progress: Called with files checked and files in all.

    Returns:
        Findings in the order of their paths; a sound store has none of severity ``error``.
    """
    audit = _Audit(store.root, _Scope(paths), progress)
    if audit.scope.has("store.json"):
        _check_document(audit, "store.json", kind="store")
    open_view_sets = _open_view_sets(audit)
    for view_set in open_view_sets.values():
        if audit.scope.touches(view_set.folder):
            _check_view_set(audit, view_set)
    for name in _folders(audit, "columns"):
        for column_name in _folders(audit, f"columns/{name}"):
            _check_column(audit, open_view_sets.get(name), f"columns/{name}/{column_name}")
    _check_uses(audit)
    _check_left(audit)
    return sorted(audit.findings, key=lambda finding: (finding.path, finding.severity, finding.problem))


def _open_view_sets(audit: _Audit) -> dict[str, ViewSet]:
    found: dict[str, ViewSet] = {}
    for name in audit.root.folders("views"):
        folder = f"views/{name}"
        wanted = audit.scope.touches(folder) or audit.scope.touches(f"columns/{name}")
        if not wanted or _is_unborn(audit, folder, record="view_set.json"):
            continue
        try:
            audit.account(f"{folder}/view_set.json")
            found[name] = ViewSet(audit.root, name)
        except StoreError as error:
            audit.error(f"{folder}/view_set.json", str(error))
    return found


def _folders(audit: _Audit, relative: str) -> list[str]:
    """Names of real folders to look into; a link is reported later as a file that does not belong."""
    return [name for name in audit.root.folders(relative) if audit.scope.touches(f"{relative}/{name}")]


def _is_unborn(audit: _Audit, folder: str, *, record: str) -> bool:
    """Whether its writer died before the first record, which comes before any part: nothing is lost then."""
    return audit.root.stamp(f"{folder}/{record}") is None and not audit.root.names(f"{folder}/commits")


def _check_document(audit: _Audit, path: str, *, kind: str) -> None:
    audit.account(path)
    try:
        parse_document(audit.root.read_bytes(path, max_bytes=MAX_DOCUMENT_BYTES), kind=kind, where=path)
    except StoreError as error:
        audit.error(path, str(error))


def _checked_commits(audit: _Audit, owner: ViewSet | Column) -> Iterator[PartCommit]:
    """Records that are sound, after checking their objects."""
    for part in audit.scope.parts(owner.folder, owner.committed_parts()):
        path = owner.commits.path(part)
        audit.account(path)
        rows = _part_rows(owner, part)
        try:
            commit = owner.commits.load(part)
        except StoreError as error:
            audit.error(path, str(error), rows=rows)
            continue
        whole = [
            audit.check_file(f"{owner.folder}/{relative}", digest, rows=rows)
            for relative, digest in commit.objects.items()
        ]
        cost = owner.commits.cost_path(part)
        if audit.scope.has(cost) and audit.root.stamp(cost) is not None:
            _check_document(audit, cost, kind="cost")
        if all(whole):
            yield commit


def _check_view_set(audit: _Audit, view_set: ViewSet) -> None:
    for commit in _checked_commits(audit, view_set):
        path = f"{view_set.folder}/images/{part_name(commit.part)}.tar"
        try:
            index = view_set.load_index(commit.part)
            if audit.imageless and audit.root.stamp(path) is None:
                continue
            with contextlib.closing(audit.root.open(path)) as file:
                members = scan_tar(file, where=path)
            view_set.check_part(commit.part)
        except (StoreError, OSError) as error:
            audit.error(path, str(error), rows=commit.rows)
            continue
        listed = {(row.row, entry.suffix, entry.offset, entry.size) for row in index for entry in row.files}
        if {tuple(member) for member in members if member.suffix != "json"} != listed:
            audit.error(path, "its members are not those of the index", rows=commit.rows)
        if commit.excluded != tuple(row.row for row in index if row.error is not None):
            audit.error(view_set.commits.path(commit.part), "excluded rows differ from the index", rows=commit.rows)


def _check_column(audit: _Audit, view_set: ViewSet | None, folder: str) -> None:
    path = f"{folder}/column.json"
    if _is_unborn(audit, folder, record="column.json"):
        return
    if view_set is None:
        audit.error(path, "its view set is missing or damaged")
        return
    audit.account(path)
    try:
        column = Column(audit.root, folder.rsplit("/", 1)[1], view_set=view_set)
    except StoreError as error:
        audit.error(path, str(error))
        _check_described(audit, folder, None, view_set=view_set)
        return
    _check_described(audit, folder, column, view_set=view_set)
    for commit in _checked_commits(audit, column):
        if set(commit.objects) != set(column.part_files(commit.part)):
            audit.error(column.commits.path(commit.part), "lists other files than the column has", rows=commit.rows)
            continue
        try:
            column.check_join_part(view_set, commit.part)
        except StoreError as error:
            audit.error(column.commits.path(commit.part), str(error), rows=commit.rows)
        _check_content(audit, column, commit)


def _check_described(audit: _Audit, folder: str, column: Column | None, *, view_set: ViewSet) -> None:
    """Check the files that describe a column's arrays; one that cannot be opened is blamed already."""
    try:
        objects = column.objects if column else load_record(audit.root, folder).objects
    except StoreError:
        return
    sound = True
    for relative, digest in objects.items():
        path = f"{folder}/{relative}"
        if column is not None and _is_grown(audit, path, digest, column=column, view_set=view_set):
            audit.account(path)
            audit.info(path, "describes more rows than its column.json; a rerun completes it")
            sound = False
        else:
            sound &= audit.check_file(path, digest, rows=None)
    if column is not None and sound and audit.scope.has(f"{folder}/zarr.json"):
        try:
            column.check_metadata()
        except StoreError as error:
            audit.error(f"{folder}/column.json", str(error))


def _is_grown(audit: _Audit, path: str, digest: ObjectDigest, *, column: Column, view_set: ViewSet) -> bool:
    """Whether a file tells of more rows than ``column.json``: a writer died while views were being appended."""
    if view_set.spec.views == 1 or not path.endswith("/zarr.json") or not audit.scope.has(path):
        return False
    found = audit.root.digest(path) if audit.root.stamp(path) else digest.sha256
    if found == digest.sha256:
        return False
    grown = column_files(column.spec, view_set.spec, backend=column.backend)
    return digest_bytes(grown[path.split("/", 3)[3]]) == found


def _check_content(audit: _Audit, column: Column, commit: PartCommit) -> None:
    """Unpack every row: files may be what their record says and still not hold what was encoded."""
    try:
        column.check_content(commit.part)
    except StoreError as error:
        audit.error(column.commits.path(commit.part), str(error), rows=commit.rows)


def _check_uses(audit: _Audit) -> None:
    for name in audit.root.names(USES):
        path = f"{USES}/{name}"
        if audit.scope.has(path):
            audit.account(path)
            try:
                load_use(audit.root, name)
            except StoreError as error:
                audit.error(path, str(error))


def _part_rows(owner: ViewSet | Column, part: int) -> range:
    spec = owner.spec if isinstance(owner, ViewSet) else owner.view_set.spec
    return spec.part_rows(part)


def _check_left(audit: _Audit) -> None:
    """Files that no record accounts for: harmless where an interrupted writer explains them, else errors."""
    broken = {finding.path for finding in audit.findings}
    for path in audit.left():
        if audit.root.is_link(path):
            audit.error(path, "a link; only plain files belong in a store", stray=True)
        elif is_temporary(path.rsplit("/", 1)[-1]):
            audit.info(path, "temporary file of a writer that runs or died")
        elif not all(audit.root.stamp(record) for record in _records(path)):
            audit.info(path, "belongs to something without a record yet; a rerun completes it")
        elif not _records(path) & broken:  # what a broken record would have listed is not worth a line each
            audit.error(path, "no record accounts for this file", stray=True)


def _records(path: str) -> set[str]:
    """Records whose writing comes after a file's own: while one is missing, an interrupted writer explains the file."""
    records = set()
    part = locate_part(path)
    if part is not None and "/commits/" not in path:
        records.add(f"{part.folder}/commits/{part_name(part.part)}.json")
    owner = _OWNED_FILE.fullmatch(path)
    if owner is not None and all(map(is_name, owner["folder"].split("/"))):
        records.add(f"{owner['folder']}/{'column' if path.startswith('columns/') else 'view_set'}.json")
    return records
