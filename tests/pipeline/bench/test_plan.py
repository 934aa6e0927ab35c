from __future__ import annotations

from typing import Any

import pytest

from pipeline.bench.contender import BenchError
from pipeline.bench.peers.registry import PEERS
from pipeline.bench.plan import BenchPlan, Source, parse_codec, parse_peers, parse_source
from store.errors import FormatError


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"batch": 0}, "batch: expected at least 1, got 0"),
        ({"rounds": 0}, "rounds: expected at least 1"),
        ({"threads": -1}, "threads: expected at least 1"),
        ({"rows": 63}, "rows: expected at least two batches of 32, got 63"),
        ({"columns": 2, "source": Source("s", "v", "c")}, "columns: expected 1 with a column of one's own"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(BenchError, match=problem):
        BenchPlan(**settings)


def test_codecs_are_yaml() -> None:
    assert parse_codec("int8") == "int8"
    assert parse_codec("{name: fp16, clip: true}") == {"name": "fp16", "clip": True}
    for text in ("[", "3", "[int8]"):
        with pytest.raises(BenchError, match="codec: expected a name or"):
            parse_codec(text)
    with pytest.raises(FormatError, match="expected one of"):
        parse_codec("jpeg")


def test_peers_are_names() -> None:
    assert parse_peers(None) == tuple(PEERS)
    assert parse_peers("none") == ()
    assert parse_peers("memmap, theia,memmap") == ("memmap", "theia")
    for text in ("", "memmap,parquet"):
        with pytest.raises(BenchError, match="peers: expected none or some of theia"):
            parse_peers(text)


def test_a_source_has_three_parts() -> None:
    assert parse_source(None) is None
    assert parse_source("/data/store/views/dino-0123/") == Source("/data/store", "views", "dino-0123")
    assert parse_source("s3://bucket/store/views/dino-0123") == Source("s3://bucket/store", "views", "dino-0123")
    for text in ("dino-0123", "views/dino-0123", "/views/dino-0123"):
        with pytest.raises(BenchError, match="expected STORE/VIEW_SET/COLUMN"):
            parse_source(text)
