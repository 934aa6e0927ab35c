"""What making a part cost: kept beside its record, because it differs from run to run."""

from __future__ import annotations

import math
import socket
from typing import NamedTuple

from store.document import parse_document, render_document
from store.errors import FormatError

__all__ = ["UNTIMED", "Spent", "parse_cost", "render_cost"]


class Spent(NamedTuple):
    """Seconds that making a part took: all of it, and the codec's steps, 0 where they were not timed."""

    total: float = 0.0
    encode: float = 0.0
    decode: float = 0.0


UNTIMED = Spent()

_KEYS = {"total": "seconds", "encode": "encode_seconds", "decode": "decode_seconds"}


def render_cost(spent: Spent, /) -> bytes:
    """The bytes of a cost file, which names this host; steps only where they were timed."""
    known = {key: round(float(getattr(spent, step)), 6) for step, key in _KEYS.items()}
    found = {key: value for key, value in known.items() if value or key == "seconds"}
    return render_document("cost", {**found, "host": socket.gethostname()})


def parse_cost(data: bytes, /, *, where: str) -> Spent:
    """Inverse of ``render_cost``.

    Raises:
        CorruptShardError: Its bytes have changed.
        FormatError: It is no cost file of this version.
    """
    body = parse_document(data, kind="cost", where=where)
    found = {step: (key, body.get(key, 0.0)) for step, key in _KEYS.items()}
    for key, value in found.values():
        if type(value) not in (int, float) or not 0 <= value < math.inf:
            raise FormatError(f"{where}: {key}: expected a number, got {value!r}; delete the file")
    return Spent(**{step: float(value) for step, (_, value) in found.items()})
