"""The table of backends; a new one is its module and one line here."""

from __future__ import annotations

from collections.abc import Mapping

from store.backends.base import Backend
from store.backends.tar import WebDataset
from store.backends.zarr3 import Zarr3
from store.errors import FormatError

__all__ = ["BACKENDS", "backend_of"]

BACKENDS: Mapping[str, Backend] = {
    "zarr": Zarr3(),
    "webdataset": WebDataset(),
}


def backend_of(name: object, /, *, where: str) -> Backend:
    """A backend by name.

    Raises:
        FormatError: There is none of that name.
    """
    if not isinstance(name, str) or name not in BACKENDS:
        raise FormatError(f"{where}: expected a backend, one of {', '.join(BACKENDS)}, got {name!r}")
    return BACKENDS[name]
