"""Reads all that is committed of a tiny store again and again, and checks every value; run by test_concurrent.py.

It keeps what it opened in its first round, and opens the store anew in each; it ends once everything is there.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

import numpy as np  # noqa: E402
import tiny_store  # noqa: E402

from store.column import Column  # noqa: E402
from store.errors import MissingRowsError  # noqa: E402
from store.store import Store  # noqa: E402


def check(column: Column) -> int:
    """Rows that are committed, all of them as they were made; the others are refused."""
    spec, count = column.view_set.spec, 0
    done = column.committed_parts()
    for part in range(spec.parts):
        rows = spec.part_rows(part)
        try:
            levels = column.read(rows)
        except MissingRowsError:
            assert part not in done, f"{column.folder} part {part} was committed, and refused"
            continue
        images = column.view_set.read_rows(rows)
        for index, row in enumerate(rows):
            assert images[index] == tiny_store.view_row(spec, row)
            for level, arrays in enumerate(levels):
                for name, value in tiny_store.expected(column.spec, row, level).items():
                    np.testing.assert_array_equal(arrays[name][index], value)
            count += 1
    return count


if __name__ == "__main__":
    first = Store.open(sys.argv[1]).columns("t")
    seen = {sum(check(column) for column in first)}
    print("ready", flush=True)
    end = time.monotonic() + 100
    while max(seen) < int(sys.argv[2]) and time.monotonic() < end:
        for column in first:
            check(column)
        seen.add(sum(check(column) for column in Store.open(sys.argv[1]).columns("t")))
    print(*sorted(seen))
