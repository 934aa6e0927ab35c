"""Names of shards: braces, globs and splits in a source's root."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from glob import glob, has_magic
from pathlib import Path

from pipeline.errors import DataError
from pipeline.images.files import SPLITS
from pipeline.images.ranges import is_remote, s3_names
from store.errors import one_line

__all__ = ["expand"]

_MAX_SHARDS = 100_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_UNDIVIDED = ("all", "train", "unlabeled")


def expand(root: str, /, *, split: str, suffix: str) -> list[str]:
    """Paths or addresses of the shards that a root names, sorted.

    ``{split}`` stands for the split, ``{000..146}`` for numbers, ``{a,b}`` for alternatives; ``*``, ``?``, ``[ ]`` and
    ``**`` match files, and objects of a bucket. A folder stands for all its files of the suffix.

    Raises:
        DataError: It names no file, or no split where one is asked for.
        UnreachableError: The network fails.
    """
    if split not in ("all", *SPLITS):
        raise DataError(f"{root}: unknown split {split!r}; choose one of all, {', '.join(SPLITS)}")
    if "{split}" in root:
        root = root.replace("{split}", split)
    elif split not in _UNDIVIDED:
        raise DataError(
            f"{root}: names no split, and {split} is asked for; write {{split}} in it, or ask for split: all of a root"
            " that names these shards alone"
        )
    found = sorted({name for pattern in _braced(root) for name in _matching(pattern, suffix=suffix)})
    if not found:
        raise DataError(one_line(f"{root}: no files found; check the root in the recipe"))
    return found


def _braced(pattern: str) -> list[str]:
    """The pattern with every brace replaced in turn by what it stands for."""
    done, todo = [], [pattern]
    while todo:
        text = todo.pop()
        match = _BRACES.search(text)
        if match is None:
            done.append(text)
        else:
            todo += [f"{text[: match.start()]}{item}{text[match.end() :]}" for item in _alternatives(match[1], pattern)]
        if len(done) + len(todo) > _MAX_SHARDS:
            raise DataError(one_line(f"{pattern}: stands for more than {_MAX_SHARDS} shards; name fewer"))
    return done


def _alternatives(inner: str, pattern: str) -> list[str]:
    match = _RANGE.fullmatch(inner)
    if match is None:
        if "," not in inner:
            raise DataError(one_line(f"{pattern}: expected {{000..146}}, {{a,b}} or {{split}}, got {{{inner}}}"))
        return inner.split(",")
    first, last = int(match[1]), int(match[2])
    if not first <= last < first + _MAX_SHARDS:
        raise DataError(one_line(f"{pattern}: {{{inner}}}: expected ascending numbers, at most {_MAX_SHARDS} of them"))
    digits = len(match[1]) if match[1].startswith("0") else 0
    return [f"{number:0{digits}d}" for number in range(first, last + 1)]


def _matching(pattern: str, *, suffix: str) -> Iterator[str]:
    if not is_remote(pattern):
        path = Path(os.path.expanduser(pattern))
        if path.is_dir():
            yield from (str(item) for item in path.rglob(f"*{suffix}") if not item.name.startswith("."))
        elif has_magic(pattern):
            yield from glob(str(path), recursive=True)
        else:
            yield str(path)
    elif not pattern.startswith("s3://"):
        if "*" in pattern:
            raise DataError(one_line(f"{pattern}: a web server lists no files; name them, as in {{000..146}}"))
        yield pattern
    elif not has_magic(pattern):
        yield pattern
    else:
        head = re.split(r"[*?\[]", pattern, maxsplit=1)[0]
        yield from (name for name in s3_names(head) if fnmatchcase(name, pattern))
