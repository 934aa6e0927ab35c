"""The table of peers; a new one is its module and one line here."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.bench.peers.base import Peer
from pipeline.bench.peers.hdf5 import Hdf5
from pipeline.bench.peers.lit import Lit
from pipeline.bench.peers.mds import Mds
from pipeline.bench.peers.memmap import Memmap
from pipeline.bench.peers.tars import Tars, Theia

__all__ = ["PEERS"]

_ALL: tuple[Peer, ...] = (
    Theia(),
    Tars(name="webdataset", packing=""),
    Tars(name="webdataset-gz", packing="gz"),
    Tars(name="webdataset-zst", packing="zst"),
    Hdf5(name="hdf5-gzip", filter="gzip"),
    Hdf5(name="hdf5-lzf", filter="lzf"),
    Mds(),
    Lit(name="litdata", packing=None),
    Lit(name="litdata-zstd", packing="zstd"),
    Memmap(name="memmap", fidelity="stored"),
    # What one keeps without a codec of features: half precision.
    Tars(name="webdataset-fp16", packing="", fidelity="fp16"),
    Hdf5(name="hdf5-lzf-fp16", filter="lzf", fidelity="fp16"),
    Mds(name="mds-zstd-fp16", fidelity="fp16"),
    Lit(name="litdata-zstd-fp16", packing="zstd", fidelity="fp16"),
    Memmap(name="memmap-fp16", fidelity="fp16"),
)
PEERS: Mapping[str, Peer] = {peer.name: peer for peer in _ALL}
