"""What a view set and a column are: frozen, validated, JSON both ways.

Which part holds a row, and where in an array it lies, is computed here and nowhere else. N is rows, C components, H and
W the token grid.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from store.codecs.base import Array, Codec, LevelSpec
from store.codecs.registry import codec_from_json
from store.document import FORMAT_VERSION
from store.errors import FormatError, MissingRowsError, StoreError
from store.fingerprint import digest_bytes, fingerprint, plain_json
from store.root import check_name

__all__ = ["ColumnSpec", "LevelSpec", "ViewSetSpec", "digest_array"]

MAX_LEVELS = 64
MAX_ROWS_PER_SHARD = 1 << 20
MAX_PARTS = 1 << 22
MAX_ROW_VALUES = 1 << 27
"""Bounds on what a hostile store can make a reader of its list of parts, of one part, or of one row allocate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewSetSpec:
    """A fixed, shuffled list of (image, view) rows: ``row = view * images + permuted image``.

    Parts are blocks of ``rows_per_shard`` rows of one view, its last one possibly short: no part holds rows of two
    views, so views that are appended leave every part as it is.

    ``source`` says what the images are, ``view`` how a view is drawn from one; both are JSON that the pipeline owns.

    Raises:
        FormatError: A field is malformed.
    """

    name: str
    source: Mapping[str, Any]
    view: Mapping[str, Any]
    images: int
    views: int
    rows_per_shard: int
    order_seed: int
    seed: int
    dataset: str
    tasks: tuple[str, ...]

    def __post_init__(self) -> None:
        check_name(self.name, what="view set name")
        object.__setattr__(self, "source", plain_json(dict(self.source)))
        object.__setattr__(self, "view", plain_json(dict(self.view)))
        object.__setattr__(self, "tasks", tuple(self.tasks))
        for name in ("images", "views", "rows_per_shard"):
            value, largest = getattr(self, name), MAX_ROWS_PER_SHARD if name == "rows_per_shard" else 1 << 40
            if type(value) is not int or not 1 <= value <= largest:
                raise FormatError(
                    f"view set {self.name}: {name}: expected at least 1 and at most {largest}, got {value!r}"
                )
        if self.parts > MAX_PARTS:
            raise FormatError(f"view set {self.name}: expected at most {MAX_PARTS} shards, got {self.parts}")
        for name in ("order_seed", "seed"):
            if type(getattr(self, name)) is not int:
                raise FormatError(f"view set {self.name}: {name}: expected an integer, got {getattr(self, name)!r}")
        if not all(isinstance(text, str) for text in (self.dataset, *self.tasks)):
            raise FormatError(f"view set {self.name}: dataset and tasks: expected text, got {self.dataset!r}")

    @property
    def rows(self) -> int:
        """Images times views."""
        return self.images * self.views

    @property
    def parts_per_view(self) -> int:
        """Shards of one view."""
        return -(-self.images // self.rows_per_shard)

    @property
    def parts(self) -> int:
        """Shards of all views."""
        return self.views * self.parts_per_view

    @property
    def array_rows(self) -> int:
        """Length of an array of a regular grid of shards, in which a short shard leaves a gap unless it is the last."""
        return (self.parts - 1) * self.rows_per_shard + len(self.part_rows(self.parts - 1))

    def array_views(self, array_rows: int, /) -> int:
        """How many views an array of that length is for: the inverse of ``array_rows``."""
        return -(-array_rows // (self.parts_per_view * self.rows_per_shard))

    def whole_views(self, parts: Iterable[int], /) -> int:
        """How many views have all of their parts among these."""
        counts = Counter(part // self.parts_per_view for part in parts)
        return sum(count == self.parts_per_view for count in counts.values())

    def with_views(self, views: int, /) -> ViewSetSpec:
        """The same with another number of views: rows and parts that both have are the same ones."""
        return replace(self, views=views)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that cover every field."""
        return fingerprint(self.to_json())

    def part_rows(self, part: int, /) -> range:
        """Rows of one part.

        Raises:
            MissingRowsError: There is no such part.
        """
        if not 0 <= part < self.parts:
            raise MissingRowsError(f"view set {self.name}: expected a part from 0 to {self.parts - 1}, got {part}")
        view, block = divmod(part, self.parts_per_view)
        start = view * self.images + block * self.rows_per_shard
        return range(start, min(start + self.rows_per_shard, (view + 1) * self.images))

    def part_of(self, row: int, /) -> int:
        """Part that holds a row.

        Raises:
            MissingRowsError: There is no such row.
        """
        return int(self.parts_of([row])[0])

    def parts_of(self, rows: Sequence[int] | NDArray[np.int64], /) -> NDArray[np.int64]:
        """Part that holds each row; int64 ``(N,)``.

        Raises:
            MissingRowsError: A row is not one of the view set's.
        """
        view_N, inside_N = np.divmod(self.require_rows(rows), self.images)
        parts_N: NDArray[np.int64] = view_N * self.parts_per_view + inside_N // self.rows_per_shard
        return parts_N

    def positions(self, rows: Sequence[int] | NDArray[np.int64], /) -> NDArray[np.int64]:
        """Where each row lies in an array of ``array_rows``: its part's block, and there its offset; int64 ``(N,)``.

        Raises:
            MissingRowsError: A row is not one of the view set's.
        """
        rows_N = self.require_rows(rows)
        positions_N: NDArray[np.int64] = (
            self.parts_of(rows_N) * self.rows_per_shard + rows_N % self.images % self.rows_per_shard
        )
        return positions_N

    def require_rows(self, rows: Sequence[int] | NDArray[np.int64], /) -> NDArray[np.int64]:
        """Row numbers as int64 ``(N,)``.

        Raises:
            MissingRowsError: A row is not one of the view set's.
        """
        rows_N = np.asarray(rows, dtype=np.int64).reshape(-1)
        outside = rows_N[(rows_N < 0) | (rows_N >= self.rows)]
        if outside.size:
            raise MissingRowsError(
                f"view set {self.name}: expected rows from 0 to {self.rows - 1}, got {outside[:8].tolist()}"
            )
        return rows_N

    def to_json(self) -> dict[str, Any]:
        """Plain form."""
        return {field.name: plain_json(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], /) -> ViewSetSpec:
        """Inverse of ``to_json``.

        Raises:
            FormatError: Keys are missing or unknown, or a field is malformed.
        """
        _require_keys(value, known=[field.name for field in fields(cls)], what="view set")
        for name, kind in (("tasks", list), ("source", Mapping), ("view", Mapping)):
            if not isinstance(value[name], kind):
                raise FormatError(f"view set: {name}: expected a {kind.__name__.lower()}, got {value[name]!r}")
        try:
            return cls(**value)
        except (TypeError, ValueError) as error:
            raise FormatError(f"view set: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnSpec:
    """The encoded features of one teacher over one view set.

    ``identity`` is JSON from the pipeline that covers everything the features depend on besides the pixels: digest of
    the weights, architecture, input size, resize, pad, normalisation, chosen blocks, grid.

    Raises:
        FormatError: A field is malformed.
    """

    view_set: str
    teacher: str
    identity: Mapping[str, Any]
    levels: tuple[LevelSpec, ...]
    codec: Codec

    def __post_init__(self) -> None:
        check_name(self.view_set, what="view set name")
        check_name(self.teacher, what="teacher name")
        check_name(f"{self.teacher}-{'0' * 16}", what="teacher name with a fingerprint of 16 digits")
        object.__setattr__(self, "identity", plain_json(dict(self.identity)))
        object.__setattr__(self, "levels", tuple(self.levels))
        if not 1 <= len(self.levels) <= MAX_LEVELS:
            raise FormatError(f"column {self.teacher}: expected 1 to {MAX_LEVELS} levels, got {len(self.levels)}")
        if sum(level.values for level in self.levels) > MAX_ROW_VALUES:
            raise FormatError(f"column {self.teacher}: expected levels of at most {MAX_ROW_VALUES} values in all")

    @property
    def fingerprint(self) -> str:
        """16 hex digits that cover identity, levels, codec with its assets, and format version.

        Not the view set: the same need over another view set has the same fingerprint.
        """
        covered = {key: item for key, item in self.to_json().items() if key in ("identity", "levels", "codec")}
        assets = {name: digest_array(array) for name, array in self.codec.assets().items()}
        return fingerprint({**covered, "assets": assets, "format_version": FORMAT_VERSION})

    @property
    def name(self) -> str:
        """Folder name, ``<teacher>-<fingerprint>``."""
        return f"{self.teacher}-{self.fingerprint}"

    @property
    def fp16_bytes_per_row(self) -> int:
        """Bytes the same row would take as plain float16, the yardstick for every codec."""
        return sum(2 * level.values for level in self.levels)

    def encode_levels(self, feats: Sequence[Array], /) -> list[dict[str, Array]]:
        """Encode a batch where it is: of every level its maps, float ``(N, C, H, W)``.

        Raises:
            StoreError: A shape is not its level's, or a value cannot be represented; names teacher and level.
        """
        if len(feats) != len(self.levels):
            raise StoreError(f"teacher {self.teacher}: expected {len(self.levels)} levels, got {len(feats)}")
        for level, (spec, feat) in enumerate(zip(self.levels, feats, strict=True)):
            if tuple(feat.shape[1:]) != spec.shape or len(feat.shape) != 4:
                raise StoreError(
                    f"teacher {self.teacher}, level {level}: expected features (rows, {str(spec.shape)[1:-1]}), "
                    f"got {tuple(feat.shape)}"
                )
        try:
            return self.codec.encode_levels(feats)
        except StoreError as error:
            raise type(error)(f"teacher {self.teacher}, {error}") from error

    def needed_levels(self, levels: Sequence[int], /) -> tuple[int, ...]:
        """Levels to read so that these can be decoded, ascending.

        Raises:
            FormatError: There is no such level.
        """
        outside = [level for level in levels if not 0 <= level < len(self.levels)]
        if outside:
            raise FormatError(
                f"teacher {self.teacher}: expected levels from 0 to {len(self.levels) - 1}, got {outside}"
            )
        return self.codec.needed_levels(levels)

    def decode_levels(
        self, parts: Mapping[int, Mapping[str, Array]], /, *, levels: Sequence[int] | None = None
    ) -> list[Array]:
        """Decode a batch where its parts are: for each asked level float32 ``(N, C, H, W)``; all of them for None.

        Args:
            parts: Stored arrays by level, of at least ``needed_levels(levels)``.

        Raises:
            FormatError: The parts are not the codec's, or there is no such level.
        """
        wanted = range(len(self.levels)) if levels is None else levels
        self.needed_levels(wanted)
        return self.codec.decode_levels(parts, levels=wanted)

    def to_json(self) -> dict[str, Any]:
        """Plain form, without the codec's assets."""
        return {
            "view_set": self.view_set,
            "teacher": self.teacher,
            "identity": plain_json(self.identity),
            "levels": [level.to_json() for level in self.levels],
            "codec": self.codec.to_json(),
        }

    @classmethod
    def from_json(
        cls, value: Mapping[str, Any], /, *, assets: Mapping[str, NDArray[np.generic]] | None = None
    ) -> ColumnSpec:
        """Inverse of ``to_json``, given the codec's assets.

        Raises:
            FormatError: Keys are missing or unknown, or a field is malformed.
        """
        _require_keys(value, known=[field.name for field in fields(cls)], what="column")
        if not isinstance(value["levels"], list) or not isinstance(value["identity"], Mapping):
            raise FormatError("column: expected a list of levels and an identity object")
        return cls(
            view_set=value["view_set"],
            teacher=value["teacher"],
            identity=value["identity"],
            levels=tuple(LevelSpec.from_json(level) for level in value["levels"]),
            codec=codec_from_json(value["codec"], assets=assets),
        )


def digest_array(array: NDArray[np.generic], /) -> str:
    """SHA-256 over dtype, shape and little-endian bytes of an array."""
    little = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
    head = f"{little.dtype.str}{little.shape}".encode()
    return digest_bytes(head + little.tobytes())


def _require_keys(value: Mapping[str, Any], *, known: list[str], what: str) -> None:
    if not isinstance(value, Mapping) or set(value) != set(known):
        got = sorted(value) if isinstance(value, Mapping) else value
        raise FormatError(f"{what}: expected the keys {known}, got {got}")
