"""What scoring adds up over images, so that every number of ranks comes to the same result.

Which rows share a forward pass never depends on the ranks, and what is added up is integers: counts, and floats without
rounding (``sak.exact``). The sums of all ranks hence are those of one, bit for bit.

Legend: B batch, L levels, E experts.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.boundary.counts import CountTable, parse_counts, render_counts
from pipeline.distributed import Ranks
from sak.exact import exact, rounded
from sak.metrics import TaskMetrics

__all__ = ["ScoreSums", "all_counted", "batches_of"]

_METRICS, _GATES, _LOSS, _IMAGES = "metrics/", "gates/", "loss", "images"


class ScoreSums:
    """Sums of one rank: task metrics, the loss against teachers, and what routers mixed with.

    Args:
        metrics: ``None`` for a network without tasks.
    """

    def __init__(self, metrics: TaskMetrics | None) -> None:
        self.metrics = metrics
        self._sums: dict[str, NDArray[np.int64]] = {_LOSS: exact(0.0), _IMAGES: np.zeros((), dtype=np.int64)}

    def count(self, images: int, /, *, loss: float, gates: Mapping[str, Sequence[Tensor]]) -> None:
        """Add a batch of so many images.

        Args:
            loss: Its mean over them.

        Shapes:
            gates: Task to levels of ``(B, E)``.
        """
        self._add(_LOSS, exact(loss * images))
        self._add(_IMAGES, np.array(images, dtype=np.int64))
        for task, levels in gates.items():
            summed_LE = torch.stack([level.double().sum(0) for level in levels])
            self._add(f"{_GATES}{task}", exact(summed_LE.cpu().numpy()))

    def merged(self, ranks: Ranks, /) -> None:
        """Have rank 0 hold the sums of all ranks; those of the others stay their own."""
        if ranks.world > 1:
            for data in ranks.gathered(self._packed())[1:]:
                self._merge(data)

    @property
    def images(self) -> int:
        """How many were counted."""
        return int(self._sums[_IMAGES])

    def loss(self) -> float:
        """Mean over images."""
        return float(rounded(self._sums[_LOSS])) / self.images

    def gates(self) -> dict[str, NDArray[np.float64]]:
        """Mean over images by task, ``(L, E)``."""
        named = {key: value for key, value in self._sums.items() if key.startswith(_GATES)}
        return {key.removeprefix(_GATES): rounded(value) / self.images for key, value in named.items()}

    def _add(self, key: str, value: NDArray[np.int64]) -> None:
        self._sums[key] = self._sums[key] + value if key in self._sums else value

    def _packed(self) -> bytes:
        state = self.metrics.state() if self.metrics else {}
        buffer = io.BytesIO()
        arrays = self._sums | {f"{_METRICS}{key}": value for key, value in state.items()}
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        return buffer.getvalue()

    def _merge(self, data: bytes) -> None:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        if self.metrics:
            named = {key for key in arrays if key.startswith(_METRICS)}
            self.metrics.merge_state({key.removeprefix(_METRICS): arrays.pop(key) for key in named})
        for key, value in arrays.items():
            self._add(key, value)


def all_counted(table: CountTable, ranks: Ranks, /) -> CountTable:
    """On rank 0 the boundary counts of all ranks, in the order of keys; on the others their own."""
    parts = [parse_counts(data, where="another rank") for data in ranks.gathered(render_counts(table))]
    images = {key: image for part in parts for key, image in part.images.items()}
    return CountTable(table.rules, {key: images[key] for key in sorted(images)}) if parts else table


def batches_of(rows: Sequence[int], /, *, batch: int, ranks: Ranks) -> Iterator[Sequence[int]]:
    """This rank's batches of rows: a run of all batches, which are the same whatever the number of ranks."""
    count = -(-len(rows) // batch)
    first, last = (count * (ranks.rank + step) // ranks.world for step in (0, 1))
    for index in range(first, last):
        yield rows[index * batch : (index + 1) * batch]
