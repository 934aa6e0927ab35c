"""What making a part cost: kept beside its record, because it differs from run to run."""

from __future__ import annotations

import math
import socket
from typing import NamedTuple

from store.document import parse_document, render_document
from store.errors import FormatError

__all__ = ["UNTIMED", "Spent", "parse_cost", "render_cost"]


class Spent(NamedTuple):
    """What making a part took: of all of it and of each step, 0 where that was not measured.

    Units:
        Seconds: ``total``, and of the steps ``read`` (pixels, from the store to memory, decoded), ``copy`` (to the
        device), ``forward`` (the teacher), ``encode``, ``decode`` (to measure the codec's error, ``decoded_rows``
        alone; 0: all rows), ``measure`` and ``write`` (packing, digests and files). Steps overlap, so they may add up
        to more than all of it. Pixels are read once for all teachers that need them: the first one's part has it.
        Bytes, counted where they cross: ``read_bytes`` and ``written_bytes`` between process and store, files that
        are read again to check them included; ``device_bytes`` to the device and ``host_bytes`` back, 0 on a CPU.
    """

    total: float = 0.0
    encode: float = 0.0
    decode: float = 0.0
    read: float = 0.0
    copy: float = 0.0
    forward: float = 0.0
    measure: float = 0.0
    write: float = 0.0
    decoded_rows: int = 0
    read_bytes: int = 0
    device_bytes: int = 0
    host_bytes: int = 0
    written_bytes: int = 0

    def plus(self, other: Spent, /) -> Spent:
        """Both together."""
        return Spent._make(one + two for one, two in zip(self, other, strict=True))


UNTIMED = Spent()

# Seconds are told apart from counts by the type of what they are without being measured.
_KEYS = {name: name if type(none) is int else f"{name}_seconds" for name, none in UNTIMED._asdict().items()}
_KEYS["total"] = "seconds"


def render_cost(spent: Spent, /) -> bytes:
    """The bytes of a cost file, which names this host; steps only where they were measured."""
    known = {key: getattr(spent, step) for step, key in _KEYS.items()}
    found = {
        key: value if type(value) is int else round(float(value), 6)
        for key, value in known.items()
        if value or key == "seconds"
    }
    return render_document("cost", {**found, "host": socket.gethostname()})


def parse_cost(data: bytes, /, *, where: str) -> Spent:
    """Inverse of ``render_cost``.

    Raises:
        CorruptShardError: Its bytes have changed.
        FormatError: It is no cost file of this version.
    """
    body = parse_document(data, kind="cost", where=where)
    found = {step: (key, body.get(key, 0)) for step, key in _KEYS.items()}
    for key, value in found.values():
        if type(value) not in (int, float) or not 0 <= value < math.inf:
            raise FormatError(f"{where}: {key}: expected a number, got {value!r}; delete the file")
    return Spent(**{step: type(getattr(UNTIMED, step))(value) for step, (_, value) in found.items()})
