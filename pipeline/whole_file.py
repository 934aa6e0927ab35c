"""Files that are either all there or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

__all__ = ["write_whole"]


def write_whole(path: Path, data: bytes, /) -> None:
    """Write a file under a temporary name, flush, rename: whoever reads it finds all of it or the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # By chance, not by process: ranks in containers of their own may have one number, and write the same file.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
