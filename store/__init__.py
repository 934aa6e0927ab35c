"""Compressed teacher features of images: ``store.open(root)`` reads them, ``store.create(root)`` makes a store.

``root`` is a folder or ``s3://bucket/prefix``. Of what ``store.open`` gives, ``view_sets()`` and ``columns(view_set)``
list what there is, and ``read(view_set, columns=names, levels=[0, 3], rows=[7, 0])`` gives for each column's name one
float32 array ``(rows, C, h, w)`` for each level asked for.
"""

from __future__ import annotations

from store.store import Store

__all__ = ["Store", "create", "open"]

open = Store.open
create = Store.create
