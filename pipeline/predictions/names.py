"""File names from image keys: readable, distinct, and never outside their folder."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from pipeline.errors import DataError

__all__ = ["relative_name"]

_LONGEST = 200  # bytes of a name: file systems take 255, and a suffix and a temporary name come on top
_DEEPEST = 16


def relative_name(key: str, /, *, view: int | None = None) -> Path:
    """Where maps of an image lie below their task's folder, without suffix; a slash in a key is a folder.

    Args:
        view: Number of the view where an image has several.

    Raises:
        DataError: The key is no such name: empty, absolute, with a dot or control character where one may mislead, or
            too long.
    """
    parts = key.split("/")
    faults = [fault for part in parts if (fault := _fault(part))]
    if len(parts) > _DEEPEST:
        faults.append(f"{len(parts)} folders deep")
    if faults:
        raise DataError(
            f"image key {key!r}: expected a name that a file can have, got {faults[0]}; rename it at its source"
        )
    *folders, name = parts
    return Path(PurePosixPath(*folders, name if view is None else f"{name}#{view}"))


def _fault(part: str) -> str | None:
    if part in ("", ".", ".."):
        return f"the part {part!r}"
    if part.startswith("."):
        return f"a leading dot in {part!r}"
    if any(not char.isprintable() or char in '\\:*?"<>|' for char in part):
        return f"a character in {part!r} that not every file system takes"
    if len(part.encode("utf-8", "replace")) > _LONGEST:
        return f"{len(part.encode('utf-8', 'replace'))} bytes, at most {_LONGEST}"
    return None
