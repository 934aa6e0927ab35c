"""A second reader of stores, written from docs/store-format.md alone: none of the store's own code.

It is what somebody would write in another language, so it favours plainness over speed and stops at the first fault
with an ``AssertionError``. Legend: N rows, C components, H and W the token grid, K columns of a basis, D coefficients,
M blocks of a grid, u and v a block's frequencies.
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import zarr
import zstandard

GROUPS = ((1, 2, 32767), (1, 1, 127), (2, 1, 7), (3, 1, 2), (5, 1, 1))


def canonical(value: Any) -> bytes:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def document(path: Path, kind: str) -> dict[str, Any]:
    """A JSON document's body, its digest checked."""
    content = json.loads(path.read_bytes())
    digest = content.pop("sha256")
    assert digest == sha256(canonical(content)), path
    assert (content["kind"], content["format_version"]) == (kind, 1), path
    return dict(content["body"])


def keys_digest(keys: list[str]) -> str:
    return sha256(b"".join(len(key.encode()).to_bytes(8, "little") + key.encode() for key in keys))


class ViewSet:
    """Keys, draws and pixels of the rows of one view set."""

    def __init__(self, root: Path, name: str) -> None:
        self.folder = root / "views" / name
        self.spec = document(self.folder / "view_set.json", "view_set")
        self.parts_per_view = -(-self.spec["images"] // self.spec["rows_per_shard"])
        self.parts = self.spec["views"] * self.parts_per_view

    def part_rows(self, part: int) -> range:
        view, block = divmod(part, self.parts_per_view)
        start = block * self.spec["rows_per_shard"]
        stop = min(start + self.spec["rows_per_shard"], self.spec["images"])
        return range(view * self.spec["images"] + start, view * self.spec["images"] + stop)

    def commit(self, part: int) -> dict[str, Any]:
        record = commit(self.folder, part)
        assert range(record["start"], record["stop"]) == self.part_rows(part)
        return record

    def index(self, part: int) -> list[dict[str, Any]]:
        """The index of a committed part, compared with its record."""
        record = self.commit(part)
        check_objects(self.folder, record)
        rows = pq.read_table(self.folder / f"index/part-{part:05d}.parquet").to_pylist()
        assert [row["row"] for row in rows] == list(range(record["start"], record["stop"]))
        assert keys_digest([row["key"] for row in rows]) == record["keys_sha256"]
        assert [row["row"] for row in rows if row["error"] is not None] == record["excluded"]
        return rows

    def files(self, part: int) -> dict[str, bytes]:
        """Members of a part's image shard by name, each compared with the index."""
        path = self.folder / f"images/part-{part:05d}.tar"
        members = read_tar(path)
        data = path.read_bytes()
        for row in self.index(part):
            for entry in row["files"]:
                content = members[f"{row['row']:09d}.{entry['suffix']}"]
                assert content == data[entry["offset"] : entry["offset"] + entry["size"]]
                assert sha256(content) == entry["sha256"]
        return members

    def order(self) -> list[int]:
        """Which image each row of a view holds, recomputed from the seed."""
        key = hashlib.sha256(canonical(["images", self.spec["order_seed"]])).digest()[:16]
        draws = philox(int.from_bytes(key, "little"), self.spec["images"])
        return sorted(range(len(draws)), key=lambda image: (draws[image], image))


class Column:
    """Levels of the rows of one column."""

    def __init__(self, root: Path, view_set: str, name: str) -> None:
        self.folder = root / "columns" / view_set / name
        self.views = ViewSet(root, view_set)
        record = document(self.folder / "column.json", "column")
        self.spec, self.backend, self.objects = record["spec"], record["backend"], record["objects"]
        self.levels = [(level["components"], level["height"], level["width"]) for level in self.spec["levels"]]
        self.group = zarr.open_group(self.folder, mode="r")
        self.assets = {asset: self._asset(asset) for asset in record["assets"]}
        for path, item in self.objects.items():
            assert sha256((self.folder / path).read_bytes()) == item["sha256"]
        assert name == f"{self.spec['teacher']}-{self.fingerprint()}"

    def fingerprint(self) -> str:
        covered = {key: self.spec[key] for key in ("identity", "levels", "codec")}
        assets = {}
        for asset, values in self.assets.items():
            little = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<"))
            shape = "(" + ", ".join(map(str, little.shape)) + ("," if little.ndim == 1 else "") + ")"
            assets[asset] = sha256(f"{little.dtype.str}{shape}".encode() + little.tobytes())
        return sha256(canonical({**covered, "assets": assets, "format_version": 1}))[:16]

    def stored(self, array: str, part: int) -> np.ndarray:
        """Stored rows of one array of one committed part, compared with its record."""
        record = commit(self.folder, part)
        views = (self.views.folder / f"commits/part-{part:05d}.json").read_bytes()
        assert record["view_commit"] == sha256(views)
        assert record["keys_sha256"] == self.views.commit(part)["keys_sha256"]
        check_objects(self.folder, record)
        rows = range(record["start"], record["stop"])
        if self.backend == "zarr":
            first = part * self.views.spec["rows_per_shard"]
            values = self._zarr(array)[first : first + len(rows)]
        else:
            members = read_tar(self.folder / f"shards/part-{part:05d}.tar")
            values = np.stack([npy(unzstd(members[f"{row:09d}.{array}.npy.zst"])) for row in rows])
        assert sha256(np.ascontiguousarray(values).tobytes()) == record["content"][array]
        return values

    def read(self, part: int) -> list[np.ndarray]:
        """Every level of a committed part as float32 ``(N, C, H, W)``."""
        decode = getattr(self, f"_{self.spec['codec']['name']}")
        decoded: list[np.ndarray] = []
        for level in range(len(self.levels)):
            decoded.append(decode(level, part, decoded).astype(np.float32))
        return decoded

    def _fp32(self, level: int, part: int, below: list[np.ndarray]) -> np.ndarray:
        return self.stored(f"level_{level}", part)

    _fp16 = _fp32

    def _bf16(self, level: int, part: int, below: list[np.ndarray]) -> np.ndarray:
        bits = self.stored(f"level_{level}", part).view(np.uint16).astype(np.uint32) << 16
        return bits.view(np.float32)

    def _int8(self, level: int, part: int, below: list[np.ndarray]) -> np.ndarray:
        scale = self.stored(f"level_{level}_scale", part).astype(np.float32)
        return self.stored(f"level_{level}", part).astype(np.float32) * scale

    def _int4(self, level: int, part: int, below: list[np.ndarray]) -> np.ndarray:
        packed, scale = self.stored(f"level_{level}", part), self.stored(f"level_{level}_scale", part)
        components = 2 * packed.shape[1]
        digits = np.empty((len(packed), components, *packed.shape[2:]), np.float32)
        digits[:, 0::2] = (packed & 15).astype(np.float32) - 8
        digits[:, 1::2] = (packed >> 4).astype(np.float32) - 8
        values = digits * np.repeat(scale.astype(np.float32), components // scale.shape[1], axis=1)
        if not self.spec["codec"]["rotate"]:
            return values
        side = max(size for size in (1, 2, 4, 8, 16, 32, 64, 128, 256) if components % size == 0)
        signs = [[(-1) ** (i & j).bit_count() for j in range(side)] for i in range(side)]
        turn = np.array(signs, np.float64) / np.sqrt(side)
        blocks = values.reshape(len(values), components // side, side, *values.shape[2:])
        return np.einsum("ij,nbjhw->nbihw", turn, blocks).reshape(values.shape)

    def _klt(self, level: int, part: int, below: list[np.ndarray]) -> np.ndarray:
        fitted = {key[: key.rindex("_")]: values for key, values in self.assets.items() if key.endswith(f"_{level}")}
        packed = self.stored(f"level_{level}", part)
        _, height, width = self.levels[level]
        u, v = (block_side(length, self.spec["codec"]["block"]) for length in (height, width))
        tiles = (height // u) * (width // v)
        integers, nearer, start = [], [], 0
        for count, correction, (digits, planes, largest) in zip(
            fitted["groups"].tolist(), fitted["steps"][1:].tolist(), GROUPS, strict=True
        ):
            size = -(-count * tiles // digits) * planes
            some = unpack(packed[:, start : start + size], count * tiles, digits, planes, largest)
            integers.append(some.reshape(len(packed), count, tiles))
            nearer += [correction] * count
            start += size
        assert start == packed.shape[1]
        values_NDM = np.concatenate(integers, axis=1).astype(np.float64)
        values_NDM -= np.sign(values_NDM) * np.array(nearer)[:, None]
        values_NDM *= float(fitted["steps"][0])
        kept = fitted["basis"].shape[1]
        full = np.zeros((len(packed), kept * u * v, tiles))
        full[:, fitted["order"]] = values_NDM
        frequencies = full.reshape(len(packed), kept, u, v, height // u, width // v)
        turned = np.einsum("nkuvij,uy,vx->nkiyjx", frequencies, cosines(u), cosines(v))
        turned = turned.reshape(len(packed), kept, height, width)
        feats = np.einsum("ck,nkhw->nchw", fitted["basis"].astype(np.float64), turned)
        feats += fitted["offset"].astype(np.float64)
        if "predict" in fitted:
            feats += np.einsum("cb,nbhw->nchw", fitted["predict"].astype(np.float64), below[level - 1])
        return feats

    def _asset(self, name: str) -> np.ndarray:
        return self._zarr(f"codec_{name}")[:]

    def _zarr(self, name: str) -> Any:
        return self.group[name]


def commit(folder: Path, part: int) -> dict[str, Any]:
    record = document(folder / f"commits/part-{part:05d}.json", "commit")
    assert record["part"] == part
    return record


def check_objects(folder: Path, record: dict[str, Any]) -> None:
    for path, item in record["objects"].items():
        data = (folder / path).read_bytes()
        assert (len(data), sha256(data)) == (item["size"], item["sha256"]), path


def read_tar(path: Path) -> dict[str, bytes]:
    with tarfile.open(path, "r:") as tar:
        members = tar.getmembers()
        assert all(member.isreg() and member.pax_headers == {} for member in members)
        return {member.name: tar.extractfile(member).read() for member in members}  # type: ignore[union-attr]


def unzstd(data: bytes) -> bytes:
    assert zstandard.get_frame_parameters(data).has_checksum
    return zstandard.ZstdDecompressor().decompress(data)


def npy(data: bytes) -> np.ndarray:
    """A ``.npy`` file of version 1.0."""
    assert data[:8] == b"\x93NUMPY\x01\x00"
    end = 10 + int.from_bytes(data[8:10], "little")
    head = ast.literal_eval(data[10:end].decode())
    assert not head["fortran_order"]
    return np.load(io.BytesIO(data), allow_pickle=False)


def unpack(packed: np.ndarray, count: int, digits: int, planes: int, largest: int) -> np.ndarray:
    """Integers of every row of one group."""
    if planes == 2:
        return packed[:, :count].astype(np.int64) * 256 + packed[:, count:] - 32768
    radix = 2 * largest + 1
    powers = [radix ** (digits - 1 - place) for place in range(digits)]
    places = np.stack([packed // power % radix for power in powers], axis=2)
    return places.reshape(len(packed), -1)[:, :count].astype(np.int64) - largest


def block_side(length: int, asked: int) -> int:
    """The divisor, at most 40, whose ratio to the asked side is nearest to 1; the smaller of two as near."""
    divisors = [size for size in range(1, min(length, 40) + 1) if length % size == 0]
    return min(divisors, key=lambda size: (abs(np.log(size / asked)), size))


def cosines(size: int) -> np.ndarray:
    """Orthonormal type-II cosine transform: row is frequency, column position."""
    frequency, position = np.mgrid[:size, :size]
    matrix = np.sqrt(2 / size) * np.cos(np.pi * (2 * position + 1) * frequency / (2 * size))
    matrix[0] = np.sqrt(1 / size)
    return matrix


def philox(key: int, count: int) -> list[int]:
    """The first 64-bit numbers of Philox4x64-10 with counters 1, 2, 3, ..."""
    mask = 2**64 - 1
    numbers: list[int] = []
    for counter in range(1, -(-count // 4) + 1):
        c0, c1, c2, c3 = counter & mask, counter >> 64, 0, 0
        k0, k1 = key & mask, key >> 64
        for _ in range(10):
            high0, low0 = divmod(0xD2E7470EE14C6C93 * c0, 2**64)
            high1, low1 = divmod(0xCA5A826395121157 * c2, 2**64)
            c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
            k0, k1 = k0 + 0x9E3779B97F4A7C15 & mask, k1 + 0xBB67AE8584CAA73B & mask
        numbers += [c0, c1, c2, c3]
    return numbers[:count]
