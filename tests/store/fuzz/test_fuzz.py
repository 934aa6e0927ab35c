"""Readers of stores accept bytes or refuse them as documented: all that fuzzing found, and mutations of sound ones."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.store.fuzz.targets import CORPUS, REGRESSIONS, TARGETS

INPUTS = sorted(path for folder in (CORPUS, REGRESSIONS) for path in folder.rglob("*") if path.is_file())
SEEDS = {name: [path.read_bytes() for path in INPUTS if path.parent.name == name] for name in TARGETS}
QUIET = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def test_every_target_has_seeds_and_the_corpus_is_small():
    assert all(SEEDS.values())
    assert {path.parent.name for path in INPUTS} == set(TARGETS)
    assert sum(path.stat().st_size for path in INPUTS) < 200_000


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_was_found_before(path: Path):
    tracemalloc.start()
    try:
        TARGETS[path.parent.name](path.read_bytes())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20 << 20
    assert pa.default_memory_pool().bytes_allocated() < 20 << 20


@st.composite
def mutated(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A sound input with some of its bytes overwritten, repeated, moved or gone."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, len(data)))
        stop = draw(st.integers(start, min(len(data), start + 40)))
        new = draw(st.one_of(st.binary(max_size=9), st.just(bytes(data[start:stop]) * 2), st.just(b"\xff" * 8)))
        data[start : draw(st.sampled_from([start, stop, min(len(data), start + len(new))]))] = new
        if not data:
            break
    return bytes(data)


@pytest.mark.parametrize("name", TARGETS)
def test_mutated_inputs(name: str):
    @settings(QUIET, max_examples=60)
    @given(data=mutated(SEEDS[name]))
    def run(data: bytes) -> None:
        TARGETS[name](data)

    run()


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**65), 2**65)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["../x", "0" * 64, "zarr", "klt", "float32", "part-00000", "a\nb", 2**40, 2**63]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to every value in a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else []
    return [path, *(place for key, item in items for place in places(item, (*path, key)))]


BODIES = [path.read_bytes() for path in INPUTS if path.name.endswith("_body")]


@settings(QUIET, max_examples=150)
@given(data=st.data())
def test_documents_with_other_values_in_them(data: st.DataObject):
    body = json.loads(data.draw(st.sampled_from(BODIES)))
    for _ in range(data.draw(st.integers(1, 3))):
        *path, last = data.draw(st.sampled_from([place for place in places(body) if place]))
        inside = body
        for key in path:
            inside = inside[key]
        inside[last] = data.draw(VALUES)
    TARGETS["documents"](json.dumps(body).encode("utf-8", "surrogatepass"))
