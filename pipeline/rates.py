"""What a codec costs and loses on a sample of maps: bits a value on disk, errors, speed.

Legend: N rows, C channels, H W grid rows and columns.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from pipeline.clock import Clock
from pipeline.features import Parts, decode_maps, encode_maps
from pipeline.fidelity import Fidelity, Measured, mean_measured
from store.backends.base import LevelArray, ShardArray
from store.backends.registry import backend_of
from store.layout import level_arrays
from store.spec import ColumnSpec

__all__ = ["METRICS", "LossKind", "Rate", "cheapest", "front", "measure", "meets"]

METRICS: Mapping[str, bool] = {"token_cosine": True, "image_cosine": True, "loss": False}
"""What fidelity can be asked in, and whether more of it is better."""

_BACKEND = "zarr"

T = TypeVar("T")


class LossKind(NamedTuple):
    """The distillation loss, as ``distill_loss`` takes it."""

    kind: str = "cos+l1"
    cosine: str = "image"


class Rate(NamedTuple):
    """One codec on one teacher's maps.

    Attributes:
        codec: Its settings, defaults included.
        measured: Mean over levels; ``levels`` has each.
        bits: Per value as stored, checksums and indices included.

    Units:
        ``row_bytes`` on disk; ``asset_bytes`` once for each column; speeds in millions of values a second, ``encode``
        and ``decode`` where the sample was measured, ``unpack`` (the byte codec) on one CPU core.
    """

    codec: Mapping[str, Any]
    measured: Measured
    levels: tuple[Measured, ...]
    bits: float
    row_bytes: float
    asset_bytes: int
    encode: float
    decode: float
    unpack: float

    @property
    def name(self) -> str:
        """The codec's name."""
        return str(self.codec["name"])


def measure(spec: ColumnSpec, batches: Sequence[Sequence[Tensor]], /, *, device: torch.device, loss: LossKind) -> Rate:
    """Encode, store, unpack and decode a sample, in batches as extraction and training do.

    Args:
        batches: For each batch and level float32 ``(N, C, H, W)``, on any device; there is at least one.
        device: Where the codec runs.

    Raises:
        StoreError: The codec cannot represent these maps.
    """
    fidelity = [Fidelity(kind=loss.kind, cosine=loss.cosine) for _ in spec.levels]
    clock = Clock(device)
    stored = unpacked = values = 0.0
    _there_and_back(spec, [feat[:1].to(device) for feat in batches[0]], Clock(device))  # the first call is slow
    for feats in batches:
        on_device = [feat.to(device) for feat in feats]
        parts, back = _there_and_back(spec, on_device, clock)
        for item, feat, other in zip(fidelity, on_device, back, strict=True):
            item.add(feat, other)
        size, seconds = _packed(spec, parts)
        stored, unpacked, values = stored + size, unpacked + seconds, values + sum(feat.numel() for feat in feats)
    levels = tuple(found for found in (item.result() for item in fidelity) if found)
    return Rate(
        codec=spec.codec.to_json(),
        measured=mean_measured(levels),
        levels=levels,
        bits=8 * stored / values,
        row_bytes=stored / sum(len(feats[0]) for feats in batches),
        asset_bytes=sum(array.nbytes for array in spec.codec.assets().values()),
        encode=_millions(values, clock.seconds("encode")),
        decode=_millions(values, clock.seconds("decode")),
        unpack=_millions(values, unpacked),
    )


def meets(rate: Rate, /, *, metric: str, fidelity: float) -> bool:
    """Whether a codec is as good as asked."""
    value = float(getattr(rate.measured, metric))
    return value >= fidelity if METRICS[metric] else value <= fidelity


def cheapest(rates: Sequence[Rate], /, *, metric: str, fidelity: float) -> Rate | None:
    """The fewest bits among those that are as good as asked; None when none is."""
    good = [rate for rate in rates if meets(rate, metric=metric, fidelity=fidelity)]
    return min(good, key=lambda rate: rate.bits, default=None)


def front(rates: Sequence[Rate], /, *, metric: str) -> list[bool]:
    """Which codecs no other one beats in both bits and fidelity: the Pareto front."""
    sign = 1 if METRICS[metric] else -1
    points = [(rate.bits, -sign * float(getattr(rate.measured, metric))) for rate in rates]
    return [not any(other != one and other[0] <= one[0] and other[1] <= one[1] for other in points) for one in points]


class _Return(NamedTuple):
    parts: Parts
    back: list[Tensor]


def _there_and_back(spec: ColumnSpec, feats: Sequence[Tensor], clock: Clock) -> _Return:
    parts = clock.run("encode", lambda: encode_maps(spec, feats))
    return _Return(parts, clock.run("decode", lambda: decode_maps(spec, parts)))


class _Packed(NamedTuple):
    size: int
    seconds: float


def _packed(spec: ColumnSpec, parts: Parts) -> _Packed:
    """Bytes that a batch takes as the store writes it, and the time that one core needs to unpack it."""
    backend = backend_of(_BACKEND, where="tune")
    arrays = level_arrays(spec)
    shards = [ShardArray(array, parts[array.level][array.part].cpu().numpy()) for array in arrays]
    count = len(shards[0].values)
    size, seconds = 0, 0.0
    files = backend.pack(0, shards, rows=range(count), rows_per_shard=count, threads=1)
    for array, (_, data) in zip(arrays, files, strict=True):
        size += len(data)
        seconds += _unpack(data, array, rows=count)
    return _Packed(size, seconds)


def _unpack(data: bytes, array: LevelArray, *, rows: int) -> float:
    backend = backend_of(_BACKEND, where="tune")
    where = backend.index(_Bytes(data), [array], rows=range(rows), rows_per_shard=rows)[array.name]
    decode, out = backend.decoder(array.spec), np.empty(array.spec.row_bytes, np.uint8)
    chunks = [data[at : at + size] for at, size in zip(where.offsets, where.sizes, strict=True)]
    start = time.perf_counter()
    for chunk in chunks:
        decode(chunk, out)
    return time.perf_counter() - start


class _Bytes:
    """A file in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def size(self) -> int:
        """Bytes in it."""
        return len(self._data)

    def read(self, offset: int, size: int, /) -> bytes:
        """Bytes from a position."""
        return self._data[offset : offset + size]


def _millions(values: float, seconds: float) -> float:
    return values / max(seconds, 1e-9) / 1e6
