"""A view set on disk: images, label maps and draws of its rows, one part at a time."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from store.commits import CommitLog, PartCommit, digest_objects, part_name
from store.costs import UNTIMED, Spent
from store.document import MAX_DOCUMENT_BYTES, parse_document
from store.errors import CorruptShardError, FormatError
from store.fingerprint import canonical_json, digest_bytes, digest_keys
from store.root import DEFAULT_CACHE_BYTES, Root, Stamp, StoredFile
from store.rows import FileEntry, IndexRow, ViewRow, image_suffix, parse_index, render_index
from store.spec import ViewSetSpec
from store.summary import Summary
from store.tarball import build_tar
from store.workers import available_threads

__all__ = ["ReadOptions", "ViewSet"]

_CACHED_PARTS, _CACHED_ROWS = 16, 1 << 14  # so many parts at least: a loader's window; a row takes some kilobytes
_MAX_INDEX_BYTES = 1 << 30
_VERIFY = ("shard", "row", "size")
_ENGINES = ("direct", "zarr", "zarrs")
_PREFETCH_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """How readers behave.

    ``verify``: ``shard`` compares each file's SHA-256 with its commit record when the process first touches it, and
    checks every row on every read; ``row`` only the latter; ``size`` does without row digests where a file's format
    has none of its own (images). ``engine`` reads columns: ``direct``, or through the ``zarr`` library, or through
    it with the ``zarrs`` codec pipeline; all give equal results. ``cache_bytes`` limits the local cache of objects of
    remote stores; with 0 every row is asked for by itself. ``threads`` unpack rows and hash shards; the default suits
    one reader a process. ``prefetch_bytes`` limits how much of a column is read ahead of its use.

    Raises:
        FormatError: An option has an unknown value.
    """

    verify: str = "shard"
    engine: str = "direct"
    cache_bytes: int = DEFAULT_CACHE_BYTES
    threads: int = field(default_factory=available_threads)
    prefetch_bytes: int = _PREFETCH_BYTES

    def __post_init__(self) -> None:
        for name, choices in (("verify", _VERIFY), ("engine", _ENGINES)):
            if getattr(self, name) not in choices:
                raise FormatError(f"{name}: expected one of {', '.join(choices)}, got {getattr(self, name)!r}")
        for name, least in (("cache_bytes", 0), ("threads", 1), ("prefetch_bytes", 0)):
            if type(getattr(self, name)) is not int or getattr(self, name) < least:
                raise FormatError(f"{name}: expected an integer, at least {least}, got {getattr(self, name)!r}")


class _Packed(NamedTuple):
    """A part ready to be published: its record without objects, and they."""

    commit: PartCommit
    objects: list[tuple[str, bytes]]


class ViewSet:
    """Reads and writes one view set; safe to share between threads and to send to other processes.

    Args:
        views: See just its first so many views, whether the store has more or fewer: what it lacks is missing parts.
            All that there are where it is None.

    Attributes:
        spec: With as many views as are seen; ``stored`` with as many as the store's description had when it was read.

    Raises:
        FormatError: ``view_set.json`` is missing or is not this view set's.
        CorruptShardError: Its bytes have changed.
    """

    def __init__(self, root: Root, name: str, *, views: int | None = None, options: ReadOptions | None = None) -> None:
        self._root = root
        self._options = options or ReadOptions()
        self._views = views
        self.folder = f"views/{name}"
        self.stored = _load_spec(root, self.folder)
        if self.stored.name != name:
            raise FormatError(
                f"{self.folder}: expected the view set {name}, got {self.stored.name}; a folder was moved"
            )
        self.spec = self.stored if views is None else self.stored.with_views(views)
        self.commits = CommitLog(root, self.folder, spec=self.spec)
        self._indices: OrderedDict[int, tuple[IndexRow, ...]] = OrderedDict()
        self._verified: dict[int, Stamp] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[object, ...]:
        return (_reopen, (self._root, self.name, self._views, self._options))

    @property
    def name(self) -> str:
        """Name of the view set."""
        return self.spec.name

    @property
    def root(self) -> Root:
        """Where its store is."""
        return self._root

    def committed_parts(self) -> tuple[int, ...]:
        """Parts that exist, ascending."""
        return self.commits.parts()

    def missing_parts(self) -> tuple[int, ...]:
        """Parts still to be written, ascending."""
        done = set(self.committed_parts())
        return tuple(part for part in range(self.spec.parts) if part not in done)

    def write_part(self, part: int, rows: Sequence[ViewRow], *, spent: Spent = UNTIMED) -> PartCommit:
        """Publish one part: all of its rows, in order. A part that is already committed is left alone.

        Raises:
            FormatError: The rows are not exactly the part's.
            MissingRowsError: The store's description has fewer views: ``Store.extend_view_set`` comes first.
            StoreError: The disk is full or fails; nothing is committed.
        """
        self.stored.part_rows(part)  # which refuses what nobody who opens the view set would find
        packed = self._pack(part, rows)
        return self.commits.publish(packed.commit, objects=packed.objects, spent=spent)

    def planned_commit(self, part: int, rows: Sequence[ViewRow], /) -> PartCommit:
        """The record that ``write_part`` would publish; writes nothing.

        Raises:
            FormatError: The rows are not exactly the part's.
        """
        packed = self._pack(part, rows)
        return replace(packed.commit, objects=digest_objects(dict(packed.objects)))

    def _pack(self, part: int, rows: Sequence[ViewRow]) -> _Packed:
        self._check_rows(part, rows)
        tar = build_tar([item for row in rows for item in _row_files(row)])
        positions = {(member.row, member.suffix): member for member in tar.members}
        index = []
        for row in rows:
            entries = tuple(
                FileEntry(
                    suffix=suffix,
                    offset=positions[row.row, suffix].offset,
                    size=len(data),
                    sha256=digest_bytes(data),
                )
                for suffix, data in sorted(row.files.items())
            )
            index.append(_index_row(row, entries))
        commit = PartCommit(
            owner=self.folder,
            part=part,
            start=rows[0].row,
            stop=rows[-1].row + 1,
            keys_sha256=digest_keys(row.key for row in rows),
            objects={},
            excluded=tuple(row.row for row in rows if row.error is not None),
        )
        return _Packed(commit, [(_tar_path(part), tar.data), (_index_path(part), render_index(index))])

    def read_part(self, part: int) -> list[ViewRow]:
        """All rows of a part, verified.

        Raises:
            MissingRowsError: The part is not committed.
            CorruptShardError: Stored bytes differ from the commit record.
        """
        return self.read_rows(self.spec.part_rows(part))

    def check_part(self, part: int) -> None:
        """``read_part`` that keeps nothing, for parts of any size.

        Raises:
            MissingRowsError: The part is not committed.
            CorruptShardError: Stored bytes differ from the commit record.
        """
        for _ in self._read_from(part, self.index(part)):
            pass

    def read_rows(self, rows: Sequence[int] | NDArray[np.int64]) -> list[ViewRow]:
        """Rows in the order asked for, reading only their files.

        Raises:
            MissingRowsError: A row does not exist or is not committed.
            CorruptShardError: Stored bytes differ from the commit record.
        """
        wanted = [int(row) for row in rows]
        mine: dict[int, set[int]] = {}
        for row, part in zip(wanted, self.spec.parts_of(wanted).tolist(), strict=True):
            mine.setdefault(part, set()).add(row)
        parts = sorted(mine)
        self.commits.require(parts)
        found: dict[int, ViewRow] = {}
        for part in parts:
            entries = [row for row in self.index(part) if row.row in mine[part]]
            found.update((row.row, row) for row in self._read_from(part, entries))
        return [found[row] for row in wanted]

    def index(self, part: int) -> tuple[IndexRow, ...]:
        """What the index says of a part's rows; a few parts stay in memory.

        Raises:
            MissingRowsError: The part is not committed.
            CorruptShardError: The index differs from the commit record.
        """
        with self._lock:
            if part in self._indices:
                self._indices.move_to_end(part)
                return self._indices[part]
        index = self.load_index(part)
        with self._lock:
            self._indices[part] = index
            while len(self._indices) > max(_CACHED_PARTS, _CACHED_ROWS // self.spec.rows_per_shard):
                self._indices.popitem(last=False)
        return index

    def load_index(self, part: int) -> tuple[IndexRow, ...]:
        """Read and check a part's index, whatever was read before.

        Raises:
            MissingRowsError: The part is not committed.
            CorruptShardError: The index differs from the commit record.
        """
        commit = self.commits.require([part])[0]
        relative = f"{self.folder}/{_index_path(part)}"
        where = self._root.where(relative)
        data = self._root.read_bytes(relative, max_bytes=_MAX_INDEX_BYTES)
        expected = commit.objects.get(_index_path(part))
        if expected is None or digest_bytes(data) != expected.sha256:
            raise _corrupt(where, commit.rows, "its SHA-256 differs from the commit record")
        index = parse_index(data, rows=commit.rows, where=where)
        if digest_keys(row.key for row in index) != commit.keys_sha256:
            raise _corrupt(where, commit.rows, "its keys are not those of the commit record")
        return index

    def keys(self, part: int) -> tuple[str, ...]:
        """Sample keys of a part's rows, in order."""
        return tuple(row.key for row in self.index(part))

    def unusable_rows(self) -> NDArray[np.int64]:
        """Rows without an image, and those that are not committed, ascending; shape ``(rows,)``."""
        ledger = self.commits.ledger()
        missing = np.setdiff1d(np.arange(self.spec.parts), ledger.parts, assume_unique=True).tolist()
        absent = [np.arange(rows.start, rows.stop) for rows in map(self.spec.part_rows, missing)]
        return np.sort(np.concatenate([ledger.excluded, *absent]))

    def usable_rows(self) -> NDArray[np.int64]:
        """Committed rows that have an image, ascending; shape ``(rows,)``."""
        ledger, usable = self.commits.ledger(), np.zeros(self.spec.rows, dtype=bool)
        for rows in map(self.spec.part_rows, ledger.parts.tolist()):
            usable[rows.start : rows.stop] = True
        usable[ledger.excluded] = False
        return np.flatnonzero(usable)

    def summary(self) -> Summary:
        """Rows, parts, bytes and seconds so far."""
        return self.commits.summary(fp16_bytes_per_row=0)

    def discard(self, part: int) -> None:
        """Remove a part's commit record, so that a rerun makes it again."""
        with self._lock:
            self._indices.pop(part, None)
            self._verified.pop(part, None)
        self.commits.discard(part)

    def tar_path(self, part: int) -> Path:
        """A part's tar on disk, for readers of WebDataset.

        Raises:
            StoreError: The store is not on a local disk.
        """
        return self._root.local(f"{self.folder}/{_tar_path(part)}")

    def _read_from(self, part: int, entries: Sequence[IndexRow]) -> Iterator[ViewRow]:
        relative = f"{self.folder}/{_tar_path(part)}"
        where = self._root.where(relative)
        try:
            with contextlib.closing(self._root.open(relative, sha256=self._tar_digest(part))) as file:
                self._verify_tar(part, file, where)
                for row in entries:
                    yield self._read_row(file, row, where)
        except OSError as error:
            raise _corrupt(where, self.spec.part_rows(part), f"cannot be read ({error.strerror})") from error

    def _tar_digest(self, part: int) -> str | None:
        expected = self.commits.require([part])[0].objects.get(_tar_path(part))
        return expected.sha256 if expected else None

    def _verify_tar(self, part: int, file: StoredFile, where: str) -> None:
        commit = self.commits.require([part])[0]
        expected = commit.objects.get(_tar_path(part))
        if expected is None or file.size != expected.size:
            raise _corrupt(where, commit.rows, f"its size {file.size} differs from the commit record")
        if self._options.verify == "shard" and self._verified.get(part) != file.stamp:
            if file.digest() != expected.sha256:
                raise _corrupt(where, commit.rows, "its SHA-256 differs from the commit record")
            self._verified[part] = file.stamp

    def _read_row(self, file: StoredFile, row: IndexRow, where: str) -> ViewRow:
        files = {}
        for entry in row.files:
            inside = entry.offset >= 0 and 0 <= entry.size <= file.size - entry.offset
            data = file.read(entry.offset, entry.size) if inside else b""
            damaged = self._options.verify != "size" and digest_bytes(data) != entry.sha256
            if not inside or damaged or len(data) != entry.size:
                raise _corrupt(where, range(row.row, row.row + 1), f"{entry.suffix} differs from the index")
            files[entry.suffix] = data
        return ViewRow(
            row=row.row, key=row.key, view=row.view, files=files, draw=row.draw, label=row.label, error=row.error
        )

    def _check_rows(self, part: int, rows: Sequence[ViewRow]) -> None:
        expected = self.spec.part_rows(part)
        if [row.row for row in rows] != list(expected):
            raise FormatError(
                f"{self.folder} part {part}: expected the rows {expected.start} to {expected.stop - 1} in order, got "
                f"{len(rows)} rows {[row.row for row in rows[:8]]}"
            )
        wrong = [row.row for row in rows if row.view != row.row // self.spec.images]
        if wrong:
            raise FormatError(f"{self.folder} part {part}: rows {wrong[:8]}: view differs from row // images")
        if len({(row.key, row.view) for row in rows}) != len(rows):
            raise FormatError(f"{self.folder} part {part}: two rows have the same key and view")


def _reopen(root: Root, name: str, views: int | None, options: ReadOptions) -> ViewSet:
    return ViewSet(root, name, views=views, options=options)


def _load_spec(root: Root, folder: str) -> ViewSetSpec:
    relative = f"{folder}/view_set.json"
    where = root.where(relative)
    data = root.read_bytes(relative, max_bytes=MAX_DOCUMENT_BYTES)
    body = parse_document(data, kind="view_set", where=where)
    try:
        return ViewSetSpec.from_json(body)
    except FormatError as error:
        raise FormatError(f"{where}: {error}") from error


def _tar_path(part: int) -> str:
    return f"images/{part_name(part)}.tar"


def _index_path(part: int) -> str:
    return f"index/{part_name(part)}.parquet"


def _corrupt(where: str, rows: range, problem: str) -> CorruptShardError:
    return CorruptShardError(f"{where}: rows {rows.start} to {rows.stop - 1}: {problem}; run sak store verify")


def _row_files(row: ViewRow) -> list[tuple[int, str, bytes]]:
    """A row's tar members; the JSON one serves those who read the tar without the index."""
    if not row.files:
        return []
    about = {"key": row.key, "view": row.view, "draw": dict(row.draw), "label": row.label}
    files = [(row.row, suffix, data) for suffix, data in sorted(row.files.items())]
    return [*files, (row.row, "json", canonical_json(about))]


def _index_row(row: ViewRow, entries: tuple[FileEntry, ...]) -> IndexRow:
    where = f"row {row.row}"
    suffix = image_suffix([entry.suffix for entry in entries], where=where) if entries else None
    images = {entry.suffix: entry.sha256 for entry in entries}
    return IndexRow(
        row=row.row,
        key=row.key,
        view=row.view,
        label=row.label,
        draw=row.draw,
        error=row.error,
        image_sha256=images[suffix] if suffix else None,
        files=entries,
    )
