"""What a verification looks at and what it has found so far; ``store.verify`` decides what is wrong."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from store.commits import ObjectDigest, locate_part, part_name
from store.errors import StoreError
from store.root import Root, Stamp
from store.spec import ViewSetSpec
from store.viewset import ViewSet

__all__ = ["Audit", "Finding", "Progress", "Scope", "part_record", "record_of"]

Progress = Callable[[int, int], None]

_IMAGES = re.compile(r"views/[^/]+/images/.+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is not as it should be, or worth knowing.

    ``rows`` are those that cannot be trusted, None where the file serves all rows or none. ``info`` is what a rerun or
    another writer explains: rows still to be written, a writer at work, temporary files. ``stray`` is a file that
    belongs to nothing. ``unrecorded`` is a part that does not exist, because ``path``, its record, does not.
    """

    path: str
    rows: range | None
    problem: str
    severity: Literal["error", "info"]
    stray: bool = False
    unrecorded: bool = False


class Scope:
    """Which files are to be checked: all, or these files and the view sets and columns in these folders."""

    def __init__(self, paths: Collection[str] | None) -> None:
        self._paths = None if paths is None else frozenset(paths)

    def has(self, path: str) -> bool:
        """Whether a file, or all of a folder, is to be checked."""
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
        """What is there of it; with the record of a part that has none, all files of that part."""
        if self._paths is None:
            return root.files()
        if all(root.stamp(path) is not None for path in self._paths):
            return sorted(self._paths)
        return [path for path in root.files() if self.has(path) or part_record(path) in self._paths]


class Audit:
    """Collects findings and remembers which files have been accounted for.

    Attributes:
        specs: Of view sets and columns that could be opened, by folder, what their rows are.
        stamps: Records of view sets and columns as they were just before they were opened.
        digests: SHA-256 of each sound commit record that has been read.
        missing: Parts without a record, of view sets and columns that are checked whole.
        imageless: Whether this is an export that was made without images.
    """

    def __init__(self, root: Root, scope: Scope, progress: Progress | None) -> None:
        self.root = root
        self.scope = scope
        self.findings: list[Finding] = []
        self.specs: dict[str, ViewSetSpec] = {}
        self.stamps: dict[str, Stamp | None] = {}
        self.digests: dict[str, str] = {}
        self.missing: dict[str, tuple[int, ...]] = {}
        self.imageless = False
        self.files = scope.files(root)
        self._left = set(self.files)
        self._progress = progress

    def error(self, path: str, problem: str, *, rows: range | None = None, stray: bool = False) -> None:
        """Something is wrong."""
        self.findings.append(Finding(path=path, rows=rows, problem=problem, severity="error", stray=stray))

    def unrecorded(self, path: str, problem: str, *, rows: range | None) -> None:
        """A part that should have a record has none."""
        self.findings.append(Finding(path=path, rows=rows, problem=problem, severity="error", unrecorded=True))

    def info(self, path: str, problem: str, *, rows: range | None = None) -> None:
        """Something worth knowing."""
        self.findings.append(Finding(path=path, rows=rows, problem=problem, severity="info"))

    def blamed(self) -> set[str]:
        """Files that are there and that something is wrong with."""
        return {found.path for found in self.findings if found.severity == "error" and not found.unrecorded}

    def account(self, path: str) -> None:
        """A record tells of this file."""
        self._left.discard(path)
        if self._progress is not None:
            self._progress(len(self.files) - len(self._left), len(self.files))

    def left(self) -> list[str]:
        """Files that no record has told of."""
        return sorted(self._left)

    def part_rows(self, folder: str, part: int) -> range | None:
        """Rows of a part; None where that is not known."""
        spec = self.spec_of(folder)
        return spec.part_rows(part) if spec and part < spec.parts else None

    def spec_of(self, folder: str) -> ViewSetSpec | None:
        """What the rows of a view set or column are; None where its view set cannot be opened."""
        found = self.specs.get(folder)
        if found is None:
            name = folder.split("/")[1]
            with contextlib.suppress(StoreError):
                found = self.specs.setdefault(f"views/{name}", ViewSet(self.root, name).spec)
        return found

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


def record_of(folder: str, /) -> str:
    """The record that a view set or column in a folder exists by."""
    return f"{folder}/{'column' if folder.startswith('columns/') else 'view_set'}.json"


def part_record(path: str, /) -> str | None:
    """The commit record of the part that a file belongs to; None for a file of no single part."""
    part = locate_part(path)
    return f"{part.folder}/commits/{part_name(part.part)}.json" if part is not None else None
