"""timm's hub, without a minute of retries where there is no network."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants

__all__ = ["impatient_hub"]

_CONNECT_SECONDS = 3.0


@contextmanager
def impatient_hub() -> Iterator[None]:
    """Ask the hub's host once whether it answers; if not, only the local cache is looked at.

    The hub client itself retries every file for most of a minute, and logs each attempt, before it gives up.
    """
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _reachable(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _reachable(endpoint: str) -> bool:
    parts = urlsplit(endpoint)
    # Behind a proxy only the proxy knows.
    if {parts.scheme, "all"} & set(getproxies()):
        return True
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        with socket.create_connection((parts.hostname or "", port), timeout=_CONNECT_SECONDS):
            return True
    except OSError:
        return False
