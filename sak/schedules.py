"""Learning-rate curves: pure functions of the optimiser step, counted from 0."""

from __future__ import annotations

import math

from sak.errors import SakError

__all__ = ["poly", "reference_step", "warmup_cosine"]


def warmup_cosine(
    step: int, *, total: int, warmup: int, peak: float, start: float = 1.25e-7, end: float = 1e-5
) -> float:
    """Rise linearly from ``start`` to ``peak`` in ``warmup`` steps, then fall along half a cosine to ``end``.

    The peak is reached at ``step == warmup``, ``end`` at ``step == total``; later steps stay there.

    Source: the paper's stage 1 (peak 1e-3, warm-up of 2 of 30 epochs).

    Raises:
        SakError: Not ``0 <= warmup < total``, or a negative step.
    """
    _check(step, total=total)
    if not 0 <= warmup < total:
        raise SakError(
            f"schedule: expected 0 <= warmup < total = {total} steps, got warmup {warmup}; shorten the warm-up"
        )
    if step < warmup:
        return start + (peak - start) * step / warmup
    progress = min((step - warmup) / (total - warmup), 1.0)
    return end + (peak - end) * 0.5 * (1 + math.cos(math.pi * progress))


def poly(step: int, *, total: int, peak: float, power: float = 0.9) -> float:
    """Fall from ``peak`` to 0 at ``step == total`` as a power of what is left.

    Source: the paper's stage 2 (peak 2e-5, no warm-up).

    Raises:
        SakError: ``total`` is not positive, or a negative step.
    """
    _check(step, total=total)
    return float(peak * max(1 - step / total, 0.0) ** power)


def reference_step(step: int, /) -> int:
    """The step that the published loop hands to its schedule: one behind, because it advances with the old index.

    Its first two updates both run at the starting rate and the peak comes one update late; harmless, and wanted only
    for exact replays: ``warmup_cosine(reference_step(step), ...)``.
    """
    return max(step - 1, 0)


def _check(step: int, *, total: int) -> None:
    if total < 1 or step < 0:
        raise SakError(f"schedule: expected total >= 1 and step >= 0, got total {total} and step {step}")
