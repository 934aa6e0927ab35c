"""Appends views to a tiny store and then adds a column, while test_concurrent.py reads; run by it."""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

import tiny_store  # noqa: E402

from store.store import Store  # noqa: E402

if __name__ == "__main__":
    store = Store.open(sys.argv[1])
    for views in range(2, 5):
        tiny_store.write_view_parts(store.extend_view_set("t", views=views))
        tiny_store.write_column(store, "a")
        tiny_store.write_column(store, "b")
        time.sleep(0.05)
