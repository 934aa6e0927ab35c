"""Numbers as people read them: bytes, durations, counts and signed gains."""

from __future__ import annotations

import math

__all__ = ["DASH", "bytes_text", "count_text", "fixed_text", "gain_symbol", "gain_text", "ratio_text", "seconds_text"]

DASH = "–"
MINUS = "\u2212"


def fixed_text(value: float | None, *, digits: int) -> str:
    """A number with so many decimals and a true minus; a dash when missing or not finite."""
    if value is None or not math.isfinite(value):
        return DASH
    return f"{value:.{digits}f}".replace("-", MINUS)


def gain_text(percent: float | None) -> str:
    """A gain with its sign always written: ``+1.23 %``."""
    if percent is None or not math.isfinite(percent):
        return DASH
    rounded = round(percent, 2)
    sign = "+" if rounded > 0 else MINUS if rounded < 0 else "±"
    return f"{sign}{abs(rounded):.2f} %"


def gain_symbol(percent: float | None) -> str:
    """Up, down or level, so that a gain never rests on colour alone."""
    if percent is None or not math.isfinite(percent):
        return ""
    rounded = round(percent, 2)
    return "▲" if rounded > 0 else "▼" if rounded < 0 else "●"


def _scaled(value: float, *, units: tuple[str, ...], step: float) -> str:
    rank = 0
    # 999.5 would print as four digits: move up before rounding does.
    while abs(value) >= step * 0.9995 and rank < len(units) - 1:
        value, rank = value / step, rank + 1
    digits = 0 if rank == 0 and value == int(value) else 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{digits}f} {units[rank]}".rstrip()


def bytes_text(count: float) -> str:
    """Decimal bytes: ``1.77 MB``."""
    return _scaled(count, units=("B", "kB", "MB", "GB", "TB", "PB"), step=1000.0)


def count_text(count: float) -> str:
    """A large count: ``5.72 M``."""
    return _scaled(count, units=("", "k", "M", "G"), step=1000.0)


def ratio_text(ratio: float) -> str:
    """A factor with two or three digits that mean something: ``3.9×``."""
    return f"{ratio:.0f}×" if ratio >= 100 else f"{ratio:.1f}×" if ratio >= 2 else f"{ratio:.2f}×"


def seconds_text(seconds: float) -> str:
    """A duration: ``8.4 s``, ``3 min 05 s``, ``2 h 07 min``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
