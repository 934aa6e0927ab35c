"""Reads a column's rows through the zarr library, with its own codec pipeline or with zarrs.

Slower than the direct reader on random rows; kept as the independent second opinion that the files are plain Zarr.
"""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from store.errors import CorruptShardError, StoreError

__all__ = ["ZarrReader"]

_PIPELINES = {"zarr": "zarr.core.codec_pipeline.BatchedCodecPipeline", "zarrs": "zarrs.ZarrsCodecPipeline"}
_config_lock = threading.Lock()


class ZarrReader:
    """Arrays of one Zarr group, opened once.

    Args:
        folder: The group.
        pipeline: ``zarr`` or ``zarrs``.
    """

    def __init__(self, folder: Path, *, pipeline: str) -> None:
        self._folder = folder
        self._pipeline = pipeline
        self._arrays: dict[str, Any] = {}

    def read(self, name: str, rows_N: NDArray[np.int64], /, *, positions: NDArray[np.int64]) -> NDArray[np.generic]:
        """Rows of one array, in the order asked for.

        The caller has made sure that the shard files exist: zarr would read a missing one as fill values.

        Args:
            positions: Where the rows lie in the array; int64 ``(N,)``.

        Raises:
            CorruptShardError: A row's checksum fails or its shard is damaged.
            StoreError: The pipeline is not installed.
        """
        from zarr.core.sync import sync

        array = self._open(name)

        async def gather() -> list[Any]:
            return await asyncio.gather(*[array.getitem((at,)) for at in positions.tolist()])

        try:
            return np.stack(sync(gather())) if rows_N.size else np.empty((0, *array.shape[1:]), array.dtype)
        except Exception as error:  # zarrs raises RuntimeError, zarr ValueError, and neither promises which
            raise CorruptShardError(
                f"{self._folder / name}: rows {rows_N.min()} to {rows_N.max()}: {error}; run sak store verify"
            ) from error

    def _open(self, name: str) -> Any:
        if name not in self._arrays:
            import zarr
            from zarr.storage import LocalStore

            # zarr chooses the pipeline when an array is opened, from a setting that all threads share.
            with _config_lock, zarr.config.set({"codec_pipeline.path": _PIPELINES[self._pipeline]}):
                try:
                    group = LocalStore(self._folder, read_only=True)
                    self._arrays[name] = zarr.open_array(group, path=name, mode="r").async_array
                except ImportError as error:
                    raise StoreError(f"engine {self._pipeline}: not installed ({error}); pip install zarrs") from error
        return self._arrays[name]
