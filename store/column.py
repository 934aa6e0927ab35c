"""A column on disk: the encoded features of one teacher over one view set.

N is rows, C components, H and W the token grid.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from contextvars import copy_context
from typing import Any

import numpy as np
from numpy.typing import NDArray

from store.backends.base import Decoder, Extents, LevelArray, ShardArray, little_endian
from store.buffers import BUFFERS
from store.commits import CommitLog, PartCommit
from store.costs import UNTIMED, Spent
from store.errors import CorruptShardError, FormatError, StoreError
from store.fingerprint import digest_keys
from store.layout import check_metadata, level_arrays, load_column
from store.root import Root, StoredFile
from store.shards import Opening, Output, Request, Shard, ShardCache, read_rows, require_numbers
from store.summary import Summary
from store.viewset import ReadOptions, ViewSet
from store.workers import map_threads, pool
from store.zarr_engine import ZarrReader

__all__ = ["Column"]

_CHECKED_BYTES = 64 << 20


class Column:
    """Reads and writes one column; safe to share between threads and to send to other processes.

    Raises:
        FormatError: ``column.json`` is missing, malformed or another column's.
        CorruptShardError: Its bytes have changed.
    """

    def __init__(self, root: Root, name: str, *, view_set: ViewSet, options: ReadOptions | None = None) -> None:
        self._root = root
        self._options = options or ReadOptions()
        self.view_set = view_set
        self.folder = f"columns/{view_set.name}/{name}"
        self.spec, self.backend, self.objects = load_column(root, self.folder)
        self.arrays: tuple[LevelArray, ...] = level_arrays(self.spec)
        self.commits = CommitLog(root, self.folder, spec=view_set.spec)
        self._shards = ShardCache(root, verify=self._options.verify)
        self._decoders: dict[str, Decoder] = {
            array.name: require_numbers(self.backend.decoder(array.spec), array.spec) for array in self.arrays
        }
        self._zarr = self._engine()

    def __reduce__(self) -> tuple[object, ...]:
        return (_reopen, (self._root, self.name, self.view_set, self._options))

    @property
    def name(self) -> str:
        """Folder name, ``<teacher>-<fingerprint>``."""
        return self.spec.name

    def committed_parts(self) -> tuple[int, ...]:
        """Parts that exist, ascending."""
        return self.commits.parts()

    def missing_parts(self) -> tuple[int, ...]:
        """Parts still to be written, ascending."""
        done = set(self.committed_parts())
        return tuple(part for part in range(self.view_set.spec.parts) if part not in done)

    def write_part(
        self,
        part: int,
        levels: Sequence[Mapping[str, NDArray[np.generic]]],
        *,
        keys: Sequence[str],
        stats: Mapping[str, Any] | None = None,
        spent: Spent = UNTIMED,
    ) -> PartCommit:
        """Publish one part. The view set's part comes first; a part that is already committed is left alone.

        Args:
            levels: For each level its stored arrays, ``(rows, ...)``, as ``spec.encode`` gives them.
            keys: Sample keys of the rows, in order: proof that the features belong to these rows.
            stats: JSON kept with the part, such as the codec's measured error.
            spent: What making it took so far, to which the writing is added; of a copy, all that the original took.

        Raises:
            MissingRowsError: The view set's part is not committed.
            FormatError: Keys, shapes or types are not the part's.
            StoreError: The disk is full or fails; nothing is committed.
        """
        start = time.perf_counter()
        view_commit = self.view_set.commits.require([part])[0]
        digest = digest_keys(keys)
        if digest != view_commit.keys_sha256:
            raise FormatError(
                f"{self.folder} part {part}: its {len(keys)} keys are not those of view set {self.view_set.name}, "
                f"rows {view_commit.start} to {view_commit.stop - 1}, in order"
            )
        checked = self._checked(part, levels, rows=len(view_commit.rows))
        standing = self.commits.find(part)
        if standing is not None:
            return standing
        commit = PartCommit(
            owner=self.folder,
            part=part,
            start=view_commit.start,
            stop=view_commit.stop,
            keys_sha256=digest,
            objects={},
            excluded=view_commit.excluded,
            view_commit=view_commit.digest(),
            content=self._content(checked),
            stats=stats or {},
        )
        objects = self.backend.pack(
            part,
            checked,
            rows=commit.rows,
            rows_per_shard=self.view_set.spec.rows_per_shard,
            threads=self._options.threads,
        )
        if not spent.written_bytes:
            spent = spent.plus(Spent(write=time.perf_counter() - start))
        return self.commits.publish(commit, objects=objects, spent=spent)

    def read(
        self, rows: Sequence[int] | NDArray[np.int64], *, levels: Sequence[int] | None = None
    ) -> list[dict[str, NDArray[np.generic]]]:
        """Stored arrays of rows, in the order asked for; touches no other level or part.

        Shapes:
            returns: for each asked level its parts, ``(len(rows), ...)``.

        Raises:
            MissingRowsError: A row does not exist or is not committed.
            CorruptShardError: Stored bytes differ from what was committed.
            FormatError: There is no such level.
        """
        wanted = self._levels(levels)
        rows_N = np.asarray(rows, dtype=np.int64).reshape(-1)
        commits = self._commits(rows_N)
        values = self._read_arrays([array for array in self.arrays if array.level in wanted], rows_N, commits)
        result: dict[int, dict[str, NDArray[np.generic]]] = {level: {} for level in wanted}
        for array, array_values in values:
            result[array.level][array.part] = array_values
        return [result[level] for level in wanted]

    def read_floats(
        self, rows: Sequence[int] | NDArray[np.int64], *, levels: Sequence[int] | None = None
    ) -> list[NDArray[np.float32]]:
        """``read`` and ``decode`` in one: for each asked level float32 ``(len(rows), C, H, W)``.

        Raises:
            MissingRowsError: As in ``read``.
            CorruptShardError: As in ``read``.
            FormatError: As in ``read``.
        """
        wanted = self._levels(levels)
        needed = self.spec.needed_levels(wanted)
        encoded = self.read(rows, levels=needed)
        return self.spec.decode_levels(dict(zip(needed, encoded, strict=True)), levels=wanted)

    def check_join(self, view_set: ViewSet, /) -> None:
        """Prove that every committed part was made from this view set's rows, in this order, from these images.

        Raises:
            FormatError: A part was made from other rows or images; names it.
        """
        mine, theirs = self.commits.ledger(), view_set.commits.ledger()
        at_P = theirs.find(mine.parts)
        joined_P = at_P >= 0
        for ours, other in ((mine.keys, theirs.keys), (mine.view_commits, theirs.digests)):
            joined_P[joined_P] = (ours[joined_P] == other[at_P[joined_P]]).all(axis=1)
        for part in mine.parts[~joined_P].tolist():
            self.check_join_part(view_set, part)

    def check_join_part(self, view_set: ViewSet, part: int, /) -> None:
        """``check_join`` of one part.

        Raises:
            MissingRowsError: This column has not committed the part.
            FormatError: The part was made from other rows or images.
        """
        commit = self.commits.require([part])[0]
        view_commit = view_set.commits.find(part)
        if view_commit is None:
            problem = f"view set {view_set.name} has no such part"
        elif commit.keys_sha256 != view_commit.keys_sha256:
            problem = f"its keys are not those of view set {view_set.name}"
        elif commit.view_commit != view_commit.digest():
            problem = f"made from other images than those of view set {view_set.name}"
        else:
            return
        raise FormatError(f"{self.folder} part {part}: {problem}; run sak store discard on it and extract it again")

    def check_metadata(self) -> None:
        """Compare the files that tell other libraries of this column's arrays with those that we write.

        Raises:
            CorruptShardError: One says something else, whatever its digest.
        """
        check_metadata(self._root, self.folder, self.spec, self.view_set.stored, backend=self.backend)

    def check_content(self, part: int, /) -> None:
        """Unpack a part whole and compare its numbers with what was committed, whatever the backend.

        Raises:
            MissingRowsError: The part is not committed.
            CorruptShardError: The numbers, or the bytes they are stored in, are others.
        """
        commit = self.commits.require([part])[0]
        for array in self.arrays:
            state, step = hashlib.sha256(), max(1, _CHECKED_BYTES // array.spec.row_bytes)
            for start in range(commit.start, commit.stop, step):
                rows_N = np.arange(start, min(start + step, commit.stop))
                ((_, values),) = self._read_arrays([array], rows_N, {part: commit})
                state.update(_plain_bytes(values))
            self._compare(commit, {array.name: state.hexdigest()})

    def read_part(self, part: int, /) -> list[dict[str, NDArray[np.generic]]]:
        """``read`` of all rows of a part, their numbers compared with the digests of the commit record.

        Raises:
            MissingRowsError: The part is not committed.
            CorruptShardError: The numbers, or the bytes they are stored in, are others.
        """
        commit = self.commits.require([part])[0]
        levels = self.read(np.array(commit.rows))
        arrays = [ShardArray(array, levels[array.level][array.part]) for array in self.arrays]
        self._compare(commit, self._content(arrays))
        return levels

    def part_files(self, part: int, /) -> tuple[str, ...]:
        """Files inside the column that hold a part, each once."""
        return tuple(dict.fromkeys(self.backend.path(array, part) for array in self.arrays))

    def prefetch(self, parts: Sequence[int], /, *, levels: Sequence[int] | None = None) -> None:
        """Begin to open, verify and so read whole shards, in background threads, before their rows are asked for.

        The system's page cache, or the local cache of a remote store, then holds them; this process holds their
        indices. Shards beyond ``ReadOptions.prefetch_bytes`` are left for later, and what is wrong with one is said
        when its rows are read.

        Raises:
            MissingRowsError: A part is not committed.
            FormatError: There is no such level.
        """
        wanted = self._levels(levels)
        left = self._options.prefetch_bytes
        for commit in self.commits.require(parts):
            arrays = [array for array in self.arrays if array.level in wanted]
            for path in dict.fromkeys(self.backend.path(array, commit.part) for array in arrays):
                left -= commit.objects[path].size if path in commit.objects else 0
                if left < 0:
                    return
                pool(self._options.threads).submit(copy_context().run, self._shard, path, commit)

    def summary(self) -> Summary:
        """Rows, parts, bytes, seconds and averaged stats so far."""
        return self.commits.summary(fp16_bytes_per_row=self.spec.fp16_bytes_per_row)

    def discard(self, part: int) -> None:
        """Remove a part's commit record, so that a rerun makes it again."""
        self.commits.discard(part)

    def _engine(self) -> ZarrReader | None:
        engine = self._options.engine
        if engine == "direct":
            return None
        if self.backend.name != "zarr":
            raise FormatError(f"{self.folder}: engine {engine} reads zarr columns, this one is {self.backend.name}")
        self.check_metadata()
        return ZarrReader(self._root.local(self.folder), pipeline=engine)

    def _compare(self, commit: PartCommit, found: Mapping[str, str]) -> None:
        """Compare digests of arrays with those of a record; records of the first days have none."""
        for name, digest in found.items():
            if commit.content and commit.content.get(name) != digest:
                raise CorruptShardError(
                    f"{self.commits.path(commit.part)}: rows {commit.start} to {commit.stop - 1}: the numbers of "
                    f"{name} are not those that were committed; run sak store verify"
                )

    def _content(self, arrays: Sequence[ShardArray]) -> dict[str, str]:
        digests = map_threads(_digest_values, [item.values for item in arrays], threads=self._options.threads)
        return {item.array.name: digest for item, digest in zip(arrays, digests, strict=True)}

    def _checked(
        self, part: int, levels: Sequence[Mapping[str, NDArray[np.generic]]], *, rows: int
    ) -> list[ShardArray]:
        where = f"{self.folder} part {part}"
        if len(levels) != len(self.spec.levels):
            raise FormatError(f"{where}: expected {len(self.spec.levels)} levels, got {len(levels)}")
        given = {(level, name) for level, parts in enumerate(levels) for name in parts}
        if given != {(array.level, array.part) for array in self.arrays}:
            raise FormatError(f"{where}: expected the codec's parts for every level, got {sorted(given)}")
        checked = []
        for array in self.arrays:
            values = np.asarray(levels[array.level][array.part])
            shape = (rows, *array.spec.shape)
            if values.shape != shape or values.dtype != np.dtype(array.spec.dtype):
                raise FormatError(
                    f"{where}, {array.name}: expected {array.spec.dtype} {shape}, got {values.dtype} {values.shape}"
                )
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise StoreError(f"{where}, {array.name}: expected finite numbers; the teacher gave NaN or infinity")
            checked.append(ShardArray(array, values))
        return checked

    def _levels(self, levels: Sequence[int] | None) -> list[int]:
        count = len(self.spec.levels)
        wanted = list(range(count)) if levels is None else [int(level) for level in levels]
        if any(not 0 <= level < count for level in wanted) or len(set(wanted)) != len(wanted):
            raise FormatError(f"{self.folder}: expected different levels from 0 to {count - 1}, got {wanted}")
        return wanted

    def _commits(self, rows_N: NDArray[np.int64]) -> dict[int, PartCommit]:
        parts = np.unique(self.view_set.spec.parts_of(rows_N)).tolist()
        return dict(zip(parts, self.commits.require(parts), strict=True))

    def _read_arrays(
        self, arrays: Sequence[LevelArray], rows_N: NDArray[np.int64], commits: Mapping[int, PartCommit]
    ) -> list[ShardArray]:
        files = {part: self._files(arrays, commit) for part, commit in commits.items()}
        if self._zarr is not None:
            at_N = self.view_set.spec.positions(rows_N)
            return [ShardArray(array, self._zarr.read(array.name, rows_N, positions=at_N)) for array in arrays]
        values = [ShardArray(array, _empty(array, len(rows_N))) for array in arrays]
        if not len(rows_N):
            return values
        outputs = {
            array.name: Output(array.name, self._decoders[array.name], empty.reshape(len(rows_N), -1).view(np.uint8))
            for array, empty in values
        }
        order_N = np.argsort(rows_N, kind="stable")
        sorted_N = rows_N[order_N]
        requests = []
        for part, commit in commits.items():
            first, last = np.searchsorted(sorted_N, (commit.start, commit.stop)).tolist()
            local, positions = (sorted_N[first:last] - commit.start).tolist(), order_N[first:last].tolist()
            requests += [
                Request(shard, [outputs[name] for name in names], local, positions) for shard, names in files[part]
            ]
        read_rows(requests, gap=self.backend.gap, threads=self._options.threads)
        return values

    def _files(self, arrays: Sequence[LevelArray], commit: PartCommit) -> list[tuple[Shard, list[str]]]:
        """Open shards of a part, with the names of the wanted arrays in each."""
        names: dict[str, list[str]] = {}
        for array in arrays:
            names.setdefault(self.backend.path(array, commit.part), []).append(array.name)
        return [(self._shard(path, commit), inside) for path, inside in names.items()]

    def _shard(self, path: str, commit: PartCommit) -> Shard:
        relative = f"{self.folder}/{path}"
        found = self._shards.find(relative)
        if found is not None:
            return found
        if path not in commit.objects:
            raise FormatError(f"{self.commits.path(commit.part)}: its record lacks {path}; run sak store verify")
        arrays = [array for array in self.arrays if self.backend.path(array, commit.part) == path]

        def read_index(file: StoredFile) -> Mapping[str, Extents]:
            rows_per_shard = self.view_set.spec.rows_per_shard
            return self.backend.index(file, arrays, rows=commit.rows, rows_per_shard=rows_per_shard)

        return self._shards.open(Opening(relative, commit.objects[path], commit.rows, read_index))


def _digest_values(values: NDArray[np.generic]) -> str:
    return hashlib.sha256(_plain_bytes(values)).hexdigest()


def _plain_bytes(values: NDArray[np.generic]) -> memoryview:
    return little_endian(values).reshape(-1).view(np.uint8).data


def _empty(array: LevelArray, rows: int) -> NDArray[np.generic]:
    size = rows * array.spec.row_bytes
    try:
        memory = BUFFERS.take(size)
    except MemoryError as error:
        raise StoreError(f"{array.name}: {rows} rows take {size} bytes of memory; read fewer at a time") from error
    return memory.view(np.dtype(array.spec.dtype).newbyteorder("<")).reshape(rows, *array.spec.shape)


def _reopen(root: Root, name: str, view_set: ViewSet, options: ReadOptions) -> Column:
    return Column(root, name, view_set=view_set, options=options)
