"""Device, threads and seeds of a run."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import torch
from torch import Tensor

from pipeline.distributed import ALONE, Ranks
from pipeline.errors import PipelineError

__all__ = [
    "RandomState",
    "autocast",
    "device_name",
    "pick_device",
    "seed_everything",
    "torch_threads",
    "versions",
    "visible_gpus",
]

_PACKAGES = ("sak-distill", "torch", "timm", "numpy", "zarr", "zarrs", "webdataset", "pyarrow", "safetensors")
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str, /, *, ranks: Ranks = ALONE) -> torch.device:
    """``auto`` takes CUDA when there is one; each of several ranks on a machine gets a GPU of its own.

    A GPU that is named becomes the current one, which is where ``RandomState`` looks.

    Raises:
        PipelineError: The named device is not available.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and ranks.world > 1:
        name = f"cuda:{ranks.local}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError) as error:
        raise PipelineError(f"device: {name!r} cannot be used here ({error}); take auto, cpu or cuda") from error
    return device


def visible_gpus(device: torch.device, /) -> list[str]:
    """What ``CUDA_VISIBLE_DEVICES`` calls each GPU that ``cuda`` may mean; none where one is named, or a CPU."""
    if device.type != "cuda" or device.index is not None:
        return []
    count, given = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return [name.strip() for name in given.split(",")][:count] if given else [str(index) for index in range(count)]


def device_name(device: torch.device, /) -> str:
    """What a person calls the device, for records."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()} CPU, {torch.get_num_threads()} threads"


def seed_everything(seed: int, /, *, threads: int | None) -> None:
    """Seed torch (CPU and CUDA) and set its thread count; NumPy's global state is used nowhere."""
    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(seed)


@contextmanager
def torch_threads(count: int | None, /) -> Iterator[None]:
    """So many threads for a while; None leaves them as they are. The last bit of a feature depends on them."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class RandomState(dict[str, Tensor]):
    """Where torch's generators are: of the CPU, and of the current GPU where there is one."""

    @classmethod
    def now(cls) -> Self:
        """As they are."""
        cuda = {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
        return cls({"cpu": torch.get_rng_state(), **cuda})

    def restore(self) -> None:
        """Set them back; a machine without a GPU leaves out its state."""
        torch.set_rng_state(self["cpu"])
        if "cuda" in self and torch.cuda.is_available():
            torch.cuda.set_rng_state(self["cuda"])


def autocast(device: torch.device, /, *, precision: str) -> torch.autocast:
    """Autocast for ``fp32`` (off), ``bf16`` or ``fp16``.

    Raises:
        PipelineError: fp16 without a GPU, where torch has no fp16 kernels worth using.
    """
    if precision == "fp16" and device.type != "cuda":
        raise PipelineError("precision: fp16 needs a CUDA device; use bf16 or fp32 here")
    return torch.autocast(device.type, dtype=_DTYPES.get(precision, torch.bfloat16), enabled=precision != "fp32")


def versions() -> dict[str, str]:
    """Versions of Python and of every package that a result depends on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
