"""Codec ``klt``: decorrelate components, neighbours and levels, round with one step, pack small integers in bytes.

Of each level the decoder knows, fitted to a sample (``store.codecs.klt_fit``): the mean map, a linear prediction from
the decoded map of the level before, an orthonormal basis of what is left (Karhunen-Loève), which coefficients of the
basis and of the cosine transform of small blocks are kept, and one step for all of them. With equal steps the error is
spread evenly (reverse water-filling): coefficients smaller than the step vanish.

Legend: N rows, C components, H W the token grid, K kept components, D kept coefficients, M blocks of the grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import NDArray

from store.codecs.base import Array, LevelSpec, PartSpec, require_finite, require_levels, require_parts
from store.codecs.blocks import Blocks, block_sides, from_blocks, to_blocks
from store.codecs.packing import GROUPS, Group, pack, packed_bytes, unpack
from store.errors import FormatError, StoreError

__all__ = ["ASSETS", "Klt", "KltSettings", "apply_matrix", "quantise"]

ROUND_UP_AT = 0.6
"""A magnitude is rounded up from this fraction of a step on: a wider zero costs less than the bits it saves."""

_PIECE = 12288  # bytes that share a table: with fewer the tables cost more than they save

ASSETS = ("grid", "offset", "predict", "basis", "order", "groups", "steps")
"""Arrays of a level, stored as ``<name>_<level>``; without ``predict`` where a level is not predicted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KltSettings:
    """What a recipe says of the codec.

    ``error`` is the asked relative error ‖error‖ / ‖features‖ of every level; ``rows`` how many to fit to; ``block``
    the side of the blocks whose neighbours are decorrelated (1: none); ``chain`` whether a level of the same grid as
    the one before is predicted from it.

    Raises:
        FormatError: A value is refused.
    """

    error: float = 0.15
    rows: int = 256
    block: int = 8
    chain: bool = True

    def __post_init__(self) -> None:
        if type(self.error) not in (int, float) or not 0.001 <= self.error < 1:
            raise FormatError(f"codec klt: error: expected a relative error from 0.001 to 1, got {self.error!r}")
        for name, largest in (("rows", 1 << 24), ("block", 40)):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= largest:
                raise FormatError(f"codec klt: {name}: expected 1 to {largest}, got {value!r}")
        if type(self.chain) is not bool:
            raise FormatError(f"codec klt: chain: expected true or false, got {self.chain!r}")

    def to_json(self) -> dict[str, Any]:
        """Plain form."""
        return {
            "name": "klt",
            "error": float(self.error),
            "rows": self.rows,
            "block": self.block,
            "chain": self.chain,
        }


class _Level(NamedTuple):
    """Fitted arrays of one level.

    Shapes:
        grid: ``(2,)``, H and W.
        offset: ``(C, H, W)``; predict: ``(C, C of the level before)``, or None; basis: ``(C, K)``.
        order: ``(D,)`` indices of kept coefficients in ``(K, u, v)``, widest group first.
        groups: how many of them lie in each of ``GROUPS``.
        steps: the step, then for each group how much nearer to zero a value is read than written.
    """

    grid: NDArray[np.int32]
    offset: NDArray[np.float32]
    predict: NDArray[np.float32] | None
    basis: NDArray[np.float32]
    order: NDArray[np.int32]
    groups: NDArray[np.int32]
    steps: NDArray[np.float32]

    @property
    def nearer_D1(self) -> NDArray[np.float32]:
        """For each kept coefficient how much nearer to zero it is read than written, in steps."""
        return np.repeat(self.steps[1:], self.groups)[:, None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Klt(KltSettings):
    """The fitted codec.

    Raises:
        FormatError: The arrays are not those of a fit.
    """

    name: ClassVar[str] = "klt"
    fitted: Mapping[str, NDArray[np.generic]]
    _levels: tuple[_Level, ...] = field(init=False, repr=False)
    _moved: dict[tuple[int, str, str], Array] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        KltSettings.__post_init__(self)
        object.__setattr__(self, "_levels", _parse(self.fitted, side=self.block))

    def __reduce__(self) -> tuple[object, ...]:
        # Without the copies that have moved to a device.
        return (_rebuild, (self.error, self.rows, self.block, self.chain, dict(self.fitted)))

    def assets(self) -> Mapping[str, NDArray[np.generic]]:
        """Offset, prediction, basis, order, groups and steps of every level."""
        return self.fitted

    def parts(self, level: LevelSpec, /, *, index: int = 0) -> Mapping[str, PartSpec]:
        """``values``: the packed integers of a row, group after group.

        Raises:
            FormatError: The codec was not fitted to such a level.
        """
        fitted = self._level(index)
        if (len(fitted.offset), *fitted.grid.tolist()) != level.shape:
            raise FormatError(
                f"codec klt: level {index}: fitted to {len(fitted.offset)} components on {fitted.grid.tolist()}, "
                f"got a level of {level.shape}"
            )
        sizes = self._sizes(fitted)
        return {"values": PartSpec(shape=(sum(sizes),), dtype="uint8", cuts=_cuts(sizes))}

    def needed_levels(self, levels: Sequence[int], /) -> tuple[int, ...]:
        """The levels and, down to the first that is not predicted, those below them."""
        needed = set(levels)
        for level in range(max(levels, default=0), 0, -1):
            if level in needed and self._level(level).predict is not None:
                needed.add(level - 1)
        return tuple(sorted(needed))

    def encode_levels(self, feats: Sequence[Array], /) -> list[dict[str, Array]]:
        """Predict from what a decoder will have, transform, round, pack.

        Raises:
            StoreError: A value is not finite, or the levels are not those it was fitted to.
        """
        if [tuple(feat.shape[1:]) for feat in feats] != [_shape(level) for level in self._levels]:
            expected, got = [_shape(level) for level in self._levels], [tuple(feat.shape[1:]) for feat in feats]
            raise StoreError(f"codec klt: expected maps of the shapes it was fitted to, {expected}, got {got}")
        encoded, below = [], None
        for index, feat_NCHW in enumerate(feats):
            level, xp = self._levels[index], array_namespace(feat_NCHW)
            feat_NCHW = xp.astype(feat_NCHW, xp.float32)
            require_finite(feat_NCHW, level=index)
            guess_NCHW = self._guess(index, below, like=feat_NCHW)
            coefficients_NDM = self._analyse(index, feat_NCHW - guess_NCHW)
            integers = [
                xp.clip(quantise(some_NDM, step=float(level.steps[0])), -group.largest, group.largest)
                for group, some_NDM in _groups_of(level, coefficients_NDM)
            ]
            flat = [xp.reshape(values, (values.shape[0], -1)) for values in integers]
            packed = [pack(values, group) for (group, _), values in zip(_used(level), flat, strict=True)]
            encoded.append({"values": xp.concat(packed, axis=1)})
            if index + 1 < len(feats) and self._levels[index + 1].predict is not None:
                below = guess_NCHW + self._synthesise(index, xp.concat(integers, axis=1))
        return encoded

    def decode_levels(self, parts: Mapping[int, Mapping[str, Array]], /, *, levels: Sequence[int]) -> list[Array]:
        """Float32 ``(N, C, H, W)`` of each asked level.

        Raises:
            FormatError: The parts are not this codec's, or a needed level is absent.
        """
        needed = self.needed_levels(levels)
        require_levels(parts, levels=needed)
        decoded: dict[int, Array] = {}
        for index in needed:
            require_parts(parts[index], names=("values",), codec=self.name)
            integers_NDM = self._unpacked(self._level(index), parts[index]["values"])
            guess_NCHW = self._guess(index, decoded.get(index - 1), like=integers_NDM)
            decoded[index] = guess_NCHW + self._synthesise(index, integers_NDM)
        return [decoded[index] for index in levels]

    def _level(self, index: int) -> _Level:
        if not 0 <= index < len(self._levels):
            raise FormatError(f"codec klt: fitted to {len(self._levels)} levels, got level {index}")
        return self._levels[index]

    def _sizes(self, level: _Level) -> list[int]:
        """Bytes of each used group in a row."""
        tiles = self._tiles(level)
        return [packed_bytes(count * tiles, group) for group, count in _used(level)]

    def _blocks(self, level: _Level) -> Blocks:
        return block_sides(int(level.grid[0]), int(level.grid[1]), side=self.block)

    def _tiles(self, level: _Level) -> int:
        blocks = self._blocks(level)
        return int(level.grid[0]) // blocks.height * (int(level.grid[1]) // blocks.width)

    def _on(self, index: int, name: str, like: Array) -> Array:
        """A fitted array where ``like`` is, moved there once."""
        xp = array_namespace(like)
        key = (index, name, f"{xp.__name__} {device(like)}")
        if key not in self._moved:
            self._moved[key] = xp.asarray(getattr(self._levels[index], name), device=device(like))
        return self._moved[key]

    def _guess(self, index: int, below_NCHW: Array | None, *, like: Array) -> Array:
        """What is known before the first integer is read: ``(N or 1, C, H, W)``."""
        offset_1CHW = self._on(index, "offset", like)[None]
        if self._levels[index].predict is None:
            return offset_1CHW
        assert below_NCHW is not None
        return apply_matrix(self._on(index, "predict", like), below_NCHW) + offset_1CHW

    def _analyse(self, index: int, rest_NCHW: Array) -> Array:
        """Kept coefficients ``(N, D, M)``, widest group first."""
        xp = array_namespace(rest_NCHW)
        turned = apply_matrix(self._on(index, "basis", rest_NCHW).T, rest_NCHW)
        coefficients = to_blocks(turned, self._blocks(self._levels[index]))
        return xp.take(coefficients, self._on(index, "order", rest_NCHW), axis=1)

    def _synthesise(self, index: int, integers_NDM: Array) -> Array:
        """The map that integers ``(N, D, M)`` stand for, without the guess: ``(N, C, H, W)``."""
        level, xp = self._levels[index], array_namespace(integers_NDM)
        blocks, nearer_D1 = self._blocks(level), self._on(index, "nearer_D1", integers_NDM)
        values_NDM = xp.astype(integers_NDM, xp.float32)
        values_NDM = (values_NDM - xp.sign(values_NDM) * nearer_D1) * float(level.steps[0])
        shape = (values_NDM.shape[0], level.basis.shape[1] * blocks.height * blocks.width, values_NDM.shape[2])
        full = xp.zeros(shape, dtype=xp.float32, device=device(values_NDM))
        full[:, self._on(index, "order", values_NDM)] = values_NDM
        turned = from_blocks(full, blocks, (int(level.grid[0]), int(level.grid[1])))
        return apply_matrix(self._on(index, "basis", values_NDM), turned)

    def _unpacked(self, level: _Level, packed_NK: Array) -> Array:
        """Integers ``(N, D, M)`` of a row's bytes."""
        xp, tiles, sizes = array_namespace(packed_NK), self._tiles(level), self._sizes(level)
        if len(packed_NK.shape) != 2 or packed_NK.shape[1] != sum(sizes):
            raise FormatError(f"codec klt: expected values (rows, {sum(sizes)}), got {tuple(packed_NK.shape)}")
        pieces, start = [], 0
        for (group, count), size in zip(_used(level), sizes, strict=True):
            integers = unpack(packed_NK[:, start : start + size], group, count=count * tiles)
            pieces.append(xp.reshape(integers, (packed_NK.shape[0], count, tiles)))
            start += size
        return xp.concat(pieces, axis=1)


def quantise(coefficients: Array, /, *, step: float) -> Array:
    """Nearest multiple of a step, with a zero that is wider than the rest: int32."""
    xp = array_namespace(coefficients)
    magnitude = xp.floor(xp.abs(coefficients) * (1 / step) + (1 - ROUND_UP_AT))
    # A diverging map must be clipped, not wrapped around by the cast.
    return xp.astype(xp.sign(coefficients) * xp.clip(magnitude, 0.0, 32767.0), xp.int32)


def apply_matrix(matrix_OC: Array, feat_NCHW: Array, /) -> Array:
    """A matrix times the components of every token.

    Shapes: ``(O, C)`` and ``(N, C, H, W)`` → ``(N, O, H, W)``.
    """
    xp = array_namespace(feat_NCHW)
    count, components, height, width = feat_NCHW.shape
    flat = xp.matmul(matrix_OC, xp.reshape(feat_NCHW, (count, components, height * width)))
    return xp.reshape(flat, (count, -1, height, width))


def _shape(level: _Level) -> tuple[int, ...]:
    return (len(level.offset), *level.grid.tolist())


def _used(level: _Level) -> list[tuple[Group, int]]:
    """Groups that hold any coefficient, with how many."""
    return [(group, count) for group, count in zip(GROUPS, level.groups.tolist(), strict=True) if count]


def _cuts(sizes: Sequence[int]) -> tuple[int, ...]:
    """Offsets between groups, and inside a long one where coefficients have become a good deal smaller."""
    ends, start = [], 0
    for size in sizes:
        pieces = -(-size // _PIECE)
        ends += [start + size * piece // pieces for piece in range(1, pieces + 1)]
        start += size
    return tuple(ends[:-1])


def _groups_of(level: _Level, coefficients_NDM: Array) -> list[tuple[Group, Array]]:
    ends = np.cumsum([count for _, count in _used(level)]).tolist()
    starts = [0, *ends[:-1]]
    return [
        (group, coefficients_NDM[:, start:end])
        for (group, _), start, end in zip(_used(level), starts, ends, strict=True)
    ]


def _rebuild(error: float, rows: int, block: int, chain: bool, fitted: Mapping[str, NDArray[np.generic]]) -> Klt:
    return Klt(error=error, rows=rows, block=block, chain=chain, fitted=fitted)


def _parse(fitted: Mapping[str, NDArray[np.generic]], *, side: int) -> tuple[_Level, ...]:
    """Check fitted arrays, which may come from a hostile store, and sort them by level."""
    count = sum(name.startswith("grid_") for name in fitted)
    needed = {f"{name}_{index}" for index in range(count) for name in ASSETS if name != "predict"}
    allowed = needed | {f"predict_{index}" for index in range(1, count)}
    if not count or not needed <= set(fitted) <= allowed:
        raise FormatError(f"codec klt: expected the arrays {', '.join(ASSETS)} of every level, got {sorted(fitted)}")
    levels = tuple(_Level(*(fitted.get(f"{name}_{index}") for name in ASSETS)) for index in range(count))  # type: ignore[arg-type]
    for index, level in enumerate(levels):
        fault = _fault(level, before=levels[index - 1] if index else None, side=side)
        if fault:
            raise FormatError(f"codec klt: level {index}: {fault}; the column's codec arrays are damaged or foreign")
    return levels


def _fault(level: _Level, *, before: _Level | None, side: int) -> str:
    """What is wrong with a level's arrays, or nothing."""
    kinds, ranks = {"grid": "i4", "order": "i4", "groups": "i4"}, {"offset": 3, "predict": 2, "basis": 2}
    for name, values in zip(ASSETS, level, strict=True):
        if values is None:
            continue
        if values.dtype != np.dtype(kinds.get(name, "f4")) or values.ndim != ranks.get(name, 1) or not values.size:
            return f"{name}: refused {values.dtype} of shape {values.shape}"
        if not np.isfinite(values).all():
            return f"{name}: expected finite numbers"
    if level.grid.shape != (2,) or not 1 <= level.grid.min() <= level.grid.max() <= 1 << 20:
        return f"grid: expected two sizes, got {level.grid.tolist()}"
    components = len(level.offset)
    if level.offset.shape[1:] != tuple(level.grid.tolist()):
        return f"offset: expected the grid {level.grid.tolist()}, got {level.offset.shape}"
    if level.basis.shape[0] != components or level.basis.shape[1] > components:
        return f"basis: expected {components} rows and at most as many columns, got {level.basis.shape}"
    if level.predict is not None and (before is None or level.predict.shape != (components, len(before.offset))):
        return f"predict: {level.predict.shape} does not lead from the level before to {components} components"
    if level.predict is not None and before is not None and level.grid.tolist() != before.grid.tolist():
        return f"predict: the level before has the grid {before.grid.tolist()}"
    if level.groups.shape != (len(GROUPS),) or level.groups.min() < 0 or level.groups.sum() != len(level.order):
        return f"groups: expected {len(GROUPS)} sizes that add up to {len(level.order)}, got {level.groups.tolist()}"
    if level.steps.shape != (1 + len(GROUPS),) or level.steps[0] <= 0:
        return "steps: expected a positive step and a correction for every group"
    blocks = block_sides(int(level.grid[0]), int(level.grid[1]), side=side)
    coefficients = level.basis.shape[1] * blocks.height * blocks.width
    if level.order.min() < 0 or level.order.max() >= coefficients or len(np.unique(level.order)) != len(level.order):
        return f"order: expected different indices below {coefficients}"
    return ""
