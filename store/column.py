"""A column on disk: the encoded features of one teacher over one view set.

N is rows, C components, H and W the token grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from store.codecs.base import Array
from store.commits import CommitLog, PartCommit, Summary
from store.errors import FormatError, MissingRowsError, StoreError
from store.fingerprint import digest_keys
from store.layout import LevelArray, level_arrays, load_column
from store.root import Root
from store.shard import ShardCache, encode_shard
from store.viewset import ReadOptions, ViewSet
from store.zarr_engine import ZarrReader

__all__ = ["Column"]


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
        self.spec, self.objects = load_column(root, self.folder)
        self.arrays: tuple[LevelArray, ...] = level_arrays(self.spec)
        self.commits = CommitLog(root, self.folder, spec=view_set.spec)
        self._shards = ShardCache(root, verify=self._options.verify)
        self._zarr = (
            None
            if self._options.engine == "direct"
            else ZarrReader(root.local(self.folder), pipeline=self._options.engine)
        )

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
        seconds: float = 0.0,
    ) -> PartCommit:
        """Publish one part. The view set's part comes first; a part that is already committed is left alone.

        Args:
            levels: For each level its stored arrays, ``(rows, ...)``, as ``spec.encode`` gives them.
            keys: Sample keys of the rows, in order: proof that the features belong to these rows.
            stats: JSON kept with the part, such as the codec's measured error.

        Raises:
            MissingRowsError: The view set's part is not committed.
            FormatError: Keys, shapes or types are not the part's.
            StoreError: The disk is full or fails; nothing is committed.
        """
        view_commit = self.view_set.commits.require([part])[0]
        digest = digest_keys(keys)
        if digest != view_commit.keys_sha256:
            raise FormatError(
                f"{self.folder} part {part}: its {len(keys)} keys are not those of view set {self.view_set.name}, "
                f"rows {view_commit.start} to {view_commit.stop - 1}, in order"
            )
        rows_per_shard = self.view_set.spec.rows_per_shard
        checked = self._checked(part, levels, rows=len(view_commit.rows))
        commit = PartCommit(
            owner=self.folder,
            part=part,
            start=view_commit.start,
            stop=view_commit.stop,
            keys_sha256=digest,
            objects={},
            excluded=view_commit.excluded,
            view_commit=view_commit.digest(),
            stats=stats or {},
        )
        objects = (
            (array.chunk(part), encode_shard(values, rows_per_shard=rows_per_shard)) for array, values in checked
        )
        return self.commits.publish(commit, objects=objects, seconds=seconds)

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
        result: dict[int, dict[str, NDArray[np.generic]]] = {level: {} for level in wanted}
        for array in self.arrays:
            if array.level in result:
                result[array.level][array.part] = self._read_array(array, rows_N, commits)
        return [result[level] for level in wanted]

    def decode(self, level: int, parts: Mapping[str, Array], /) -> Array:
        """Float32 ``(N, C, H, W)`` of one level's parts, where they are (NumPy or torch, any device).

        Raises:
            FormatError: The parts are not the codec's, or there is no such level.
        """
        return self.spec.decode(parts, level=level)

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
        encoded = self.read(rows, levels=wanted)
        return [self.decode(level, parts) for level, parts in zip(wanted, encoded, strict=True)]

    def check_join(self, view_set: ViewSet, /) -> None:
        """Prove that every committed part was made from this view set's rows, in this order, from these images.

        Raises:
            FormatError: A part was made from other rows or images; names it.
        """
        for part in self.committed_parts():
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

    def summary(self) -> Summary:
        """Rows, parts, bytes, seconds and averaged stats so far."""
        return self.commits.summary(fp16_bytes_per_row=self.spec.fp16_bytes_per_row)

    def discard(self, part: int) -> None:
        """Remove a part's commit record, so that a rerun makes it again."""
        self.commits.discard(part)

    def _checked(
        self, part: int, levels: Sequence[Mapping[str, NDArray[np.generic]]], *, rows: int
    ) -> list[tuple[LevelArray, NDArray[np.generic]]]:
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
            checked.append((array, values))
        return checked

    def _levels(self, levels: Sequence[int] | None) -> list[int]:
        count = len(self.spec.levels)
        wanted = list(range(count)) if levels is None else [int(level) for level in levels]
        if any(not 0 <= level < count for level in wanted) or len(set(wanted)) != len(wanted):
            raise FormatError(f"{self.folder}: expected different levels from 0 to {count - 1}, got {wanted}")
        return wanted

    def _commits(self, rows_N: NDArray[np.int64]) -> dict[int, PartCommit]:
        spec = self.view_set.spec
        outside = rows_N[(rows_N < 0) | (rows_N >= spec.rows)]
        if outside.size:
            raise MissingRowsError(
                f"{self.folder}: expected rows from 0 to {spec.rows - 1}, got {outside[:8].tolist()}"
            )
        parts = np.unique(rows_N // spec.rows_per_shard).tolist()
        return dict(zip(parts, self.commits.require(parts), strict=True))

    def _read_array(
        self, array: LevelArray, rows_N: NDArray[np.int64], commits: Mapping[int, PartCommit]
    ) -> NDArray[np.generic]:
        rows_per_shard = self.view_set.spec.rows_per_shard
        dtype = np.dtype(array.spec.dtype).newbyteorder("<")
        out = np.empty((len(rows_N), *array.spec.shape), dtype=dtype)
        flat = out.reshape(len(rows_N), -1).view(np.uint8) if len(rows_N) else out
        shards = {}
        for part, commit in commits.items():
            key = array.chunk(part)
            if key not in commit.objects:
                raise FormatError(f"{self.commits.path(part)}: its record lacks {key}; run sak store verify")
            shards[part] = self._shards.get(
                f"{self.folder}/{key}",
                commit.objects[key],
                spec=array.spec,
                rows=commit.rows,
                rows_per_shard=rows_per_shard,
            )
        if self._zarr is not None:
            return self._zarr.read(array.name, rows_N.tolist())
        for position, row in enumerate(rows_N.tolist()):
            shards[row // rows_per_shard].read_row(row, flat[position])
        return out


def _reopen(root: Root, name: str, view_set: ViewSet, options: ReadOptions) -> Column:
    return Column(root, name, view_set=view_set, options=options)
