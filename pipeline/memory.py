"""What memory there is, and batches cut to what it holds.

Legend: N rows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.resources import available_memory
from pipeline.tracking import CONSOLE
from sak.live_bytes import LiveBytes

__all__ = ["Fitting", "available_bytes", "peak_bytes", "share_memory"]

_SHARE = 2  # what is left over is for maps on their way to disk, and for kernels' own workspace
_UNKNOWN_BYTES = 1 << 32


def available_bytes() -> int:
    """Memory that this process can still take, or what is left of its container's; 4 GiB where nothing tells.

    Of several processes that are known to share it, each counts its share.
    """
    known = available_memory()
    return (_UNKNOWN_BYTES if known is None else known) // _process.sharers


def share_memory(processes: int, /) -> None:
    """Take this process, from now on, for one of so many that share the memory of their machine."""
    _process.sharers = processes


class _Process:
    sharers = 1


_process = _Process()


class Fitting:
    """Runs batches in pieces that memory holds.

    On a GPU a piece that does not fit is halved, and later batches are cut alike. On a CPU, where too much memory is
    the end of the process, the first row tells what a row takes, and half of what there is may be taken.

    Args:
        name: Whose batches they are.
    """

    def __init__(self, name: str, /) -> None:
        self._name = name
        self._rows: int | None = None

    def run(self, batch_N: Tensor, call: Callable[[slice], list[Tensor]]) -> list[Tensor]:
        """What ``call`` gives for the rows of a batch, put together from as many pieces as it takes.

        Raises:
            torch.OutOfMemoryError: A single row does not fit.
        """
        if self._rows is None:
            self._limit(self._affordable(call) if batch_N.device.type == "cpu" else len(batch_N), len(batch_N))
        pieces: list[list[Tensor]] = []
        first = 0
        while first < len(batch_N):
            stop = min(len(batch_N), first + (self._rows or 1))
            piece = self._tried(call, first, stop)
            if piece is None:
                self._limit((stop - first) // 2, stop - first)
                continue
            pieces.append(piece)
            first = stop
        return pieces[0] if len(pieces) == 1 else [torch.cat(some) for some in zip(*pieces, strict=True)]

    def _tried(self, call: Callable[[slice], list[Tensor]], first: int, stop: int) -> list[Tensor] | None:
        try:
            return call(slice(first, stop))
        except torch.OutOfMemoryError:
            if stop - first == 1:
                raise
        # Here the error is gone, and with it the frames that held the tensors.
        torch.cuda.empty_cache()
        return None

    def _affordable(self, call: Callable[[slice], list[Tensor]]) -> int:
        row = peak_bytes(lambda: call(slice(0, 1)))
        return max(1, available_bytes() // _SHARE // max(1, row))

    def _limit(self, rows: int, asked: int) -> None:
        self._rows = rows
        if rows < asked:
            CONSOLE.print(f"extract {self._name}: memory does not hold {asked} rows; goes on with {rows} at a time")


def peak_bytes(call: Callable[[], object], /) -> int:
    """Most memory that the tensors which a call makes take at once, as far as operators' results tell."""
    with LiveBytes() as live:
        call()
    return live.most
