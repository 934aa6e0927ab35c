"""Compressed teacher features of images: ``store.open(root)`` reads them, ``store.create(root)`` makes a store."""

from __future__ import annotations

from store.store import Store

__all__ = ["Store", "create", "open"]

open = Store.open
create = Store.create
