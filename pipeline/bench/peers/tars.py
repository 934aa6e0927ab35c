"""WebDataset tars: NumPy files, plain or packed, and Theia's layout of safetensors files in bfloat16."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import zstandard

from pipeline.bench.contender import Batch, Contender
from pipeline.bench.peers.base import SHUFFLE_BUFFER, FolderReader, Job, Peer

__all__ = ["Tars", "Theia"]

_ROWS_PER_TAR = 256
_ZSTD_LEVEL = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Tars:
    """One ``.npy`` member per array: ``packing`` is empty, ``gz`` (which WebDataset unpacks by itself) or ``zst``."""

    name: str
    packing: str
    fidelity: str = "stored"
    package: str = "webdataset"
    family: str = "tar"
    extra: str = "bench"

    def write(self, job: Job, /) -> None:
        """Tars of 256 rows."""
        _write(job, self.fidelity, self._members)

    def open(self, job: Job, /) -> Contender:
        """WebDataset's pipeline: shards and a buffer shuffled, members decoded, samples batched."""
        suffix = f"npy.{self.packing}" if self.packing else "npy"
        names = list(job.held.shapes(self.fidelity))

        unzstd = _zstd_filter()

        def decode(stream: Any) -> Any:
            members = [f"{name}.{suffix}" for name in names]
            return stream.decode(pre=[_gzip, unzstd]).to_tuple("__key__", *members).batched(job.batch)

        return _Reader(self, job, decode, lambda batch: dict(zip(names, batch[1:], strict=True)))

    def _members(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        if self.packing != "zst":
            return {f"{name}.npy.gz" if self.packing else f"{name}.npy": array for name, array in arrays.items()}
        from webdataset.writer import numpy_dumps

        context = zstandard.ZstdCompressor(level=_ZSTD_LEVEL)
        return {f"{name}.npy.zst": context.compress(numpy_dumps(array)) for name, array in arrays.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Theia:
    """Theia's layout: one safetensors member per row and teacher, bfloat16, uncompressed.

    Kinder than the original, which has a tar for every teacher, hence a stream for each.
    """

    name: str = "theia"
    fidelity: str = "bf16"
    package: str = "webdataset"
    family: str = "tar"
    extra: str = "bench"

    def write(self, job: Job, /) -> None:
        """Tars of 256 rows."""
        _write(job, self.fidelity, _safetensors)

    def open(self, job: Job, /) -> Contender:
        """WebDataset's pipeline; every member decoded to tensors, the batch stacked."""
        return _Reader(self, job, lambda stream: stream.map(_load).batched(job.batch, collation_fn=_stack), _tensors)


class _Reader(FolderReader):
    def __init__(
        self, peer: Peer, job: Job, decode: Callable[[Any], Any], arrays: Callable[[Any], Mapping[str, Any]]
    ) -> None:
        super().__init__(peer, job)
        self._urls = sorted(str(path) for path in job.folder.glob("*.tar"))
        self._decode, self._arrays = decode, arrays

    def shuffled(self, epoch: int, /) -> Iterator[Batch]:
        """Tars in random order, then a buffer."""
        import webdataset

        buffer = min(SHUFFLE_BUFFER, self.job.held.rows // 2)
        stream = webdataset.WebDataset(self._urls, shardshuffle=len(self._urls), empty_check=False)
        return self._batches(stream.shuffle(buffer, initial=buffer))

    def in_order(self) -> Iterator[Batch]:
        """Tars one after another."""
        import webdataset

        return self._batches(webdataset.WebDataset(self._urls, shardshuffle=False, empty_check=False))

    def _batches(self, stream: Any) -> Iterator[Batch]:
        for batch in self._decode(stream):
            yield Batch([int(key) for key in batch[0]], self._arrays(batch))


def _write(job: Job, fidelity: str, members: Callable[[Mapping[str, Any]], dict[str, Any]]) -> None:
    import webdataset

    job.folder.mkdir(parents=True)
    with webdataset.ShardWriter(str(job.folder / "part-%05d.tar"), maxcount=_ROWS_PER_TAR, verbose=0) as writer:
        for row, arrays in job.held.iterate(fidelity):
            writer.write({"__key__": f"{row:09d}", **members(arrays)})


def _safetensors(arrays: Mapping[str, Any]) -> dict[str, bytes]:
    from safetensors.torch import save

    teachers: dict[str, dict[str, torch.Tensor]] = {}
    for name, array in arrays.items():
        teachers.setdefault(name.partition("level_")[0] or "teacher_", {})[name] = array.contiguous()
    return {f"{teacher}.safetensors": save(tensors) for teacher, tensors in teachers.items()}


def _load(sample: Mapping[str, Any]) -> tuple[str, dict[str, torch.Tensor]]:
    from safetensors.torch import load

    tensors: dict[str, torch.Tensor] = {}
    for name, data in sample.items():
        if name.endswith(".safetensors"):
            tensors |= load(data)
    return sample["__key__"], tensors


def _stack(samples: list[tuple[str, dict[str, torch.Tensor]]]) -> tuple[list[str], dict[str, torch.Tensor]]:
    names = samples[0][1]
    return [key for key, _ in samples], {name: torch.stack([one[name] for _, one in samples]) for name in names}


def _tensors(batch: tuple[list[str], dict[str, torch.Tensor]]) -> Mapping[str, Any]:
    return batch[1]


def _gzip(key: str, data: bytes) -> Any:
    from webdataset.autodecode import gzfilter

    return gzfilter(key, data)


def _zstd_filter() -> Callable[[str, bytes], Any]:
    """As WebDataset's own filter for gzip, with a context that is used again."""
    from webdataset.autodecode import Continue

    context = zstandard.ZstdDecompressor()

    def unpack(key: str, data: bytes) -> Any:
        return Continue(key.removesuffix(".zst"), context.decompress(data)) if key.endswith(".zst") else None

    return unpack
