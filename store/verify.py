"""Re-reads and re-hashes every byte of a store and names what differs; never repairs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from store.column import Column
from store.commits import PartCommit, part_name
from store.document import MAX_DOCUMENT_BYTES, parse_document
from store.errors import StoreError
from store.layout import load_record
from store.root import Root, is_temporary
from store.shard import ObjectDigest
from store.store import Store
from store.tarball import scan_tar
from store.viewset import ViewSet

__all__ = ["Finding", "PartLocation", "locate_part", "verify"]

Progress = Callable[[int, int], None]

_PART_FILE = re.compile(
    r"(?P<folder>views/[^/]+|columns/[^/]+/[^/]+)/"
    r"(?:(?:index|images|costs|commits)/part-|level_\d+(?:_\w+)?/c/)(?P<part>\d{1,12})(?:[./].*)?"
)
_OWNED_FILE = re.compile(r"(?P<folder>views/[^/]+|columns/[^/]+/[^/]+)/.+")


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


class PartLocation(NamedTuple):
    """A part of a view set or column: its owner's folder in the store, and its number."""

    folder: str
    part: int


def locate_part(path: str, /) -> PartLocation | None:
    """The part that a file belongs to, from its path in the store; None for a file of no single part."""
    match = _PART_FILE.fullmatch(path)
    return PartLocation(match["folder"], int(match["part"])) if match else None


class _Audit:
    """Collects findings and remembers which files have been accounted for."""

    def __init__(self, root: Root, progress: Progress | None) -> None:
        self.root = root
        self.findings: list[Finding] = []
        self.files = self.root.files()
        self._left = set(self.files)
        self._progress = progress

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
        """Compare one file with what was recorded; True when it is whole."""
        self.account(path)
        try:
            stamp = self.root.stamp(path)
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


def verify(store: Store, /, *, progress: Progress | None = None) -> list[Finding]:
    """Check every file of a store.

    Finds flipped, missing, truncated, swapped and extra bytes, records that disagree with what they describe, columns
    that do not belong to their view set, and files that no record accounts for.

    Args:
        progress: Called with files checked and files in all.

    Returns:
        Findings in the order of their paths; a sound store has none of severity ``error``.
    """
    audit = _Audit(store.root, progress)
    _check_document(audit, "store.json", kind="store")
    open_view_sets: dict[str, ViewSet] = {}
    for name in _folders(store.root, "views"):
        if _is_unborn(audit, f"views/{name}", record="view_set.json"):
            continue
        try:
            audit.account(f"views/{name}/view_set.json")
            open_view_sets[name] = ViewSet(audit.root, name)
        except StoreError as error:
            audit.error(f"views/{name}/view_set.json", str(error))
    for view_set in open_view_sets.values():
        _check_view_set(audit, view_set)
    for name in _folders(store.root, "columns"):
        for column_name in _folders(store.root, f"columns/{name}"):
            _check_column(audit, open_view_sets.get(name), f"columns/{name}/{column_name}")
    _check_left(audit)
    return sorted(audit.findings, key=lambda finding: (finding.path, finding.severity, finding.problem))


def _folders(root: Root, relative: str) -> list[str]:
    """Names of real folders; a link is reported later as a file that does not belong."""
    folder = root.path / relative
    return [name for name in root.names(relative) if (folder / name).is_dir() and not (folder / name).is_symlink()]


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
    for part in owner.committed_parts():
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
        if audit.root.stamp(cost) is not None:
            _check_document(audit, cost, kind="cost")
        if all(whole):
            yield commit


def _check_view_set(audit: _Audit, view_set: ViewSet) -> None:
    for commit in _checked_commits(audit, view_set):
        path = f"{view_set.folder}/images/{part_name(commit.part)}.tar"
        try:
            index = view_set.load_index(commit.part)
            with open(view_set.tar_path(commit.part), "rb") as file:
                members = scan_tar(file, where=path)
            view_set.read_part(commit.part)
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
        for relative, digest in load_record(audit.root, folder).objects.items():
            audit.check_file(f"{folder}/{relative}", digest, rows=None)
        column = Column(audit.root, folder.rsplit("/", 1)[1], view_set=view_set)
    except StoreError as error:
        audit.error(path, str(error))
        return
    expected = {part: {array.chunk(part) for array in column.arrays} for part in column.committed_parts()}
    for commit in _checked_commits(audit, column):
        if set(commit.objects) != expected[commit.part]:
            audit.error(column.commits.path(commit.part), "lists other files than the column has", rows=commit.rows)
        try:
            column.check_join_part(view_set, commit.part)
        except StoreError as error:
            audit.error(column.commits.path(commit.part), str(error), rows=commit.rows)


def _part_rows(owner: ViewSet | Column, part: int) -> range:
    spec = owner.spec if isinstance(owner, ViewSet) else owner.view_set.spec
    return spec.part_rows(part)


def _check_left(audit: _Audit) -> None:
    """Files that no record accounts for: harmless where an interrupted writer explains them, else errors."""
    present = set(audit.files)
    broken = {finding.path for finding in audit.findings}
    for path in audit.left():
        if audit.root.path.joinpath(path).is_symlink():
            audit.error(path, "a link; only plain files belong in a store", stray=True)
        elif is_temporary(path.rsplit("/", 1)[-1]):
            audit.info(path, "temporary file of a writer that runs or died")
        elif not _records(path) <= present:
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
    if owner is not None:
        records.add(f"{owner['folder']}/{'column' if path.startswith('columns/') else 'view_set'}.json")
    return records
