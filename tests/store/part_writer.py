"""Writes one part of a tiny store's column; run by test_commits.py.

``part_writer.py ROOT PART NAME`` prints the name that the standing record has and its digest. With ``--stop`` it says
``begun`` when the part's first file is there, and goes on when it is told a line.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

import tiny_store  # noqa: E402

from store.backends.zarr3 import Zarr3  # noqa: E402
from store.store import Store  # noqa: E402

Item = TypeVar("Item")


def stopping(items: Iterable[Item]) -> Iterator[Item]:
    for number, item in enumerate(items):
        if number == 1:
            print("begun", flush=True)
            sys.stdin.readline()
        yield item


if __name__ == "__main__":
    root, part, name = sys.argv[1:4]
    if "--stop" in sys.argv:
        pack = Zarr3.pack
        Zarr3.pack = lambda *args, **options: stopping(pack(*args, **options))  # type: ignore[method-assign]
    (column,) = Store.open(root, options=tiny_store.OPTIONS).columns("t")
    commit = tiny_store.write_part(column, int(part), stats={"writer": name})
    print(commit.stats["writer"], commit.digest(), flush=True)
