from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from store.codecs.base import LevelSpec
from store.codecs.registry import CODECS, codec_from_json, make_codec
from store.errors import FormatError, StoreError
from store.root import Root
from store.shard import ShardFile

GOLDEN = Path(__file__).parents[1] / "golden"
OPTIONS = [*((name, {}) for name in CODECS), ("fp16", {"clip": True}), ("int8", {"scale": "float16"})]
MAPS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 3), st.integers(1, 3)),
    elements=st.floats(-65504, 65504, width=32),
)


@pytest.mark.parametrize(("name", "options"), OPTIONS)
@given(feat_NCHW=MAPS)
@settings(max_examples=60, deadline=None)
def test_numpy_and_torch_agree_to_the_bit(name: str, options: dict[str, object], feat_NCHW: NDArray[np.float32]):
    codec = make_codec(name, options=options)
    parts = codec.encode(feat_NCHW)
    torch_parts = codec.encode(torch.from_numpy(feat_NCHW.copy()))
    assert list(parts) == list(torch_parts)
    for part, values in parts.items():
        np.testing.assert_array_equal(values.view(np.uint8), torch_parts[part].numpy().view(np.uint8))
    decoded = codec.decode(parts)
    assert decoded.dtype == np.float32
    np.testing.assert_array_equal(decoded, codec.decode(torch_parts).numpy())


@pytest.mark.parametrize(("name", "options"), OPTIONS)
@given(feat_NCHW=MAPS)
@settings(max_examples=60, deadline=None)
def test_parts_describe_what_encode_returns(name: str, options: dict[str, object], feat_NCHW: NDArray[np.float32]):
    codec = make_codec(name, options=options)
    rows, *shape = feat_NCHW.shape
    described = codec.parts(LevelSpec(components=shape[0], height=shape[1], width=shape[2]))
    parts = codec.encode(feat_NCHW)
    assert next(iter(described)) == "values"
    assert {part: (values.shape, values.dtype.name) for part, values in parts.items()} == {
        part: ((rows, *spec.shape), spec.dtype) for part, spec in described.items()
    }


@given(feat_NCHW=MAPS)
@settings(max_examples=100, deadline=None)
def test_errors_are_within_what_each_codec_promises(feat_NCHW: NDArray[np.float32]):
    def error(name: str) -> NDArray[np.float32]:
        codec = make_codec(name)
        return np.abs(codec.decode(codec.encode(feat_NCHW)) - feat_NCHW)

    assert not error("fp32").any()
    assert (error("fp16") <= np.maximum(np.abs(feat_NCHW) * 2**-11, 2**-25)).all()
    largest_N1HW = np.abs(feat_NCHW).max(axis=1, keepdims=True)
    assert (error("int8") <= largest_N1HW * (0.5 / 127) * 1.0001 + 1e-37).all()


@pytest.mark.parametrize("name", CODECS)
def test_json_round_trip(name: str):
    codec = make_codec(name)
    assert codec_from_json(json.loads(json.dumps(codec.to_json()))) == codec
    assert codec.to_json()["name"] == name


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_features_are_refused_and_the_level_named(name: str, bad: float):
    feat_NCHW = np.zeros((1, 2, 1, 1), np.float32)
    feat_NCHW[0, 1] = bad
    with pytest.raises(StoreError, match="level 2"):
        make_codec(name).encode(feat_NCHW, level=2)


def test_fp16_refuses_overflow_unless_clipping_is_asked_for():
    feat_NCHW = np.full((1, 1, 1, 1), -65505, np.float32)
    with pytest.raises(StoreError, match=r"level 1: expected values of at most 65504.*got 65505"):
        make_codec("fp16").encode(feat_NCHW, level=1)
    clipping = make_codec("fp16", options={"clip": True})
    assert clipping.decode(clipping.encode(feat_NCHW)).item() == -65504


def test_int8_float16_scales_refuse_what_they_cannot_hold():
    feat_NCHW = np.full((1, 1, 1, 1), 9e6, np.float32)
    with pytest.raises(StoreError, match=r"use codec \{name: int8, scale: float32\}"):
        make_codec("int8", options={"scale": "float16"}).encode(feat_NCHW)
    assert make_codec("int8").decode(make_codec("int8").encode(feat_NCHW)).item() == pytest.approx(9e6)


@pytest.mark.parametrize("name", CODECS)
def test_foreign_parts_are_refused(name: str):
    with pytest.raises(FormatError, match="expected parts"):
        make_codec(name).decode({"values": np.zeros((1, 1, 1, 1)), "basis": np.zeros(1)})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"name": "int7"}, "expected one of fp32, fp16"),
        ({"name": "int8", "bits": 3}, r"unknown options \['bits'\]"),
        ({"name": "int8", "scale": "int32"}, "expected float32 or float16"),
        ({"name": "fp16", "clip": 1}, "expected true or false"),
        ({"scale": "float32"}, "expected an object with a name"),
    ],
)
def test_malformed_json_is_refused(value: dict[str, object], message: str):
    with pytest.raises(FormatError, match=message):
        codec_from_json(value)


@pytest.mark.parametrize("name", CODECS)
def test_committed_bytes_decode_for_ever(name: str, tmp_path: Path):
    with np.load(GOLDEN / f"codec_{name}.npz", allow_pickle=False) as golden:
        codec = codec_from_json(json.loads(golden["codec"].tobytes()))
        parts = {}
        for part, spec in codec.parts(LevelSpec(components=8, height=2, width=3)).items():
            data = golden[f"shard_{part}"].tobytes()
            (tmp_path / part).write_bytes(data)
            shard = ShardFile(Root(tmp_path), part, spec=spec, rows=range(100, 103), rows_per_shard=4, size=len(data))
            values = np.empty((3, *spec.shape), spec.dtype)
            for row in range(3):
                shard.read_row(100 + row, values.reshape(3, -1)[row].view(np.uint8))
            parts[part] = values
        np.testing.assert_array_equal(codec.decode(parts), golden["decoded"])
