"""Dask workers of this machine, each with a GPU of its own where there are several. Imports Dask."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from distributed import LocalCluster

__all__ = ["LocalWorkers"]

_START_SECONDS = 300.0


class LocalWorkers(LocalCluster):  # type: ignore[misc]
    """So many worker processes.

    Args:
        gpus: Names of GPUs, for ``CUDA_VISIBLE_DEVICES``: worker ``i`` sees number ``i`` of them, counted round.
            Where there are none, all see what this process does.
        dashboard: Where its page is served; None for nowhere.
    """

    def __init__(self, workers: int, /, *, gpus: Sequence[str], dashboard: str | None) -> None:
        self._gpus = tuple(gpus)
        super().__init__(
            n_workers=0 if gpus else workers,
            threads_per_worker=1,
            processes=True,
            memory_limit=0,  # or Dask would pause a worker for ever whose teacher takes most of its share
            dashboard_address=dashboard,
            silence_logs=logging.CRITICAL,
        )
        if gpus:
            self.scale(workers)
            self.wait_for_workers(workers, timeout=_START_SECONDS)

    def new_worker_spec(self) -> dict[Any, dict[str, Any]]:
        """Dask's, and which GPU the worker sees."""
        found: dict[Any, dict[str, Any]] = super().new_worker_spec()
        if not self._gpus:
            return found
        for name, about in found.items():
            seen = {"CUDA_VISIBLE_DEVICES": self._gpus[name % len(self._gpus)]}
            found[name] = {**about, "options": {**about["options"], "env": seen}}
        return found
