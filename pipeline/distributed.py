"""One training over several processes, as torchrun starts them: who is which, and what they must agree on.

``joined`` reads the environment, meets the other ranks and gives a ``Ranks``, which is handed to whom needs it; without
torchrun that is ``ALONE``, whose every method is the identity. The rank that fails first tells of it, alone.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.elastic.multiprocessing.errors import get_error_handler
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from pipeline.batch_norm import RankBatchNorm
from pipeline.errors import Interrupted, PipelineError, RankError
from pipeline.tracking import CONSOLE

__all__ = ["ALONE", "Ranks", "Replica", "joined", "ranks_of"]

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_FAILED = "sak/failed"
_LOOK_SECONDS = 0.5
_LOST = 1
_INTERRUPTED = 130


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """This process among all that train together.

    Attributes:
        rank: Of this process; 0 alone writes and prints.
        world: How many processes there are.
        local: This process's number on its machine, hence its GPU's.
    """

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes files and prints."""
        return self.rank == 0

    @property
    def beside(self) -> int:
        """How many processes share this machine, this one included: all, where their launcher does not say."""
        return min(self.world, int(os.environ.get("LOCAL_WORLD_SIZE", self.world)))

    def agreed(self, value: int, /) -> int:
        """Rank 0's value, everywhere: what it finds on disk decides, whatever another machine sees of that disk."""
        if self.world == 1:
            return value
        # Of one type on all ranks: a truth is one byte on rank 0, and eight on those that wait for it.
        word = torch.tensor(int(value) if self.first else 0, dtype=torch.int64)
        dist.broadcast(word, src=0)
        return int(word)

    def total(self, value: Tensor, /) -> Tensor:
        """The sum over all ranks; no gradient passes."""
        if self.world == 1:
            return value
        summed = value.detach().clone()
        dist.all_reduce(summed)
        return summed

    def mean(self, value: Tensor, /) -> Tensor:
        """The mean over all ranks; no gradient passes."""
        return value if self.world == 1 else self.total(value) / self.world

    def largest(self, value: Tensor, /) -> Tensor:
        """The largest over all ranks, element by element."""
        if self.world == 1:
            return value
        found = value.detach().clone()
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return found

    def largest_later(self, value: int, /) -> Callable[[], int]:
        """Ask for the largest value of all ranks; the call returns at once, what it returns waits for the answer."""
        if self.world == 1:
            return lambda: value
        word = torch.tensor(value)
        work = dist.all_reduce(word, op=dist.ReduceOp.MAX, async_op=True)

        def wait() -> int:
            work.wait()
            return int(word)

        return wait

    def gathered(self, data: bytes, /) -> list[bytes]:
        """Every rank's bytes, in the order of ranks, on rank 0; nothing on the others."""
        if self.world == 1:
            return [data]
        lengths = self.total(torch.tensor([len(data) if rank == self.rank else 0 for rank in range(self.world)]))
        padded = torch.zeros(int(lengths.max()), dtype=torch.uint8)
        padded[: len(data)] = torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy())
        parts = [torch.empty_like(padded) for _ in range(self.world)] if self.first else None
        dist.gather(padded, parts, dst=0)
        found = zip(parts or [], lengths.tolist(), strict=False)
        return [part[:length].numpy().tobytes() for part, length in found]

    def wait(self) -> None:
        """Until all ranks are here."""
        self.total(torch.zeros(1))

    def replica(self, forward: Callable[[Any], Mapping[str, Tensor]], /, *, model: nn.Module) -> Replica:
        """A forward pass through ``model`` whose backward pass leaves every rank the mean gradient of all."""
        if self.world == 1:
            return Replica(forward)
        _synchronise_batch_norm(model)
        # Neither tells of a fault: parameters are all used in most runs, and a class token's gradient is a slice.
        for message in ("find_unused_parameters=True was specified", "Grad strides do not match bucket view"):
            warnings.filterwarnings("ignore", message=message)
        # Parameters that a step does not use, as those of a teacher it leaves out, are looked for, so that they keep
        # no gradient, as in one process. It also keeps the buckets of gradients as they are from the first step on:
        # a resumed run adds in the order of an uninterrupted one.
        parallel = DistributedDataParallel(_Forward(model, forward), find_unused_parameters=True)
        return Replica(parallel, parallel)


ALONE = Ranks()


@dataclass(frozen=True, slots=True)
class Replica:
    """A forward pass, here and on the other ranks alike."""

    forward: Callable[[Any], Mapping[str, Tensor]]
    parallel: DistributedDataParallel | None = None

    def keeping(self, last: bool, /) -> AbstractContextManager[None]:
        """Around forward and backward: only the ``last`` micro-batch of a step exchanges gradients."""
        return nullcontext() if last or self.parallel is None else self.parallel.no_sync()


class _Forward(nn.Module):
    """A function of a model as a module with that model's parameters, which is what torch makes parallel."""

    def __init__(self, model: nn.Module, function: Callable[[Any], Mapping[str, Tensor]]) -> None:
        super().__init__()
        self.model = model
        self.function = function

    def forward(self, batch: Any) -> dict[str, Tensor]:
        return dict(self.function(batch))


def _synchronise_batch_norm(model: nn.Module) -> None:
    """Statistics over the whole batch, as published; torch's own way knows no CPU. Parameters stay the same objects."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            owner, _, attribute = name.rpartition(".")
            on_gpu = module.weight.device.type == "cuda"
            convert: Any = nn.SyncBatchNorm.convert_sync_batchnorm if on_gpu else RankBatchNorm.convert
            setattr(model.get_submodule(owner), attribute, convert(module))


def ranks_of(environment: Mapping[str, str], /) -> Ranks:
    """Who this process is, from what torchrun sets.

    Raises:
        PipelineError: Some of it is set, and not all.
    """
    if int(environment.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    missing = [name for name in _VARIABLES if name not in environment]
    if missing:
        raise PipelineError(
            f"WORLD_SIZE is {environment['WORLD_SIZE']}, so this is one of several processes, but {', '.join(missing)}"
            " is not set; start them with torchrun, or unset WORLD_SIZE"
        )
    rank, world, local = (int(environment[name]) for name in _VARIABLES[:3])
    return Ranks(rank=rank, world=world, local=local)


@contextmanager
def joined() -> Iterator[Ranks]:
    """Meet the other ranks, if torchrun started any, and part from them together.

    Raises:
        RankError: Something was raised inside, here or on another rank; only the first of all is to be told.
    """
    ranks = ranks_of(os.environ)
    if ranks.world == 1:
        yield ranks
        return
    CONSOLE.quiet = not ranks.first
    store, _, _ = next(rendezvous("env://"))
    if torch.cuda.is_available():
        torch.cuda.set_device(ranks.local % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=PrefixStore("sak", store), rank=ranks.rank, world_size=ranks.world)
    ended = threading.Event()
    threading.Thread(target=_watch, args=(store.clone(), ended), name="sak-ranks", daemon=True).start()
    try:
        ranks.wait()  # nobody leaves, for whatever reason, while another is still looking for it
        yield ranks
        ranks.wait()
    except Interrupted as error:  # every rank's, at the same step: no failure
        ended.set()
        raise RankError(ranks.rank, error, told=ranks.first) from error
    except KeyboardInterrupt:
        ended.set()
        if not ranks.first:
            os._exit(_INTERRUPTED)
        raise
    except Exception as error:
        ended.set()
        raise _failure(store, ranks, error) from error
    ended.set()
    dist.destroy_process_group()


def _failure(store: Store, ranks: Ranks, error: Exception) -> RankError:
    """This rank's end: told if it is the first, else a consequence of the first's."""
    try:
        first = store.add(f"{_FAILED}/count", 1) == 1
        store.set(_FAILED, str(ranks.rank))
    except dist.DistError:  # whoever held the store is gone, and was first
        return RankError(ranks.rank, error, told=False)
    if _is_lost_contact(error):
        reason = str(error).splitlines()[0]
        error = PipelineError(
            f"lost contact with another rank, which was killed or whose machine is gone ({reason});"
            " the same command goes on from the last checkpoint"
        )
    if first:
        get_error_handler().record_exception(error)  # what torchrun's own report then says of this rank
    return RankError(ranks.rank, error, told=first)


def _is_lost_contact(error: Exception) -> bool:
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in ("gloo", "NCCL", "Connection "))
    )


def _watch(store: Store, ended: threading.Event) -> None:
    """End this process soon after another failed: it may wait for that one on a GPU, where no signal reaches it."""
    while not ended.wait(_LOOK_SECONDS):
        try:
            failed = store.check([_FAILED])
        except dist.DistError:
            failed = True
        if failed and not ended.wait(2 * _LOOK_SECONDS):
            CONSOLE.show_cursor(True)
            os._exit(_LOST)
