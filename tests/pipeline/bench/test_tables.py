from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from pipeline.bench.contender import Facts
from pipeline.bench.measure import Line, Pass
from pipeline.bench.tables import BenchResult, bench_json, bench_notes, bench_table

CONDITIONS = {
    "rows": 20, "values": 88, "columns": 1, "codec": {"name": "int8", "scale": "float32"}, "bits_per_value": 6.0,
    "batch": 8, "rounds": 3, "machine": "2 x Test", "threads": 1, "load_before": 0.1, "load_after": 0.2,
    "cache": "warm", "features": "made", "exceeds_memory": False,
}  # fmt: skip


def line(name: str, kind: str, *rates: float, problem: str = "") -> Line:
    facts = Facts(name=name, kind=kind, fidelity="stored", bytes_per_row=1e6, family="tar", note="noted")
    passes = [Pass(rate, 1.0, 0.5) for rate in rates]
    return Line(facts, shuffled=passes, in_order=passes, single=[] if name == "tar" else [0.002], problem=problem)


@pytest.fixture
def result() -> BenchResult:
    lines = [
        line("sak", "ours", 90.0, 45.0, 99.0),
        line("sak, first read", "ours", 50.0, 50.0, 50.0),
        line("sak, first read, no digests", "ours", 100.0, 100.0, 100.0),
        line("limit: raw read", "limit", 1000.0, 40.0, 1000.0),
        line("limit: byte codec", "limit", 100.0, 50.0, 100.0),
        line("tar", "peer", 30.0, 15.0, 30.0),
        line("absent", "peer", problem="not installed: pip install 'sak-distill[bench]'"),
    ]
    return BenchResult(conditions=CONDITIONS, handed={"stored": 2_000_000}, lines=lines)


def test_ratios_are_of_the_same_round(result: BenchResult) -> None:
    lines = {found["name"]: found for found in bench_json(result)["lines"]}
    # Shares of the tighter limit of each round: 0.9, 45 / 40, 0.99; times the peer: 3, 3, 3.3.
    assert lines["sak"]["of_limit"] == pytest.approx(0.99)
    assert lines["tar"]["ours_is"] == pytest.approx(3)
    assert lines["sak"]["ours_is"] is None
    assert lines["sak"]["decoded_bytes_per_second"] == 90 * 2_000_000


def test_json_keeps_every_round(result: BenchResult) -> None:
    found = json.loads(json.dumps(bench_json(result)))
    assert set(found) == {"format", "conditions", "digest_seconds_per_row", "lines"}
    assert found["digest_seconds_per_row"] == pytest.approx(0.01)
    sak, absent = found["lines"][0], found["lines"][-1]
    assert sak["shuffled"] == {
        "rows_per_second": 90, "cores": 1, "first_batch_seconds": 0.5, "rounds": [90, 45, 99]
    }  # fmt: skip
    assert (absent["problem"], "shuffled" in absent) == ("not installed: pip install 'sak-distill[bench]'", False)
    assert found["lines"][5]["single_row_seconds"] is None


def test_the_table_has_a_row_for_all_that_was_measured(result: BenchResult) -> None:
    console = Console(width=160, file=io.StringIO(), record=True)
    console.print(bench_table(result))
    text = console.export_text()
    for name in ("sak", "limit: byte codec", "tar", "rows/s shuffled", "99%", "3.0 x", "2.00", "–"):
        assert name in text
    assert "absent" not in text


def test_notes_state_conditions_and_what_is_missing(result: BenchResult) -> None:
    text = "\n".join(bench_notes(result))
    for part in (
        "int8 (scale: float32): 6.00 bits a value",
        "page cache warm",
        "10.00 ms of processor time a row",
        "tar: noted",
        "3.0 x the best compressed or tar-based peer that holds the same integers, tar",
    ):
        assert part in text
    assert text.endswith("absent: not installed: pip install 'sak-distill[bench]'")
    assert "may not hold" not in text
    big = BenchResult(conditions={**CONDITIONS, "exceeds_memory": True}, handed={}, lines=result.lines[:1])
    assert "may not hold" in "\n".join(bench_notes(big))
    assert (
        bench_json(BenchResult(conditions={}, handed={"stored": 1}, lines=result.lines[3:5]))["digest_seconds_per_row"]
        is None
    )
