from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from numcodecs import zstd

from pipeline.bench import limits as module
from pipeline.bench.contender import BenchError
from pipeline.bench.files import drop_pages, flush, folder_bytes, machine
from pipeline.bench.held import Held
from pipeline.bench.limits import CODEC, COPY, RAW, limits
from pipeline.bench.plan import BenchPlan
from tests.pipeline.bench.conftest import LEVELS, tiny_held, tiny_plan


def test_chunks_are_the_very_rows_that_our_reader_reads(held: Held) -> None:
    found = module._locate(held)
    (column,) = held.open()
    stored = column.read(range(held.rows))
    for row, chunks in enumerate(found.chunks):
        arrays = [stored[array.level][array.part][row] for array in column.arrays]
        for chunk, array in zip(chunks, arrays, strict=True):
            packed = os.pread(found.files[chunk.file], chunk.size, chunk.offset)
            assert zstd.decompress(packed[:-4]) == array.tobytes()
    for descriptor in found.files:
        os.close(descriptor)


@pytest.mark.parametrize("threads", [1, 3])
def test_every_limit_touches_every_row_of_a_batch(held: Held, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    unpacked: list[bytes] = []

    class Counted:
        def decompress(self, data: bytes) -> bytes:
            unpacked.append(data)
            return zstd.decompress(data)

    monkeypatch.setattr(module.zstandard, "ZstdDecompressor", Counted)
    raw, copy, codec = limits(held, BenchPlan(rows=20, batch=8, threads=threads, levels=LEVELS, peers=()))
    assert [limit.facts.name for limit in (raw, copy, codec)] == [RAW, COPY, CODEC]
    once = sorted(unpacked)
    unpacked.clear()
    assert sorted(row for batch in codec.shuffled(0) for row in batch.rows) == list(range(20))
    assert sorted(unpacked) == once
    assert len(once) == 20 * 4
    for limit in (raw, copy):
        assert sum(len(batch.rows) for batch in limit.in_order()) == 20
    assert raw.facts.bytes_per_row < folder_bytes(held.root / "columns") / held.rows
    for limit in (raw, copy, codec):
        limit.close()


def test_rows_packed_otherwise_are_refused(tmp_path: Path, plan: BenchPlan) -> None:
    held = tiny_held(tmp_path / "sak", tiny_plan())
    path = next((held.root / "columns").rglob("level_0/zarr.json"))
    about = json.loads(path.read_bytes())
    about["codecs"][0]["configuration"]["codecs"][1]["name"] = "blosc"
    path.write_text(json.dumps(about))
    with pytest.raises(BenchError, match="expected rows packed by bytes, zstd and crc32c"):
        module._require_zstd(path)


def test_files_are_counted_and_flushed(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "file").write_bytes(np.arange(100, dtype=np.uint8).tobytes())
    flush(tmp_path)
    drop_pages(tmp_path)
    assert folder_bytes(tmp_path) == 100
    assert " x " in machine()
