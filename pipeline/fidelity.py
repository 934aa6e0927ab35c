"""How far decoded features are from what the teacher gave, and what they take: measured batch by batch, kept in sums.

Legend: N rows, C channels, H W grid rows and columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional

from sak.losses.distill import distill_loss
from store.column import Column
from store.summary import Summary

__all__ = ["Fidelity", "Measured", "StoredBits", "codec_speed", "column_fidelity", "mean_measured", "stored_bits"]

_DIGITS = 6  # what float32 can tell of a cosine


class Measured(NamedTuple):
    """Errors of a codec over some rows.

    Attributes:
        token_cosine: Mean over grid cells of the cosine between the two vectors of a cell.
        image_cosine: Mean over rows of the cosine between two flattened maps.
        relative_error: Norm of the error over the norm of the features.
        loss: The distillation loss between the two: what a student that is perfect would still pay.
    """

    token_cosine: float
    image_cosine: float
    relative_error: float
    loss: float


class Fidelity:
    """Accumulates one level's errors.

    Args:
        kind, cosine: The distillation loss, as ``distill_loss`` takes it; the defaults are the recipes'.
    """

    def __init__(self, *, kind: str = "cos+l1", cosine: str = "image") -> None:
        self._kind, self._cosine = kind, cosine
        self._rows = self._tokens = 0
        self._token = self._image = self._loss = self._error = self._power = 0.0

    def add(self, feat_NCHW: Tensor, back_NCHW: Tensor, /) -> None:
        """Accumulate a batch of features and what their codec gives back, both float32; a batch may be empty."""
        rows = len(feat_NCHW)
        if rows == 0:
            return
        token_NHW = functional.cosine_similarity(feat_NCHW, back_NCHW, dim=1)
        image_N = functional.cosine_similarity(feat_NCHW.flatten(1), back_NCHW.flatten(1), dim=1)
        loss = distill_loss({"level": [feat_NCHW]}, {"level": [back_NCHW]}, self._kind, cosine=self._cosine)["total"]
        self._rows += rows
        self._tokens += token_NHW.numel()
        self._token += float(token_NHW.double().sum())
        self._image += float(image_N.double().sum())
        self._loss += rows * float(loss)
        self._error += float((feat_NCHW - back_NCHW).double().square().sum())
        self._power += float(feat_NCHW.double().square().sum())

    def result(self) -> Measured | None:
        """The errors so far, rounded to what float32 can tell; None before any row."""
        if self._rows == 0:
            return None
        error = (self._error / self._power) ** 0.5 if self._power else 0.0
        return Measured(
            token_cosine=round(self._token / self._tokens, _DIGITS),
            image_cosine=round(self._image / self._rows, _DIGITS),
            relative_error=round(error, _DIGITS),
            loss=round(max(0.0, self._loss / self._rows), _DIGITS),
        )


def mean_measured(levels: Sequence[Measured], /) -> Measured:
    """The mean over levels, each counting the same, as each does in the loss."""
    assert levels
    return Measured(*(sum(values) / len(levels) for values in zip(*levels, strict=True)))


class StoredBits(NamedTuple):
    """Bits a value takes on disk, checksums and indices included: of all levels, and of each where they lie apart."""

    mean: float
    levels: tuple[float, ...]


def stored_bits(column: Column, summary: Summary, /) -> StoredBits | None:
    """What a column's committed parts take, as its summary adds them up; None before the first."""
    rows = summary.committed_rows
    if rows == 0:
        return None
    sizes = [0] * len(column.spec.levels)
    for array in column.arrays:
        sizes[array.level] += summary.folder_bytes.get(array.name, 0)
    values = [rows * level.values for level in column.spec.levels]
    levels = tuple(8 * size / count for size, count in zip(sizes, values, strict=True))
    return StoredBits(8 * summary.bytes / sum(values), levels if all(sizes) else ())


def column_fidelity(column: Column, summary: Summary, /) -> dict[str, dict[str, float]]:
    """What extraction measured, with the bits a value takes: ``level_0`` and on, and their ``mean``."""
    found: dict[str, dict[str, float]] = {
        name: {key: round(value, _DIGITS) for key, value in level.items()}
        for name, level in summary.stats.items()
        if isinstance(level, Mapping) and level
    }
    bits = stored_bits(column, summary)
    if bits is not None:
        for index, value in enumerate(bits.levels):
            found.setdefault(f"level_{index}", {})["bits_per_value"] = round(value, 4)
    mean = _mean(list(found.values())) | ({} if bits is None else {"bits_per_value": round(bits.mean, 4)})
    return found | ({"mean": mean} if mean else {})


def codec_speed(column: Column, summary: Summary, /) -> dict[str, float]:
    """Millions of values a second that the codec encoded and decoded during extraction, on the device of that run.

    Empty where no part was timed.
    """
    values = sum(level.values for level in column.spec.levels) / 1e6
    spent = summary.spent
    steps = {"encode": (summary.timed_rows, spent.encode), "decode": (summary.decoded_rows, spent.decode)}
    return {name: float(f"{rows * values / seconds:.3g}") for name, (rows, seconds) in steps.items() if seconds}


def _mean(levels: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean over levels of what all of them have."""
    names = [name for name in (levels[0] if levels else ()) if all(name in level for level in levels)]
    return {name: round(sum(level[name] for level in levels) / len(levels), _DIGITS) for name in names}
