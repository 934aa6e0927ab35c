"""Stage ``data``: write the built-in scenes in the on-disk layout of a real data set."""

from __future__ import annotations

from pathlib import Path

from pipeline.images.layouts import LAYOUTS, write_layout
from pipeline.tracking import progress_bar

__all__ = ["LAYOUTS", "write_scenes"]


def write_scenes(layout: str, /, *, out: Path, train: int, val: int, size: int, seed: int) -> None:
    """Render ``train`` and ``val`` scenes into ``out``.

    Raises:
        DataError: The layout is unknown, or ``out`` holds something else already.
    """
    with progress_bar("scenes") as bar:
        shown = bar.add_task(f"scenes as {layout}", total=train + val, note="")
        write_layout(
            layout,
            out=out,
            train=train,
            val=val,
            size=(size, size),
            seed=seed,
            progress=lambda done: bar.update(shown, completed=done),
        )
