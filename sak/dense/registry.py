"""The dense tasks, in the order in which tables show them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from sak.dense import disparity
from sak.dense.spec import DenseTask, LabelSpec

__all__ = ["LABELS", "TASKS"]

TASKS: Mapping[str, DenseTask] = MappingProxyType({"disparity": disparity.TASK})
"""Tasks that are one module each. The losses and metrics of the other six are in ``sak.losses.tasks`` and beside it."""

LABELS: Mapping[str, LabelSpec] = MappingProxyType(
    {
        label.name: label
        for label in (
            LabelSpec(name="semseg", title="semseg", stored="uint8", invalid=255, shown="classes"),
            LabelSpec(name="human_parts", title="parts", stored="uint8", invalid=255, shown="classes"),
            LabelSpec(name="sal", title="saliency", stored="uint8", invalid=255, shown="grey"),
            LabelSpec(
                name="normals",
                title="normals",
                stored="float16",
                invalid=0,
                channels=3,
                mirrored=True,
                shown="directions",
            ),
            LabelSpec(name="edge", title="boundary", stored="uint8", invalid=255, shown="grey"),
            LabelSpec(
                name="depth", title="depth", stored="float32", invalid=255, zoom=-1, shown="range", unit="m", largest=80
            ),
            *(task.label for task in TASKS.values()),
        )
    }
)
"""How the labels of each task look."""
