"""Verifies a tiny store again and again until so many rows are committed in it, and fails at the first error.

Run by test_concurrent.py; prints how often it did.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

from store.store import Store  # noqa: E402
from store.verify import verify  # noqa: E402

if __name__ == "__main__":
    store, wanted = Store.open(sys.argv[1]), int(sys.argv[2])
    print("ready", flush=True)
    rounds = rows = 0
    end = time.monotonic() + 100
    while rows < wanted and time.monotonic() < end:
        rows = sum(column.summary().committed_rows for column in store.columns("t"))
        errors = [found for found in verify(store) if found.severity == "error"]
        assert not errors, errors
        rounds += 1
    print(rounds, rows)
